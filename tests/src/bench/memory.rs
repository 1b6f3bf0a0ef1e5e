//! Memory of gateway and sensor while a peer stalls in the middle of 2 GiB, either way.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::figures::{Figure, Figures};
use super::transfers::{Route, ends, piped, write_zeros};

const BYTES: u64 = 2 << 30;
/// Taken before the stall.
const FIRST: u64 = 64 << 20;
const STALL: Duration = Duration::from_secs(6);

pub(crate) fn measure(bench: &mut Bench, figures: &mut Figures) -> Result<()> {
    let processes = [("gateway", bench.stage.gateway()?.id()), ("sensor", bench.stage.sensor()?.id())];
    let idle: Vec<f64> = processes.iter().map(|(_, id)| resident(*id)).collect::<Result<_>>()?;
    for way in ["down", "up"] {
        let watched: Vec<Watch> = processes.iter().map(|(_, id)| Watch::start(*id)).collect();
        match way {
            "down" => stalled_download(bench)?,
            _ => stalled_upload(bench)?,
        }
        for (((name, _), idle), watch) in processes.iter().zip(&idle).zip(watched) {
            let name = format!("memory of the {name}, stalled 2 GiB {way}");
            figures.add(&Figure {
                name: &name,
                value: watch.peak(),
                unit: "MiB",
                baseline: Some(*idle),
                beside: "idle",
            });
        }
    }
    Ok(())
}

/// The client takes a little, then nothing for a while, then the rest.
fn stalled_download(bench: &Bench) -> Result<()> {
    let mut ssh =
        piped(&mut Route::Sallyport.command(bench, &["-T"], &format!("head -c {BYTES} /dev/zero")))?;
    let (keys, mut screen) = ends(&mut ssh)?;
    drop(keys);
    let first = std::io::copy(&mut (&mut screen).take(FIRST), &mut std::io::sink())?;
    std::thread::sleep(STALL);
    let rest = std::io::copy(&mut screen, &mut std::io::sink())?;
    ensure!(first + rest == BYTES && ssh.wait()?.success(), "{} of {BYTES} bytes came", first + rest);
    Ok(())
}

/// The program on the host takes a little, then nothing for a while, then the rest.
fn stalled_upload(bench: &Bench) -> Result<()> {
    let line = format!("head -c {FIRST} >/dev/null; sleep {}; wc -c", STALL.as_secs());
    let mut ssh = piped(&mut Route::Sallyport.command(bench, &["-T"], &line))?;
    let (mut keys, mut screen) = ends(&mut ssh)?;
    write_zeros(&mut keys, BYTES)?;
    drop(keys);
    let mut said = String::new();
    screen.read_to_string(&mut said)?;
    let rest: u64 = said.trim().parse().with_context(|| format!("`wc` said {said}"))?;
    // `head` may read more than it was asked for; what it took beyond is gone.
    ensure!(rest <= BYTES - FIRST && rest + FIRST + (1 << 20) >= BYTES, "{rest} bytes arrived");
    ensure!(ssh.wait()?.success(), "the upload failed");
    Ok(())
}

/// Samples a process's resident memory until it is asked for the peak.
struct Watch {
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Watch {
    fn start(id: u32) -> Self {
        let watch = Self { peak: Arc::default(), stop: Arc::default() };
        let (peak, stop) = (Arc::clone(&watch.peak), Arc::clone(&watch.stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if let Ok(now) = resident(id) {
                    peak.fetch_max(now.ceil() as u64, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        watch
    }

    fn peak(self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        self.peak.load(Ordering::Relaxed) as f64
    }
}

/// Resident memory in MiB.
fn resident(id: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).context("the process is gone")?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.context("no VmRSS")? / 1024.0)
}
