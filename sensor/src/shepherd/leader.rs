//! The leader: the first process of a channel. It is forked, waits to be tagged, becomes the local user, executes.
//!
//! Unsafe, two places: `fork` (the shepherd has one thread, so the child may do everything a process may) and
//! `close_range`, of which there is no safe wrapper. The child never returns from [`spawn`]: it executes or exits.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{getrlimit, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{ForkResult, Pid, chdir, execve, fork, pipe2, setgid, setgroups, setsid, setuid};

use super::account::{Account, environment};
use super::filter::{self, Filter};
use super::protocol::{Spec, Work};

/// Exit status of a leader that could not execute its program.
pub(crate) const CANNOT_EXECUTE: i32 = 126;
/// A leader that has not come to the gate after so long (its host's files do not answer) is tagged on its way there; milliseconds.
const READY_WITHIN: u16 = 10_000;

/// The leader's ends of its standard input, output and error.
#[derive(Debug)]
pub(crate) enum Stdio {
    /// The slave side of a terminal, and its name.
    Terminal(OwnedFd, String),
    /// Input, output, error.
    Pipes(OwnedFd, OwnedFd, OwnedFd),
}

/// A forked leader.
#[derive(Debug)]
pub(crate) struct Leader {
    /// Its process id; also its process group and session.
    pub(crate) pid: Pid,
    /// Written to: it runs. Closed: it ends without having run anything.
    pub(crate) gate: Option<File>,
    /// What went wrong between "go" and execution; empty and at its end once it executes.
    pub(crate) trouble: OwnedFd,
}

/// What to execute: file and arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    file: CString,
    args: Vec<CString>,
}

/// The program that a channel's work comes to.
///
/// # Errors
/// There is no such program; the text says why.
pub(crate) fn program(work: &Work, shell: &Path, sftp_server: &[PathBuf]) -> Result<Program, String> {
    let c = |bytes: &[u8]| CString::new(bytes).map_err(|_| "the command holds a zero byte".to_owned());
    let base = shell.file_name().unwrap_or(OsStr::new("sh")).as_bytes();
    match work {
        Work::Shell => {
            let arg0 = [b"-", base].concat();
            Ok(Program { file: c(shell.as_os_str().as_bytes())?, args: vec![c(&arg0)?] })
        }
        Work::Command(line) => {
            let args = vec![c(base)?, c(b"-c")?, c(line)?];
            Ok(Program { file: c(shell.as_os_str().as_bytes())?, args })
        }
        Work::Subsystem(name) if name == "sftp" => {
            let Some(path) = sftp_server.iter().find(|path| path.is_file()) else {
                return Err("this host has no sftp-server; install openssh-sftp-server, or set `sftp_server` in the sensor's configuration".into());
            };
            let file = c(path.as_os_str().as_bytes())?;
            Ok(Program { args: vec![file.clone()], file })
        }
        Work::Subsystem(name) => Err(format!("there is no subsystem `{name}`")),
    }
}

/// Where the leader waits until it is tagged.
struct Gate {
    /// Has something to read when it opens; closed: the leader is to end.
    opens: File,
    /// Closed by the leader when it is there.
    reached: OwnedFd,
}

/// Forks the leader. It has its own session and, for a terminal, its controlling terminal, and waits at the gate: when this
/// returns, all is done that is not to be judged as the session's act, and it can be tagged.
///
/// # Errors
/// The kernel refuses a pipe or the fork.
pub(crate) fn spawn(
    stdio: Stdio,
    account: &Account,
    spec: &Spec,
    program: &Program,
    filter: &Filter,
) -> nix::Result<Leader> {
    let (gate_read, gate_write) = pipe2(OFlag::O_CLOEXEC)?;
    let (trouble_read, trouble_write) = pipe2(OFlag::O_CLOEXEC)?;
    let (ready_read, ready_write) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: this process has exactly one thread (the shepherd never starts another), so the child is a
    // complete copy in which allocation and locks are in a consistent state.
    #[allow(unsafe_code, reason = "fork has no safe form")]
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(ready_write);
            // Closed at the gate, or by its end.
            let mut ready = [PollFd::new(ready_read.as_fd(), PollFlags::POLLIN)];
            while poll(&mut ready, PollTimeout::from(READY_WITHIN)) == Err(nix::errno::Errno::EINTR) {}
            Ok(Leader { pid: child, gate: Some(File::from(gate_write)), trouble: trouble_read })
        }
        ForkResult::Child => {
            drop((gate_write, trouble_read, ready_read));
            let mut trouble = File::from(trouble_write);
            let gate = Gate { opens: File::from(gate_read), reached: ready_write };
            let error = become_program(&stdio, gate, &trouble, account, spec, program, filter);
            if let Err(error) = error {
                let _ = trouble.write_all(error.as_bytes());
            }
            // No destructors and no exit handlers of the copied process.
            #[allow(unsafe_code, reason = "_exit has no safe form")]
            // SAFETY: `_exit` ends this process and touches no memory.
            unsafe {
                libc::_exit(CANNOT_EXECUTE)
            }
        }
    }
}

/// In the child. Returns only if something failed, or if the gate was closed.
fn become_program(
    stdio: &Stdio,
    mut gate: Gate,
    trouble: &File,
    account: &Account,
    spec: &Spec,
    program: &Program,
    filter: &Filter,
) -> Result<(), String> {
    let failed = |what: &'static str| move |error: nix::Error| format!("{what}: {}", error.desc());
    reset_signals().map_err(failed("signals cannot be reset"))?;
    setsid().map_err(failed("no new session"))?;
    let tty = match stdio {
        Stdio::Terminal(slave, name) => {
            take_terminal(slave).map_err(failed("the terminal cannot be taken"))?;
            Some(name.as_str())
        }
        Stdio::Pipes(..) => None,
    };
    // Everything that reads the host's files comes before the gate, so that it is ready when it opens.
    let env = environment(account, spec, tty);
    let env: Vec<CString> = env
        .iter()
        .filter_map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok())
        .collect();
    // A session's programs are not spared as the sensor is. Behind the gate this would be the session's act, for policy to
    // judge.
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    drop(gate.reached);
    if gate.opens.read(&mut [0u8; 1]).unwrap_or(0) == 0 {
        return Ok(());
    }
    drop(gate.opens);
    // It may be absent or fixed already, which holds no session back, as in pam_loginuid's default.
    let _ = std::fs::write("/proc/self/loginuid", account.uid.to_string());
    for limit in &account.limits {
        let (soft, hard) = getrlimit(limit.resource).map_err(failed("limits cannot be read"))?;
        let hard = limit.hard.unwrap_or(hard);
        let soft = limit.soft.unwrap_or(soft).min(hard);
        setrlimit(limit.resource, soft, hard).map_err(failed("a limit of limits.conf cannot be set"))?;
    }
    // While it is root: so none of it needs `no_new_privs`, with which sudo would not work.
    filter::give_up(spec.refusals, filter)?;
    if nix::unistd::Uid::effective().is_root() {
        setgroups(&account.groups).map_err(failed("groups cannot be set"))?;
        setgid(account.gid).map_err(failed("the group cannot be set"))?;
        setuid(account.uid).map_err(failed("the user cannot be set"))?;
        if !account.uid.is_root() && setuid(nix::unistd::Uid::from_raw(0)).is_ok() {
            return Err("the user was set, but root could be had back".into());
        }
    }
    filter.put_on_as_user().map_err(|error| error.to_string())?;
    umask(Mode::from_bits_truncate(account.umask));
    if chdir(&account.home).is_err() {
        chdir("/").map_err(failed("neither the home directory nor / can be entered"))?;
    }
    install_stdio(stdio).map_err(failed("standard input and output cannot be set"))?;
    close_others(trouble)?;
    let error = match execve(&program.file, &program.args, &env) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let file = program.file.to_string_lossy();
    Err(match error {
        nix::Error::EPERM => format!("{file} may not be run: policy does not permit it"),
        error => format!("{file} cannot be run: {}", error.desc()),
    })
}

fn take_terminal(slave: &OwnedFd) -> nix::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer argument, and the descriptor is open: it is borrowed from its owner.
    #[allow(unsafe_code, reason = "no safe wrapper of TIOCSCTTY")]
    let result = unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) };
    nix::errno::Errno::result(result).map(drop)
}

fn install_stdio(stdio: &Stdio) -> nix::Result<()> {
    let (input, output, error) = match stdio {
        Stdio::Terminal(slave, _) => (slave, slave, slave),
        Stdio::Pipes(input, output, error) => (input, output, error),
    };
    // All of them are above 2: the shepherd keeps 0, 1 and 2 open on /dev/null.
    nix::unistd::dup2_stdin(input)?;
    nix::unistd::dup2_stdout(output)?;
    nix::unistd::dup2_stderr(error)
}

/// Closes every descriptor but 0, 1, 2 and the trouble pipe (which closes itself at execution).
fn close_others(trouble: &File) -> Result<(), String> {
    let keep = trouble.as_raw_fd().unsigned_abs();
    for (first, last) in [(3, keep.saturating_sub(1)), (keep + 1, u32::MAX)] {
        if first > last {
            continue;
        }
        // SAFETY: CLOEXEC marks descriptors and closes none, so no owned descriptor of this process becomes invalid
        // before execve or `_exit` ends its owner.
        #[allow(unsafe_code, reason = "no safe wrapper of close_range")]
        let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
        if result != 0 {
            // Before 5.11 there is no CLOSE_RANGE_CLOEXEC: mark them one by one.
            return mark_others();
        }
    }
    Ok(())
}

fn mark_others() -> Result<(), String> {
    let fail = |error: std::io::Error| format!("open files cannot be listed: {error}");
    for entry in std::fs::read_dir("/proc/self/fd").map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse::<i32>().ok()).filter(|fd| *fd > 2) else {
            continue;
        };
        // SAFETY: F_SETFD on a number is harmless: it fails with EBADF if it is not open (the listing's own
        // descriptor is open here); nothing is closed.
        #[allow(unsafe_code, reason = "the descriptor is known by number only")]
        let _ = nix::fcntl::fcntl(
            unsafe { BorrowedFd::borrow_raw(fd) },
            nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
        );
    }
    Ok(())
}

fn reset_signals() -> nix::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default disposition runs no code of ours.
        #[allow(unsafe_code, reason = "sigaction is unsafe for the sake of handlers")]
        unsafe {
            sigaction(signal, &default)?;
        }
    }
    SigSet::empty().thread_set_mask()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_as_sshd_starts_them() {
        let shell = Path::new("/bin/bash");
        let text = |program: Program| {
            let args: Vec<String> = program.args.iter().map(|a| a.to_string_lossy().into_owned()).collect();
            (program.file.to_string_lossy().into_owned(), args.join("|"))
        };
        let of = |work| program(&work, shell, &["/no/such".into(), "/bin/sh".into()]).map(text);
        assert_eq!(of(Work::Shell), Ok(("/bin/bash".into(), "-bash".into())));
        assert_eq!(of(Work::Command(b"ls -l".to_vec())), Ok(("/bin/bash".into(), "bash|-c|ls -l".into())));
        assert_eq!(of(Work::Subsystem("sftp".into())), Ok(("/bin/sh".into(), "/bin/sh".into())));
        assert!(of(Work::Subsystem("netconf".into())).is_err());
        assert!(of(Work::Command(b"a\0b".to_vec())).is_err());
        assert!(program(&Work::Subsystem("sftp".into()), shell, &[]).is_err());
    }
}
