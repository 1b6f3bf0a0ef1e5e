//! The process that all techniques' processes are forked from: it has no descriptor of the sensor's, one thread, and little memory.
//!
//! Requests and answers are lines. `run N` forks a victim and a process for technique N, which waits; the runner tags it; `go` lets it
//! go on and waits for its end; `clean` ends whatever is left.

use std::io::{BufRead as _, BufReader, Error, Result, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sallyport_sensor::shepherd::filter::{self, Refusals};

use crate::stage::{PORT, Stage, VICTIM_SECRET, VICTIM_SOCKET, root};
use crate::sys::{self, at, call, exit, fork};
use crate::technique::Technique;

/// A technique's process may take this long; the machine may be a slow emulation.
const PATIENCE: Duration = Duration::from_secs(20);
/// What it leaves running may take this long to end by itself.
const LINGER: Duration = Duration::from_secs(2);

/// The word of memory that the victim watches. All processes are forked from one, so it has the same address in all.
pub(crate) static WATCHED: AtomicU32 = AtomicU32::new(0);

/// The runner's side.
pub(crate) struct Server {
    stream: BufReader<UnixStream>,
    process: i32,
}

/// A technique's process, waiting.
pub(crate) struct Started {
    pub(crate) process: i32,
    pub(crate) victim: i32,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// It, or something that it started, was killed by SIGKILL.
    pub(crate) killed: bool,
    /// What it says itself: empty if all went well.
    pub(crate) word: String,
}

impl Server {
    /// Forks it. Call while this process has one thread.
    pub(crate) fn start(techniques: &[Technique]) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        match fork()? {
            Some(process) => Ok(Self { stream: BufReader::new(ours), process }),
            None => {
                drop(ours);
                let served = serve(theirs, techniques);
                exit(i32::from(served.is_err()))
            }
        }
    }

    pub(crate) fn run(&mut self, number: usize) -> Result<Started> {
        let answer = self.ask(&format!("run {number}"))?;
        let mut words = answer.splitn(3, ' ');
        let mut number = || words.next().and_then(|word| word.parse::<i32>().ok());
        match (number(), number()) {
            (Some(process), Some(victim)) => Ok(Started { process, victim }),
            _ => Err(Error::other(answer)),
        }
    }

    /// Lets it go on, once it has given up what the leader of a session does.
    pub(crate) fn go(&mut self, refusals: Refusals) -> Result<Ended> {
        let answer = self.ask(&format!("go {}", serde_json::to_string(&refusals)?))?;
        let (killed, word) = answer.split_once(' ').unwrap_or((&answer, ""));
        Ok(Ended { killed: killed == "killed", word: word.to_owned() })
    }

    pub(crate) fn clean(&mut self) -> Result<()> {
        self.ask("clean").map(drop)
    }

    fn ask(&mut self, request: &str) -> Result<String> {
        writeln!(self.stream.get_mut(), "{request}")?;
        let mut answer = String::new();
        if self.stream.read_line(&mut answer)? == 0 {
            return Err(Error::other("the server of techniques has ended"));
        }
        Ok(answer.trim_end().to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stream.get_ref().shutdown(std::net::Shutdown::Both);
        let _ = sys::wait(self.process);
    }
}

struct Running {
    process: i32,
    victim: i32,
    go: OwnedFd,
    word: OwnedFd,
}

fn serve(stream: UnixStream, techniques: &[Technique]) -> Result<()> {
    // Orphans come here, wherever they hide.
    call(libc::SYS_prctl, &[libc::PR_SET_CHILD_SUBREAPER as usize, 1])?;
    let mut answers = stream.try_clone()?;
    let mut running: Option<Running> = None;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        let answer = match line.split_once(' ').unwrap_or((&line, "")) {
            ("run", number) => match number.parse().ok().and_then(|number: usize| techniques.get(number)) {
                Some(technique) => match start(technique) {
                    Ok(started) => {
                        let answer = format!("{} {}", started.process, started.victim);
                        running = Some(started);
                        answer
                    }
                    Err(error) => format!("cannot start: {error}"),
                },
                None => "no such technique".to_owned(),
            },
            ("go", refusals) => match &running {
                Some(running) => finish(running, refusals)?,
                None => "nothing runs".to_owned(),
            },
            _ => {
                running = None;
                end_all();
                "clean".to_owned()
            }
        };
        writeln!(answers, "{answer}")?;
    }
    end_all();
    Ok(())
}

fn start(technique: &Technique) -> Result<Running> {
    let victim = victim()?;
    let (ready, say_ready) = sys::pipe()?;
    let (wait_go, go) = sys::pipe()?;
    let (word, say_word) = sys::pipe()?;
    call(libc::SYS_fcntl, &[sys::fd(&word), libc::F_SETFL as usize, libc::O_NONBLOCK as usize])?;
    let Some(process) = fork()? else {
        let stage = Stage::attached(victim);
        let outcome = surroundings().and_then(|()| (technique.before)(&stage));
        let outcome = outcome.and_then(|()| {
            drop((ready, go, word));
            call(libc::SYS_write, &[sys::fd(&say_ready), at(b"r"), 1])?;
            drop(say_ready);
            let mut refusals = [0u8; 512];
            let length = call(libc::SYS_read, &[sys::fd(&wait_go), refusals.as_mut_ptr() as usize, 512])?;
            drop(wait_go);
            give_up(&refusals[..length], technique.as_nobody)?;
            (technique.attack)(&stage)
        });
        if let Err(error) = &outcome {
            let text = error.to_string().replace('\n', " ");
            let _ = call(libc::SYS_write, &[sys::fd(&say_word), text.as_ptr() as usize, text.len()]);
        }
        exit(if sys::saw_kill() { 137 } else { i32::from(outcome.is_err()) })
    };
    drop((say_ready, wait_go, say_word));
    let byte = [0u8];
    let read = call(libc::SYS_read, &[sys::fd(&ready), at(&byte), 1])?;
    if read == 0 {
        let ended = finish(&Running { process, victim, go, word }, "{}")?;
        return Err(Error::other(format!("it cannot be set up: {ended}")));
    }
    Ok(Running { process, victim, go, word })
}

/// As the leader of a session does. (Capabilities that are taken out of the bounding set are missing from the next exec on only.)
fn give_up(refusals: &[u8], as_nobody: bool) -> Result<()> {
    let refusals: Refusals = serde_json::from_slice(refusals)?;
    let user = if as_nobody { 65_534 } else { 0 };
    let filter = filter::compile(refusals, user, user).map_err(Error::other)?;
    filter::give_up(refusals, &filter).map_err(Error::other)?;
    if as_nobody {
        call(libc::SYS_setgroups, &[0, 0])?;
        call(libc::SYS_setresgid, &[user as usize; 3])?;
        call(libc::SYS_setresuid, &[user as usize; 3])?;
    }
    filter.put_on_as_user().map_err(Error::other)
}

/// A session of its own, its output kept, and the stage's folder as the current one.
fn surroundings() -> Result<()> {
    call(libc::SYS_setsid, &[])?;
    let null = sys::open("/dev/null", libc::O_RDONLY)?;
    let output =
        sys::open(format!("{}.log", crate::stage::ROOT), libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC)?;
    for (from, to) in [(null.as_raw_fd(), 0), (output.as_raw_fd(), 1), (output.as_raw_fd(), 2)] {
        call(libc::SYS_dup3, &[from as usize, to, 0])?;
    }
    std::env::set_current_dir(root("work"))
}

fn finish(running: &Running, refusals: &str) -> Result<String> {
    // It may have ended already.
    let _ = call(libc::SYS_write, &[sys::fd(&running.go), refusals.as_ptr() as usize, refusals.len()]);
    let started = Instant::now();
    let mut killed = "ended";
    let mut status = 0i32;
    loop {
        let done = call(
            libc::SYS_wait4,
            &[running.process as usize, (&raw mut status) as usize, libc::WNOHANG as usize, 0],
        )?;
        if done != 0 && !libc::WIFSTOPPED(status) {
            break;
        }
        if started.elapsed() > PATIENCE {
            call(libc::SYS_kill, &[running.process as usize, libc::SIGKILL as usize])?;
            call(libc::SYS_wait4, &[running.process as usize, (&raw mut status) as usize, 0, 0])?;
            return Ok(format!("ended it took longer than {} s", PATIENCE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let signalled = libc::WIFSIGNALED(status);
    if (signalled && libc::WTERMSIG(status) == libc::SIGKILL)
        || (libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 137)
    {
        killed = "killed";
    }
    // What it started may do its work a little later.
    let started = Instant::now();
    while children().iter().any(|child| *child != running.victim) && started.elapsed() < LINGER {
        reap();
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut word = [0u8; 300];
    let length = match signalled {
        true => 0,
        // Something that it left running may still hold the other end.
        false => call(libc::SYS_read, &[sys::fd(&running.word), word.as_mut_ptr() as usize, word.len()])
            .unwrap_or(0),
    };
    let word = match signalled {
        true => format!("signal {}", libc::WTERMSIG(status)),
        false => String::from_utf8_lossy(&word[..length]).into_owned(),
    };
    Ok(format!("{killed} {word}"))
}

fn reap() {
    // Not the victim: it stays until everything was looked at.
    for child in children() {
        let mut status = 0i32;
        let _ =
            call(libc::SYS_wait4, &[child as usize, (&raw mut status) as usize, libc::WNOHANG as usize, 0]);
    }
}

fn end_all() {
    let started = Instant::now();
    loop {
        let children = children();
        if children.is_empty() || started.elapsed() > LINGER {
            return;
        }
        for child in children {
            let _ = call(libc::SYS_kill, &[child as usize, libc::SIGKILL as usize]);
            let _ = call(libc::SYS_wait4, &[child as usize, 0, libc::WNOHANG as usize, 0]);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// This process's children, dead ones included.
fn children() -> Vec<i32> {
    let list = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    list.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// An untagged process with something to lose.
fn victim() -> Result<i32> {
    let (ready, say_ready) = sys::pipe()?;
    if let Some(victim) = fork()? {
        drop(say_ready);
        let byte = [0u8];
        return match call(libc::SYS_read, &[sys::fd(&ready), at(&byte), 1])? {
            1 => Ok(victim),
            _ => Err(Error::other("the victim cannot live")),
        };
    }
    let lived = live(say_ready);
    exit(i32::from(lived.is_err()))
}

fn live(say_ready: OwnedFd) -> Result<()> {
    call(libc::SYS_setsid, &[])?;
    std::env::set_current_dir(root("secrets"))?;
    let secret = sys::open(root("secrets/secret"), libc::O_RDWR)?;
    call(libc::SYS_dup3, &[sys::fd(&secret), VICTIM_SECRET as usize, 0])?;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(("127.0.0.1", PORT))?;
    call(libc::SYS_dup3, &[sys::fd(&socket), VICTIM_SOCKET as usize, 0])?;
    call(libc::SYS_write, &[sys::fd(&say_ready), at(b"r"), 1])?;
    drop(say_ready);
    loop {
        if WATCHED.load(Ordering::SeqCst) != 0 {
            std::fs::write(root("work/victim-changed"), "")?;
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}
