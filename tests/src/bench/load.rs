//! What is compared: process starts, file opens and connects, as many as a process manages in a given time. This program is run
//! again for it, inside of a session or outside.

use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// What is done.
pub(crate) const LOADS: [&str; 3] = ["process starts", "file opens", "connects"];

/// The words that run this program as load number `load` for that long.
pub(crate) fn words(load: usize, time: Duration) -> [String; 3] {
    ["--load".to_owned(), load.to_string(), time.as_millis().to_string()]
}

/// Works, and prints how many per second.
pub(crate) fn run(load: usize, time: Duration) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let work = || -> Result<()> {
        match load {
            0 => ensure!(Command::new("/usr/bin/true").status()?.success(), "true failed"),
            1 => drop(std::fs::File::open("/etc/passwd")?),
            // The discard port, by UDP: nothing is sent.
            2 => socket.connect("127.0.0.1:9")?,
            _ => bail!("there is no load {load}"),
        }
        Ok(())
    };
    // Asking for the time is cheap, but not beside an open.
    let batch = if load == 0 { 1 } else { 64 };
    let mut rates = Vec::new();
    let whole = Instant::now();
    while whole.elapsed() < time {
        let (started, mut done) = (Instant::now(), 0u32);
        while started.elapsed() < SLICE {
            for _ in 0..batch {
                work()?;
            }
            done += batch;
        }
        rates.push(f64::from(done) / started.elapsed().as_secs_f64());
    }
    println!("rate {}", undisturbed(rates));
    Ok(())
}

/// A part of the time.
const SLICE: Duration = Duration::from_millis(50);

/// The median of the better half: what else the computer does takes whole slices away.
fn undisturbed(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() * 3 / 4).copied().unwrap_or_default()
}

/// Reads what [`run`] printed.
pub(crate) fn rate(said: &str) -> Result<f64> {
    let line = said.lines().find_map(|line| line.trim().strip_prefix("rate "));
    line.and_then(|rate| rate.parse().ok()).with_context(|| format!("the load printed no rate: {said}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn slices_that_others_took_do_not_count() {
        let rates = vec![10.0, 1.0, 100.0, 2.0, 101.0, 99.0, 3.0, 100.0];
        assert!(super::undisturbed(rates) >= 100.0);
        assert!(super::undisturbed(Vec::new()) == 0.0);
    }
}
