//! What is measured, done many times by a process of its own, so that it can be tagged: this program, run again.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::UdpSocket;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// An operation whose decision is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Exec,
    /// The same where policy wants no record of it: the decision without its event.
    Unrecorded,
    Open,
    Connect,
}

impl Operation {
    pub(crate) const ALL: [Self; 4] = [Self::Exec, Self::Unrecorded, Self::Open, Self::Connect];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Unrecorded => "exec, not recorded",
            Self::Open => "open",
            Self::Connect => "connect",
        }
    }

    /// How often in one go.
    pub(crate) fn times(self) -> u64 {
        match self {
            Self::Exec | Self::Unrecorded => 200,
            Self::Open | Self::Connect => 5_000,
        }
    }

    /// The kernel programs that decide, each of which runs once for each operation.
    pub(crate) fn programs(self) -> &'static [&'static str] {
        match self {
            // `sally_exec_prepare` looks the caller up where rules ask for it; these do not, and it counts all the same.
            Self::Exec | Self::Unrecorded => &["sally_exec_check", "sally_exec_prepare", "sally_exec"],
            Self::Open => &["sally_file_open"],
            Self::Connect => &["sally_connect4"],
        }
    }
}

/// A process that waits before it does its work.
pub(crate) struct Load {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Load {
    pub(crate) fn start(operation: Operation) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--load", operation.name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the load")?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let mut load = Self { child, output };
        load.expect("ready")?;
        Ok(load)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it work. What it does before and after is not to be measured, so it waits again when it is done.
    pub(crate) fn work(&mut self) -> Result<()> {
        self.child.stdin.as_mut().context("no input")?.write_all(b"\n")?;
        self.expect("done")
    }

    pub(crate) fn end(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        self.child.wait()?;
        Ok(())
    }

    fn expect(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line.trim() == word, "the load says `{}` instead of `{word}`", line.trim());
        Ok(())
    }
}

/// The process itself: works once for each byte of input.
pub(crate) fn run(name: &str) -> Result<()> {
    let operation = Operation::ALL.into_iter().find(|operation| operation.name() == name);
    let operation = operation.with_context(|| format!("`{name}` is no load"))?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    println!("ready");
    let mut byte = [0];
    while std::io::stdin().read(&mut byte)? == 1 {
        for _ in 0..operation.times() {
            match operation {
                Operation::Exec | Operation::Unrecorded => {
                    ensure!(Command::new("/usr/bin/true").status()?.success(), "true failed")
                }
                Operation::Open => drop(std::fs::File::open("/etc/passwd")?),
                // Discard: nothing is sent.
                Operation::Connect => socket.connect("127.0.0.1:9")?,
            }
        }
        println!("done");
    }
    Ok(())
}
