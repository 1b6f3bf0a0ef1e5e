//! Child processes that end with the value that stands for them.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// How long a program gets to end by itself after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// A program that runs beside the test. Dropping it ends it: SIGTERM first, SIGKILL when that takes too long.
pub struct Running {
    name: String,
    child: Option<Child>,
    log: PathBuf,
}

impl Running {
    /// Starts `command` with its output in `log` (appended: restarts are one story). Its standard input is
    /// a pipe that stays open as long as this value.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::piped())
            .stdout(file.try_clone()?)
            .stderr(file)
            // Ctrl-C reaches the harness alone, which then ends its children in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self { name: name.to_owned(), child: Some(child), log: log.to_owned() })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// What it has printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Fails, with the end of its log, if it has ended.
    ///
    /// # Errors
    /// It has.
    pub fn check(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else { bail!("{} was stopped", self.name) };
        if let Some(status) = child.try_wait()? {
            bail!("{} has ended ({status}); it said:\n{}", self.name, last_lines(&self.log(), 15));
        }
        Ok(())
    }

    /// Waits until it has printed a line that `wanted` takes something from.
    ///
    /// # Errors
    /// It ended before, or it took too long.
    pub fn wait_for_line<T>(&mut self, what: &str, wanted: impl Fn(&str) -> Option<T>) -> Result<T> {
        wait::until(&format!("{} to say {what}", self.name), wait::PATIENCE, || {
            let found = self.log().lines().find_map(&wanted);
            if found.is_none() {
                self.check()?;
            }
            Ok(found)
        })
    }

    /// Waits for its end; its exit code.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn wait(&mut self, patience: Duration) -> Result<i32> {
        let Some(child) = &mut self.child else { bail!("{} was stopped", self.name) };
        let status = wait::until(&format!("{} to end", self.name), patience, || Ok(child.try_wait()?))
            .with_context(|| format!("it said: {}", last_lines(&self.log(), 15)))?;
        self.child = None;
        Ok(status.code().unwrap_or(-1))
    }

    /// Kills it without warning, and waits until it is gone.
    ///
    /// # Errors
    /// It could not be waited for.
    pub fn kill_hard(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Asks it to end and waits for that.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        drop(child.stdin.take());
        let pid = Pid::from_raw(child.id().cast_signed());
        let _ = kill(pid, Signal::SIGTERM);
        let started = Instant::now();
        while started.elapsed() < GRACE {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Finished {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Exit code; 128 + n after signal n, as shells say it.
    #[must_use]
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Standard output as text.
    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Itself, if it ended well.
    ///
    /// # Errors
    /// It did not; the error has what it said.
    pub fn success(self) -> Result<Self> {
        if !self.status.success() {
            bail!("ended with {}; it said: {}{}", self.code(), self.out(), self.err());
        }
        Ok(self)
    }
}

/// Runs a command to its end, with `input`, killing it when `patience` runs out.
///
/// # Errors
/// It could not be started, took too long, or the run was interrupted.
pub fn finish(command: &mut Command, input: &[u8], patience: Duration) -> Result<Finished> {
    use std::io::{Read, Write};
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {shown}"))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if let Some(mut stdin) = stdin {
                let _ = stdin.write_all(input);
            }
        });
        let reader = |stream: Option<Box<dyn Read + Send>>| {
            scope.spawn(move || {
                let mut bytes = Vec::new();
                if let Some(mut stream) = stream {
                    let _ = stream.read_to_end(&mut bytes);
                }
                bytes
            })
        };
        let out = reader(stdout.map(|stream| Box::new(stream) as Box<dyn Read + Send>));
        let err = reader(stderr.map(|stream| Box::new(stream) as Box<dyn Read + Send>));
        let waited = wait::until(&shown, patience, || Ok(child.try_wait()?));
        if waited.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let stdout = out.join().unwrap_or_default();
        let stderr = err.join().unwrap_or_default();
        match waited {
            Ok(status) => Ok(Finished { status, stdout, stderr }),
            Err(error) => Err(error.context(format!(
                "it had said: {}{}",
                String::from_utf8_lossy(&stdout),
                String::from_utf8_lossy(&stderr)
            ))),
        }
    })
}

/// The end of a log, for error messages.
#[must_use]
pub fn last_lines(text: &str, n: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(n)..].join("\n")
}
