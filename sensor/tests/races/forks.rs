//! Forks: tags are written while the process forks in a storm, and parents die while their children are being made.
#![expect(unsafe_code, reason = "fork and clone without exec, and memory that processes share")]

use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::addresses::{Listener, deny_ports};
use crate::host::{Host, eventually};
use crate::racer::{Racer, Score};
use crate::{report, wanted};

/// Threads that fork at once.
const THREADS: usize = 2;

/// Counters that test and racers share, in a mapped file.
pub(crate) struct Shared(*mut AtomicU64);

// SAFETY: only atomics, in a mapping that stays until the process ends.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// 1: the tag is there.
    const TAGGED: usize = 0;
    /// 1: the storm shall end.
    pub(crate) const STOP: usize = 1;
    /// Forks begun while the tag was there.
    const TRIES: usize = 2;
    /// Forks that the bomb has tried.
    pub(crate) const FORKS: usize = 4;
    /// Children that have tried.
    const TRIED: usize = 3;
    /// From here one for each thread: forks done.
    const DONE: usize = 8;

    pub(crate) fn open(path: &Path) -> Self {
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(path).expect("open");
        file.set_len(4096).expect("length");
        // SAFETY: a new mapping of a file of that length.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED, "map");
        Self(start.cast())
    }

    fn at(&self, index: usize) -> &AtomicU64 {
        assert!(index < 512);
        // SAFETY: within the page; aligned; never unmapped.
        unsafe { &*self.0.add(index) }
    }

    pub(crate) fn get(&self, index: usize) -> u64 {
        self.at(index).load(Ordering::SeqCst)
    }

    pub(crate) fn set(&self, index: usize, value: u64) {
        self.at(index).store(value, Ordering::SeqCst);
    }

    /// Waits until every thread of the storm has ended `forks` more forks than now.
    fn wait_for_forks(&self, forks: u64) {
        let before: [u64; THREADS] = std::array::from_fn(|thread| self.get(Self::DONE + thread));
        let started = std::time::Instant::now();
        while (0..THREADS).any(|thread| self.get(Self::DONE + thread) < before[thread] + forks) {
            assert!(started.elapsed().as_secs() < 30, "the storm is over");
            std::thread::yield_now();
        }
    }
}

#[tokio::test]
async fn a_tag_that_is_written_in_a_storm_of_forks() {
    let host = Host::start();
    let (before, after) = (Listener::start(), Listener::start());
    host.session(1, &deny_ports(&[before.port, after.port]));
    let shared = Shared::open(&host.file("shared"));
    let mut racer = Racer::start(&format!("storm {} {}", before.port, after.port), host.folder.path());
    racer.release();
    let mut flips = 0;
    while flips < wanted() {
        host.kernel.tag(racer.pid(), 1, 1).expect("tag");
        shared.set(Shared::TAGGED, 1);
        // The fork that each thread is in may have begun before; the next has not.
        shared.wait_for_forks(2);
        shared.set(Shared::TAGGED, 0);
        shared.wait_for_forks(1);
        host.kernel.untag(racer.pid()).expect("untag");
        flips += 1;
    }
    shared.set(Shared::STOP, 1);
    let score = racer.score();
    let tries = shared.get(Shared::TRIES);
    assert!(tries >= flips, "{tries} forks with a tag in {flips} flips");
    assert_eq!(after.heard(), 0, "children of a tagged process acted without a tag, in {tries} forks");
    let control = before.heard();
    assert!(control > 0, "children of an untagged process reach the port");
    report(&format!("fork while the tag is written ({flips} times)"), tries, control, score.calls - tries);
}

/// Forks in threads until it is told to stop: each child tries to send a datagram, to the second port if the tag was there
/// before the fork began.
pub(crate) fn storm(words: &[&str]) -> Score {
    let shared = Shared::open(Path::new("shared"));
    let ports = [1, 2].map(|at| words[at].parse::<u16>().expect("a port"));
    let socket = UdpSocket::bind("127.0.0.1:0").expect("socket");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (shared, socket) = (&shared, &socket);
            scope.spawn(move || {
                while shared.get(Shared::STOP) == 0 {
                    let tagged = shared.get(Shared::TAGGED) != 0;
                    let child = Child {
                        socket: socket.as_raw_fd(),
                        address: address(ports[usize::from(tagged)]),
                        shared,
                    };
                    wait_for(if shared.get(Shared::DONE + thread) % 2 == 0 {
                        child.fork()
                    } else {
                        child.clone()
                    });
                    if tagged {
                        shared.at(Shared::TRIES).fetch_add(1, Ordering::SeqCst);
                    }
                    shared.at(Shared::DONE + thread).fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    let calls = (0..THREADS).map(|thread| shared.get(Shared::DONE + thread)).sum();
    Score { calls, flipped: 0 }
}

#[tokio::test]
async fn children_of_parents_that_die() {
    let host = Host::start();
    let port = Listener::start();
    host.session(1, &deny_ports(&[port.port]));
    let run = |name: &str, enough: u64, tagged: bool| {
        let shared = Shared::open(&host.file(name));
        let racer = Racer::start(&format!("orphans {name} {} {enough}", port.port), host.folder.path());
        if tagged {
            host.kernel.tag(racer.pid(), 1, 1).expect("tag");
        }
        let score = racer.go();
        assert_eq!(shared.get(Shared::TRIED), score.calls, "every child has tried");
        score.calls
    };
    let control = run("control", 500, false);
    let heard = port.heard();
    assert!(heard > 0, "without a session nothing arrived");
    let tries = run("shared", wanted(), true);
    assert_eq!(port.heard(), heard, "orphans acted without a tag, in {tries} tries");
    // Each tag was counted once.
    host.all_gone();
    report("fork while parents die", tries, heard, control);
}

/// Forks of one round's process.
const ROUND: u64 = 100;

/// Round after round: a process whose first thread ends while its second forks; each child forks and ends at once; the
/// grandchild tries to send a datagram.
pub(crate) fn orphans(words: &[&str]) -> Score {
    let shared = Shared::open(Path::new(words[1]));
    let port = words[2].parse().expect("a port");
    let enough: u64 = words[3].parse().expect("a number");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("socket");
    // Orphans come here, to be waited for.
    // SAFETY: takes numbers.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
    let child = Child { socket: socket.as_raw_fd(), address: address(port), shared: &shared };
    let mut calls = 0;
    while calls < enough {
        // SAFETY: the child uses only its own memory, and nothing that another thread could have left locked.
        match unsafe { libc::fork() } {
            0 => round(&child),
            pid => assert!(pid > 0, "fork"),
        }
        calls += ROUND;
        eventually("the round's children have tried", || {
            // SAFETY: no status is asked for.
            while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
            shared.get(Shared::TRIED) == calls
        });
    }
    Score { calls, flipped: 0 }
}

/// The round's process. Its first thread ends; its second goes on.
fn round(child: &Child<'_>) -> ! {
    let stack = Stack::new();
    let flags =
        libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_FS | libc::CLONE_FILES;
    // SAFETY: a stack of its own that is never freed; `forks` does not return; the argument lives on the first thread's
    // stack, which stays mapped when only that thread ends.
    unsafe {
        libc::clone(forks, stack.top(), flags, std::ptr::from_ref(child).cast_mut().cast());
        std::mem::forget(stack);
        // Only this thread: `_exit` would end all.
        libc::syscall(libc::SYS_exit, 0);
    }
    unreachable!()
}

extern "C" fn forks(child: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `round` passes a `Child` that stays alive.
    let child = unsafe { &*child.cast::<Child<'_>>() };
    for _ in 0..ROUND {
        // SAFETY: system calls only, no locks, no allocation (the C library's `fork` would want its thread's memory).
        unsafe {
            if libc::syscall(libc::SYS_fork) == 0 {
                if libc::syscall(libc::SYS_fork) == 0 {
                    child.act();
                }
                libc::syscall(libc::SYS_exit_group, 0);
            }
        }
    }
    // SAFETY: ends the process.
    unsafe { libc::syscall(libc::SYS_exit_group, 0) };
    0
}

/// What a child does.
struct Child<'s> {
    socket: i32,
    address: libc::sockaddr_in,
    shared: &'s Shared,
}

impl Child<'_> {
    /// System calls only: this runs in forks of a process with several threads.
    fn act(&self) {
        // SAFETY: data and address are valid for the lengths given.
        unsafe {
            libc::syscall(
                libc::SYS_sendto,
                self.socket,
                c"x".as_ptr(),
                1usize,
                0,
                &raw const self.address,
                size_of_val(&self.address),
            );
        }
        self.shared.at(Shared::TRIED).fetch_add(1, Ordering::SeqCst);
    }

    /// A child with its own memory.
    fn fork(&self) -> i32 {
        // SAFETY: the child makes system calls only.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            self.act();
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) };
        }
        pid
    }

    /// A child with this process's memory, which goes on only when the child has ended.
    fn clone(&self) -> i32 {
        extern "C" fn act(child: *mut libc::c_void) -> libc::c_int {
            // SAFETY: `clone` passes itself and waits.
            unsafe { &*child.cast::<Child<'_>>() }.act();
            0
        }
        let stack = Stack::new();
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: a stack of its own, which lives until the child has ended.
        unsafe { libc::clone(act, stack.top(), flags, std::ptr::from_ref(self).cast_mut().cast()) }
    }
}

/// A stack for `clone`.
struct Stack(Vec<u128>);

impl Stack {
    fn new() -> Self {
        Self(vec![0; 4096])
    }

    fn top(&self) -> *mut libc::c_void {
        self.0.as_ptr_range().end.cast_mut().cast()
    }
}

/// One child, which does nothing.
pub(crate) fn fork_and_wait() {
    // SAFETY: the child ends at once.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    wait_for(pid);
}

/// Children whose children fork, until the test says stop; this process only waits for them, and begins anew when there are
/// none left.
pub(crate) fn bomb(shared: &Shared) {
    // SAFETY: takes numbers. Orphans come here, to be waited for.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
    while shared.get(Shared::STOP) == 0 {
        // SAFETY: the children make system calls and use shared memory only; no status is asked for.
        unsafe {
            if libc::fork() == 0 {
                while shared.get(Shared::STOP) == 0 {
                    shared.at(Shared::FORKS).fetch_add(1, Ordering::SeqCst);
                    libc::syscall(libc::SYS_fork);
                }
                libc::syscall(libc::SYS_exit_group, 0);
            }
            while libc::waitpid(-1, std::ptr::null_mut(), 0) > 0 {}
        }
        // Until nothing is left of them.
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

fn wait_for(pid: i32) {
    assert!(pid > 0, "fork");
    // SAFETY: no status is asked for.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
}

fn address(port: u16) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(std::net::Ipv4Addr::LOCALHOST).to_be() },
        sin_zero: [0; 8],
    }
}
