//! The racing process: this test binary, run again; it waits until it is told to go, so that it can be tagged.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What makes a run of the test binary a racer.
const VARIABLE: &str = "SALLYPORT_RACER";
/// What a racer's lines begin with; everything else is the test library's.
const MARK: &str = "racer: ";
/// A race that has not had enough calls by then fails.
const DEADLINE: Duration = Duration::from_secs(400);

/// How a race went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Score {
    /// Calls made.
    pub(crate) calls: u64,
    /// Calls that had a change while they ran.
    pub(crate) flipped: u64,
}

/// A racer that waits.
pub(crate) struct Racer {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Racer {
    /// Starts one for `words`, see [`operate`], in `folder`.
    pub(crate) fn start(words: &str, folder: &Path) -> Self {
        Self::begin(&mut Command::new(std::env::current_exe().expect("own path")), words, folder)
    }

    /// The same as the first program of a log-in outside of a gateway, of this user.
    pub(crate) fn start_logged_in(login: u32, words: &str, folder: &Path) -> Self {
        let script = format!("echo {login} >/proc/self/loginuid && exec \"$0\" \"$@\"");
        let mut shell = Command::new("/bin/bash");
        shell.args(["-c", &script]).arg(std::env::current_exe().expect("own path"));
        Self::begin(&mut shell, words, folder)
    }

    fn begin(command: &mut Command, words: &str, folder: &Path) -> Self {
        let mut child = command
            .args(["--exact", "racer::run_as_racer", "--nocapture"])
            .env(VARIABLE, words)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the racer");
        let output = BufReader::new(child.stdout.take().expect("stdout"));
        let mut racer = Self { child, output };
        assert_eq!(racer.line(), "ready");
        racer
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it race.
    pub(crate) fn release(&mut self) {
        self.child.stdin.as_mut().expect("stdin").write_all(b"\n").expect("write");
    }

    /// It has not ended yet.
    pub(crate) fn is_running(&mut self) -> bool {
        match self.child.try_wait().expect("wait") {
            None => true,
            Some(status) if status.success() => false,
            Some(status) => panic!("the racer ended with {status}: {}", self.said()),
        }
    }

    /// Lets it race, and waits for its score.
    pub(crate) fn go(mut self) -> Score {
        self.release();
        self.score()
    }

    /// Waits for its score.
    pub(crate) fn score(mut self) -> Score {
        let line = self.line();
        let numbers: Vec<u64> = line.split(' ').map(|word| word.parse().expect("a number")).collect();
        let status = self.child.wait().expect("wait");
        assert!(status.success(), "the racer ended with {status}");
        Score { calls: numbers[0], flipped: numbers[1] }
    }

    /// What it wrote on standard error; it has ended.
    fn said(&mut self) -> String {
        let mut said = String::new();
        let _ = self.child.stderr.take().expect("stderr").read_to_string(&mut said);
        said
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            if self.output.read_line(&mut line).expect("read") == 0 {
                let status = self.child.wait().expect("wait");
                panic!("the racer ended early with {status}: {}", self.said());
            }
            // The test library may have written the beginning of the line.
            if let Some(at) = line.find(MARK) {
                return line[at + MARK.len()..].trim_end().to_owned();
            }
        }
    }
}

/// Not a test: does nothing unless this binary is run as a racer.
#[test]
fn run_as_racer() {
    let Ok(command) = std::env::var(VARIABLE) else { return };
    let words: Vec<_> = command.split(' ').collect();
    println!("\n{MARK}ready");
    let mut byte = [0];
    std::io::stdin().read_exact(&mut byte).expect("the word to go");
    let score = operate(&words);
    println!("\n{MARK}{} {}", score.calls, score.flipped);
}

fn operate(words: &[&str]) -> Score {
    match words[0] {
        "argv" => crate::programs::race_argv(words),
        "path" => crate::programs::race_path(words),
        "symlink" => crate::programs::race_symlink(words),
        "open-path" => crate::files::race_path(words),
        "open-symlink" => crate::files::race_symlink(words),
        "sendto" | "tcp" | "udp" => crate::addresses::race(words),
        "storm" => crate::forks::storm(words),
        "orphans" => crate::forks::orphans(words),
        "flood" => crate::floods::flood(words),
        "acts" => crate::beside::acts(words),
        "bomb" => crate::beside::bomb(),
        other => panic!("no race `{other}`"),
    }
}

/// Races: `flip` all the time in a thread; here `call`, each time that `permitted` says so, until `wanted` calls had a flip
/// while they ran.
pub(crate) fn race(
    wanted: u64,
    flip: impl Fn() + Sync,
    permitted: impl Fn() -> bool,
    mut call: impl FnMut(),
) -> Score {
    let (flips, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut score = Score { calls: 0, flipped: 0 };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                flip();
                flips.fetch_add(1, Ordering::Relaxed);
            }
        });
        let deadline = Instant::now() + DEADLINE;
        while score.flipped < wanted && Instant::now() < deadline {
            let mut spins = 0;
            while !permitted() {
                spins += 1;
                if spins % 1000 == 0 {
                    std::thread::yield_now();
                }
            }
            let before = flips.load(Ordering::Relaxed);
            call();
            score.flipped += u64::from(flips.load(Ordering::Relaxed) != before);
            score.calls += 1;
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(score.flipped >= wanted, "only {} of {} calls had a flip", score.flipped, score.calls);
    score
}
