//! The shepherd: one small process per channel. It owns the terminal or pipes and the leader, and outlives the sensor.
//!
//! One thread, one `poll` loop, bounded memory: what the gateway has not taken fills the window of
//! [`sallyport_contract::resume`] and then the program waits, as on a slow terminal. Frames pass end to end
//! between gateway and shepherd; the sensor only relays them. So a sensor that is killed or upgraded, or a
//! gateway connection that breaks, costs nothing but time.
//!
//! The shepherd runs no code of the user and takes no orders from them: its socket lies in a directory that
//! only root can enter, and peers of another user are turned away.

pub mod account;
mod bounds;
mod channel;
mod control;
pub mod enclosure;
pub mod filter;
mod io;
mod leader;
mod notice;
pub mod protocol;
pub mod terminal;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, fchown, pipe2, setsid};

use self::account::Account;
use self::channel::{Parts, Shepherd};
use self::leader::Stdio;
use self::protocol::{Ready, Spec, socket_path};

/// Largest spec in bytes: environment values and a command line at the kernel's own limits.
const MAX_SPEC: u64 = 4 << 20;
/// Wanted capacity of the program's output pipes (the kernel's default upper limit for unprivileged pipes).
const PIPE_BYTES: i32 = 1 << 20;

/// Runs a shepherd to its end: spec on standard input, one [`Ready`] line on standard output. Returns the exit code.
///
/// Must be called before the process has started any thread.
#[must_use]
pub fn run() -> i32 {
    match prepare() {
        Ok(shepherd) => {
            shepherd.run();
            0
        }
        Err(reason) => {
            say(&Ready::Refused(reason));
            1
        }
    }
}

fn say(ready: &Ready) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(&protocol::line(ready)).and_then(|()| out.flush());
}

fn prepare() -> Result<Shepherd, String> {
    let mut text = Vec::new();
    std::io::stdin()
        .lock()
        .take(MAX_SPEC)
        .read_to_end(&mut text)
        .map_err(|error| format!("the shepherd cannot read its spec: {error}"))?;
    let spec: Spec = serde_json::from_slice(&text)
        .map_err(|error| format!("the shepherd cannot read its spec: {error}"))?;
    let account = account::admit(&spec.local_user).map_err(|error| error.to_string())?;
    let program = leader::program(&spec.work, &account.shell, &spec.sftp_server)?;
    let (uid, gid) = (account.uid.as_raw(), account.gid.as_raw());
    let filter = filter::compile(spec.refusals, uid, gid).map_err(|error| error.to_string())?;
    let signals =
        own_session().map_err(|error| format!("the shepherd cannot be set up: {}", error.desc()))?;
    let listener = listen(&spec)?;
    let (stdio, ends) = open_ends(&spec, &account)
        .map_err(|error| format!("no terminal or pipes can be had: {}", error.desc()))?;
    let leader = leader::spawn(stdio, &account, &spec, &program, &filter)
        .map_err(|error| format!("no process can be started: {}", error.desc()))?;
    let ready = Ready::Leader { pid: leader.pid.as_raw().unsigned_abs(), shepherd: std::process::id() };
    say(&ready);
    detach().map_err(|error| format!("the shepherd cannot let go of its parent: {}", error.desc()))?;
    Ok(Shepherd::new(Parts { spec, uid: account.uid, leader, listener, signals, ends }))
}

/// The shepherd's ends of the program's input and outputs.
#[derive(Debug)]
pub(crate) struct Ends {
    /// Input; a terminal's master, or a pipe.
    pub(crate) input: OwnedFd,
    /// Standard output, or all of a terminal's output.
    pub(crate) output: OwnedFd,
    /// Standard error, if it is apart.
    pub(crate) error: Option<OwnedFd>,
}

/// A session of its own, so no terminal's or service's end reaches it; signals that matter by descriptor.
fn own_session() -> nix::Result<SignalFd> {
    // Fails only for a group leader, which already stands alone.
    let _ = setsid();
    let _ = std::env::set_current_dir("/");
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.add(Signal::SIGTERM);
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

fn listen(spec: &Spec) -> Result<UnixListener, String> {
    let path = socket_path(&spec.directory);
    let fail = |error: std::io::Error| format!("the shepherd cannot listen on {}: {error}", path.display());
    let listener = UnixListener::bind(&path).map_err(fail)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    Ok(listener)
}

fn open_ends(spec: &Spec, account: &Account) -> nix::Result<(Stdio, Ends)> {
    let Some(pty) = &spec.pty else { return open_pipes(account) };
    let terminal = terminal::open(pty, account.uid, account.gid)?;
    io::set_nonblocking(&terminal.master)?;
    let input = terminal.master.try_clone().map_err(|_| nix::Error::EMFILE)?;
    let ends = Ends { input, output: terminal.master, error: None };
    Ok((Stdio::Terminal(terminal.slave, terminal.name), ends))
}

fn open_pipes(account: &Account) -> nix::Result<(Stdio, Ends)> {
    let (input_read, input) = pipe2(OFlag::O_CLOEXEC)?;
    let (output, output_write) = pipe2(OFlag::O_CLOEXEC)?;
    let (error, error_write) = pipe2(OFlag::O_CLOEXEC)?;
    // Fewer wake-ups; refused by the kernel when the user's pipe pages are used up, and then smaller is fine.
    let _ = fcntl(&output, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    let _ = fcntl(&input, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    for fd in [&input, &output, &error] {
        io::set_nonblocking(fd)?;
    }
    for fd in [&input_read, &output_write, &error_write] {
        // So that the program may open /dev/stdin, /dev/stdout and /dev/stderr by name.
        fchown(fd, Some(account.uid), Some(account.gid))?;
    }
    Ok((Stdio::Pipes(input_read, output_write, error_write), Ends { input, output, error: Some(error) }))
}

/// Standard input, output and error go to /dev/null: the sensor sees the end of the ready line and may go away.
fn detach() -> nix::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null").map_err(|_| nix::Error::ENOENT)?;
    dup2_stdin(null.as_fd())?;
    dup2_stdout(null.as_fd())?;
    dup2_stderr(null.as_fd())
}
