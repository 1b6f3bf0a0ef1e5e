//! SSH through gateway and sensor, beside a direct `sshd` and beside `ssh -J` through a plain `sshd`.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::figures::{Figure, Figures, median};
use super::{Bench, TARGET};

const MIB: u64 = 1 << 20;
const BULK: u64 = 512 * MIB;
const ROUNDS: usize = 3;
const SET_UPS: usize = 20;
const ECHOES: usize = 300;

/// A way to the same account on this computer.
#[derive(Clone, Copy)]
pub(crate) enum Route {
    Direct,
    Jump,
    Sallyport,
}

pub(crate) const ROUTES: [Route; 3] = [Route::Direct, Route::Jump, Route::Sallyport];

impl Route {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Route::Direct => "direct sshd",
            Route::Jump => "ssh -J through sshd",
            Route::Sallyport => "gateway and sensor",
        }
    }

    /// `ssh OPTIONS HOST LINE`, silent.
    pub(crate) fn command(self, bench: &Bench, options: &[&str], line: &str) -> Command {
        let quiet = ["-q", "-o", "BatchMode=yes", "-o", "KexAlgorithms=curve25519-sha256"];
        let at = format!("{TARGET}@gateway");
        match self {
            Route::Sallyport => bench.alice.command(&[&quiet, options, &[&at, line]].concat()),
            Route::Direct | Route::Jump => {
                let host = if matches!(self, Route::Direct) { "direct" } else { "jumped" };
                let mut command = Command::new("ssh");
                command.arg("-F").arg(&bench.sshd.client_config).args(quiet).args(options).args([host, line]);
                command
            }
        }
    }
}

/// Adds one figure per route; the direct one is everybody's baseline.
fn compare(
    figures: &mut Figures,
    what: &str,
    unit: &str,
    mut measure: impl FnMut(Route) -> Result<f64>,
) -> Result<()> {
    let mut values = Vec::new();
    for route in ROUTES {
        let value = measure(route).with_context(|| format!("{what}, {}", route.name()))?;
        let name = format!("{what}, {}", route.name());
        let baseline = values.first().copied();
        figures.add(&Figure { name: &name, value, unit, baseline, beside: "direct sshd" });
        values.push(value);
    }
    let name = format!("{what}, gateway beside ssh -J");
    figures.add(&Figure { name: &name, value: values[2], unit, baseline: Some(values[1]), beside: "ssh -J" });
    Ok(())
}

/// Connect, authenticate, run `true`, leave.
pub(crate) fn set_up(bench: &Bench, figures: &mut Figures) -> Result<()> {
    compare(figures, "session set-up", "ms", |route| {
        let mut times = Vec::new();
        for _ in 0..SET_UPS {
            let started = Instant::now();
            let status = route.command(bench, &["-T"], "true").stdin(Stdio::null()).status()?;
            ensure!(status.success(), "`true` ended with {status}");
            times.push(started.elapsed().as_secs_f64() * 1e3);
        }
        Ok(median(times))
    })
}

/// One byte there and back through a terminal on the host.
pub(crate) fn echo(bench: &Bench, figures: &mut Figures) -> Result<()> {
    compare(figures, "keystroke echo", "µs", |route| {
        let mut ssh = piped(&mut route.command(bench, &["-tt"], "stty raw -echo; echo go; cat"))?;
        let (mut keys, mut screen) = ends(&mut ssh)?;
        // What is announced on entry, and `go`, come first.
        let mut shown = Vec::new();
        while !shown.ends_with(b"go\n") {
            let mut byte = [0];
            screen.read_exact(&mut byte).context("the session ended")?;
            shown.push(byte[0]);
        }
        let mut times = Vec::new();
        for _ in 0..ECHOES {
            let started = Instant::now();
            keys.write_all(b"x")?;
            let mut byte = [0];
            screen.read_exact(&mut byte)?;
            times.push(started.elapsed().as_secs_f64() * 1e6);
        }
        drop(keys);
        let _ = ssh.kill();
        ssh.wait()?;
        Ok(median(times))
    })
}

/// Bytes per second, both ways, with OpenSSH's default cipher and with AES-GCM.
pub(crate) fn bulk(bench: &Bench, figures: &mut Figures) -> Result<()> {
    for (cipher, options) in
        [("default cipher", &["-T"][..]), ("aes128-gcm", &["-T", "-c", "aes128-gcm@openssh.com"])]
    {
        compare(figures, &format!("bulk down, {cipher}"), "MiB/s", |route| {
            rate(|| {
                let mut ssh =
                    piped(&mut route.command(bench, options, &format!("head -c {BULK} /dev/zero")))?;
                let (keys, mut screen) = ends(&mut ssh)?;
                drop(keys);
                let copied = std::io::copy(&mut screen, &mut std::io::sink())?;
                ensure!(copied == BULK && ssh.wait()?.success(), "{copied} bytes came");
                Ok(())
            })
        })?;
        compare(figures, &format!("bulk up, {cipher}"), "MiB/s", |route| {
            rate(|| {
                let mut ssh = piped(&mut route.command(bench, options, "wc -c"))?;
                let (mut keys, mut screen) = ends(&mut ssh)?;
                write_zeros(&mut keys, BULK)?;
                drop(keys);
                let mut said = String::new();
                screen.read_to_string(&mut said)?;
                ensure!(said.trim() == BULK.to_string() && ssh.wait()?.success(), "{said} bytes arrived");
                Ok(())
            })
        })?;
    }
    Ok(())
}

fn rate(mut transfer: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let started = Instant::now();
        transfer()?;
        rates.push((BULK / MIB) as f64 / started.elapsed().as_secs_f64());
    }
    Ok(median(rates))
}

pub(crate) fn piped(command: &mut Command) -> Result<Child> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("start ssh")
}

pub(crate) fn ends(ssh: &mut Child) -> Result<(std::process::ChildStdin, std::process::ChildStdout)> {
    Ok((ssh.stdin.take().context("no input")?, ssh.stdout.take().context("no output")?))
}

pub(crate) fn write_zeros(to: &mut impl Write, bytes: u64) -> Result<()> {
    let block = vec![0; 256 * 1024];
    let mut left = bytes;
    while left > 0 {
        let now = usize::try_from(left.min(block.len() as u64))?;
        to.write_all(&block[..now])?;
        left -= now as u64;
    }
    Ok(())
}
