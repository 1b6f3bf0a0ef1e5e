//! Boots a kernel with an initramfs in QEMU and reads its serial console.
//!
//! Software emulation, so that it runs wherever QEMU does. The verdict is the guest's final line and
//! nothing else: a guest that dies, hangs or says nothing has failed.

use std::io::{BufRead, BufReader, IsTerminal};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How the guest's last line starts; `success` or `failure: …` follows. The guest's init prints it.
const VERDICT: &str = "sallyport-guest: ";
/// What the kernel prints when nothing good can follow.
const DEATHS: [&str; 4] = ["Kernel panic", "BUG: ", "soft lockup", "rcu_sched detected stalls"];

/// `-cpu max` makes 6.12 crash at boot under Debian 12's QEMU; Haswell has the AES instructions that TLS and
/// SSH use. Without cmpxchg16b, whose emulation in that QEMU now and then leaves wrong flags behind (6.12's
/// allocator then faults). What else emulation lacks is taken off, or QEMU warns of it.
const CPU: &str = "Haswell,-cx16,-pcid,-x2apic,-tsc-deadline,-hle,-invpcid,-rtm";

/// A machine to boot.
pub(crate) struct Machine<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    /// More for the kernel's command line.
    pub(crate) kernel_arguments: &'a [&'a str],
    /// Arguments for the guest's init.
    pub(crate) arguments: &'a [String],
    /// The longest that all of it may take.
    pub(crate) deadline: Duration,
    /// The longest that the console may be silent: nothing moves any more.
    pub(crate) silence: Duration,
    /// The console is written here as well.
    pub(crate) log: &'a Path,
}

/// Boots, and gives the console's lines to `watch` as they come.
pub(crate) fn boot(machine: &Machine<'_>, mut watch: impl FnMut(&str)) -> Result<()> {
    let started = Instant::now();
    let mut guest = Guest(command(machine).spawn().context("start qemu-system-x86_64")?);
    let lines = console(&mut guest.0)?;
    let mut log = std::fs::File::create(machine.log)?;
    loop {
        let left = machine.deadline.saturating_sub(started.elapsed());
        let line = match lines.recv_timeout(left.min(machine.silence)) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) if started.elapsed() >= machine.deadline => {
                bail!(
                    "the guest gave no verdict in {} s; its console: {}",
                    machine.deadline.as_secs(),
                    machine.log.display()
                )
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!(
                    "the guest has said nothing for {} s, after {} s in all; its console: {}",
                    machine.silence.as_secs(),
                    started.elapsed().as_secs(),
                    machine.log.display()
                )
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the guest ended without a verdict; its console: {}", machine.log.display())
            }
        };
        std::io::Write::write_all(&mut log, format!("{line}\n").as_bytes())?;
        watch(&line);
        if let Some(death) = DEATHS.iter().find(|death| line.contains(**death)) {
            bail!("the guest's kernel died ({death}); its console: {}", machine.log.display());
        }
        if let Some(at) = line.find(VERDICT) {
            return match &line[at + VERDICT.len()..] {
                "success" => Ok(()),
                failure => bail!("the guest says {failure}; its console: {}", machine.log.display()),
            };
        }
    }
}

/// A running machine, which ends with this value.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(machine: &Machine<'_>) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "2", "-m", "2048"])
        .args(["-display", "none", "-monitor", "none", "-serial", "stdio", "-nic", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(machine.kernel)
        .arg("-initrd")
        .arg(machine.initramfs)
        .arg("-append")
        .arg(format!(
            "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check random.trust_cpu=on {} -- {}",
            machine.kernel_arguments.join(" "),
            machine.arguments.join(" ")
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(if std::io::stderr().is_terminal() { Stdio::null() } else { Stdio::inherit() });
    command
}

/// Reads the console in a thread of its own, so that the deadline holds while the guest is silent.
fn console(guest: &mut Child) -> Result<mpsc::Receiver<String>> {
    let output = guest.stdout.take().context("the guest has no console")?;
    // Bounded: a guest that floods its console waits for us.
    let (sender, receiver) = mpsc::sync_channel(1024);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    Ok(receiver)
}
