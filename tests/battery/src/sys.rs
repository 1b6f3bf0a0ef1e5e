//! System calls as an attacker makes them: by number, with whatever arguments, past the libraries.
#![expect(unsafe_code, reason = "what is tried here is what safe interfaces do not offer")]

use std::ffi::CString;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set when a process that this one started was killed by SIGKILL: a refusal may look like that.
static SAW_KILL: AtomicBool = AtomicBool::new(false);

/// Whether something that this process started was killed.
pub(crate) fn saw_kill() -> bool {
    SAW_KILL.load(Ordering::Relaxed)
}

/// A system call. Pointers among the arguments must be good for what the call does with them; only processes that a
/// technique runs in call this, and such a process that gets it wrong harms itself.
pub(crate) fn call(number: i64, arguments: &[usize]) -> Result<usize> {
    let argument = |at: usize| arguments.get(at).copied().unwrap_or(0);
    // SAFETY: see above; the kernel checks every pointer it is given.
    let result = unsafe {
        libc::syscall(number, argument(0), argument(1), argument(2), argument(3), argument(4), argument(5))
    };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result as usize) }
}

/// The same, where a new descriptor comes back.
pub(crate) fn call_fd(number: i64, arguments: &[usize]) -> Result<OwnedFd> {
    let fd = call(number, arguments)?;
    // SAFETY: just made, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A path as the kernel wants it.
pub(crate) fn c_path(path: impl AsRef<Path>) -> CString {
    CString::new(path.as_ref().as_os_str().as_bytes()).unwrap_or_default()
}

/// Address of a value, for an argument.
pub(crate) fn at<T: ?Sized>(value: &T) -> usize {
    std::ptr::from_ref(value).cast::<u8>() as usize
}

/// Address of a terminated text.
pub(crate) fn text(value: &CString) -> usize {
    value.as_ptr() as usize
}

/// A descriptor as an argument.
pub(crate) fn fd(value: &impl std::os::fd::AsRawFd) -> usize {
    value.as_raw_fd() as usize
}

/// `AT_FDCWD`
pub(crate) const HERE: usize = libc::AT_FDCWD as usize;

/// `openat(AT_FDCWD, …)`
pub(crate) fn open(path: impl AsRef<Path>, flags: i32) -> Result<OwnedFd> {
    open_at(HERE, path, flags)
}

/// `openat`, mode 0644.
pub(crate) fn open_at(folder: usize, path: impl AsRef<Path>, flags: i32) -> Result<OwnedFd> {
    let path = c_path(path);
    call_fd(libc::SYS_openat, &[folder, text(&path), flags as usize, 0o644])
}

/// Ends this process at once.
pub(crate) fn exit(status: i32) -> ! {
    // SAFETY: ends the process; nothing of it is used afterwards.
    unsafe { libc::_exit(status) }
}

/// `None` in the child.
pub(crate) fn fork() -> Result<Option<i32>> {
    // SAFETY: the process has one thread where this is called, or the child goes on to exec or exit.
    match unsafe { libc::fork() } {
        -1 => Err(Error::last_os_error()),
        0 => Ok(None),
        child => Ok(Some(child)),
    }
}

/// Waits for a child: `Ok` if it ended with status 0.
pub(crate) fn wait(child: i32) -> Result<()> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is there for the kernel to write.
        let done = unsafe { libc::waitpid(child, &raw mut status, 0) };
        if done == child {
            break;
        }
        let error = Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        if signal == libc::SIGKILL {
            SAW_KILL.store(true, Ordering::Relaxed);
        }
        return Err(Error::other(format!("killed by signal {signal}")));
    }
    match libc::WEXITSTATUS(status) {
        0 => Ok(()),
        code => Err(Error::other(format!("status {code}"))),
    }
}

/// Does something in a child process and waits for it. The child's own children count as its own.
pub(crate) fn in_child(action: impl FnOnce() -> Result<()>) -> Result<()> {
    match fork()? {
        Some(child) => wait(child),
        None => match action() {
            Ok(()) => exit(0),
            Err(error) => {
                eprintln!("in a child: {error}");
                exit(if saw_kill() { 137 } else { error.raw_os_error().unwrap_or(200) })
            }
        },
    }
}

/// `execve` with these arguments and no environment but PATH. Comes back only if it failed.
pub(crate) fn exec(path: impl AsRef<Path>, arguments: &[&str]) -> Error {
    exec_at(HERE, path, arguments, 0)
}

/// `execveat`.
pub(crate) fn exec_at(folder: usize, path: impl AsRef<Path>, arguments: &[&str], flags: i32) -> Error {
    let path = c_path(path);
    let arguments: Vec<CString> =
        arguments.iter().map(|word| CString::new(*word).unwrap_or_default()).collect();
    let mut pointers: Vec<usize> = arguments.iter().map(text).collect();
    pointers.push(0);
    let environment = [c"PATH=/usr/bin:/bin:/usr/sbin:/sbin".as_ptr() as usize, 0];
    let outcome = call(
        libc::SYS_execveat,
        &[folder, text(&path), pointers.as_ptr() as usize, environment.as_ptr() as usize, flags as usize],
    );
    outcome.err().unwrap_or_else(|| Error::other("execve came back"))
}

/// Runs a program in a child and waits for it.
pub(crate) fn run(path: impl AsRef<Path>, arguments: &[&str]) -> Result<()> {
    in_child(|| Err(exec(path, arguments)))
}

/// Runs a shell script.
pub(crate) fn sh(script: &str) -> Result<()> {
    run("/bin/sh", &["sh", "-c", script])
}

/// Runs a perl script.
pub(crate) fn perl(script: &str) -> Result<()> {
    run("/usr/bin/perl", &["perl", "-e", script])
}

/// `mount`; empty texts stand for none.
pub(crate) fn mount(
    from: impl AsRef<Path>,
    on: impl AsRef<Path>,
    kind: &str,
    flags: u64,
    data: &str,
) -> Result<()> {
    let (from, on) = (c_path(from), c_path(on));
    let kind = CString::new(kind).unwrap_or_default();
    let data = CString::new(data).unwrap_or_default();
    call(libc::SYS_mount, &[text(&from), text(&on), text(&kind), flags as usize, text(&data)]).map(drop)
}

/// Leaves the host's mounts alone from here on.
pub(crate) fn own_mounts() -> Result<()> {
    call(libc::SYS_unshare, &[libc::CLONE_NEWNS as usize])?;
    mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE, "")
}

/// A pipe: read end, write end.
pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0i32; 2];
    call(libc::SYS_pipe2, &[ends.as_mut_ptr() as usize, libc::O_CLOEXEC as usize])?;
    // SAFETY: just made, and nobody else's.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// A new mapping; the file is `None` for memory of nobody's.
pub(crate) fn map(length: usize, protection: i32, flags: i32, file: Option<&OwnedFd>) -> Result<*mut u8> {
    let file = file.map_or(-1, |file| file.as_raw_fd());
    let start =
        call(libc::SYS_mmap, &[0, length, protection as usize, flags as usize, file as isize as usize, 0])?;
    Ok(start as *mut u8)
}

/// Copies bytes into a mapping that has room for them.
pub(crate) fn put(start: *mut u8, bytes: &[u8]) {
    // SAFETY: callers pass mappings of their own that are writable and as long.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len()) }
}

/// A function in machine code that takes nothing and returns 42.
pub(crate) const CODE: [u8; 6] = [0xb8, 42, 0, 0, 0, 0xc3];

/// Calls [`CODE`] at an address.
pub(crate) fn call_code(start: *mut u8) -> Result<()> {
    // SAFETY: callers have put [`CODE`] there, executable; a process that may not execute it dies of it, alone.
    let returned = unsafe { std::mem::transmute::<*mut u8, extern "C" fn() -> i32>(start)() };
    if returned == 42 { Ok(()) } else { Err(Error::other("wrong code")) }
}

/// Opens a library as a program does that loads plug-ins.
pub(crate) fn dlopen(path: impl AsRef<Path>) -> Result<()> {
    let path = c_path(path);
    // SAFETY: a terminated text; the library is one of the machine's own, copied.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    if handle.is_null() { Err(Error::other("dlopen failed")) } else { Ok(()) }
}

/// Serves the first touch of a page by handing in `contents` (userfaultfd). The page's address comes back: whoever reads it before
/// the kernel itself faults it in, finds nothing.
pub(crate) fn served_page(contents: Vec<u8>) -> Result<*mut u8> {
    // linux/userfaultfd.h: UFFDIO_API, UFFDIO_REGISTER, UFFDIO_COPY.
    const API: usize = 0xc018_aa3f;
    const REGISTER: usize = 0xc020_aa00;
    const COPY: usize = 0xc028_aa03;
    let uffd = call_fd(libc::SYS_userfaultfd, &[libc::O_CLOEXEC as usize])?;
    let api = [0xaau64, 0, 0];
    call(libc::SYS_ioctl, &[fd(&uffd), API, at(&api)])?;
    let page = map(4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)?;
    let register = [page as u64, 4096, 1, 0];
    call(libc::SYS_ioctl, &[fd(&uffd), REGISTER, at(&register)])?;
    let target = page as u64;
    std::thread::spawn(move || {
        let mut whole = contents;
        whole.resize(4096, 0);
        // The message: `struct uffd_msg`, 32 bytes. It comes when somebody touches the page.
        let mut message = [0u8; 32];
        if call(libc::SYS_read, &[fd(&uffd), message.as_mut_ptr() as usize, 32]).is_ok() {
            let copy = [target, whole.as_ptr() as u64, 4096, 0, 0];
            let _ = call(libc::SYS_ioctl, &[fd(&uffd), COPY, at(&copy)]);
        }
    });
    Ok(page)
}

/// A message with nothing in it.
pub(crate) fn zeroed_message() -> libc::msghdr {
    // SAFETY: integers and pointers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// A control message with one descriptor (SCM_RIGHTS): `struct cmsghdr`, then the number.
fn with_descriptor<T>(descriptor: i32, then: impl FnOnce(&libc::msghdr, &[u32; 6]) -> T) -> T {
    let control = [20, 0, libc::SOL_SOCKET as u32, libc::SCM_RIGHTS as u32, descriptor as u32, 0];
    let byte = [0u8];
    let part = libc::iovec { iov_base: at(&byte) as *mut _, iov_len: 1 };
    let mut message = zeroed_message();
    message.msg_iov = (&raw const part).cast_mut();
    message.msg_iovlen = 1;
    message.msg_control = at(&control) as *mut _;
    message.msg_controllen = 24;
    then(&message, &control)
}

/// Passes a descriptor through a Unix socket.
pub(crate) fn send_descriptor(socket: usize, passed: &impl std::os::fd::AsRawFd) -> Result<()> {
    with_descriptor(passed.as_raw_fd(), |message, _| {
        call(libc::SYS_sendmsg, &[socket, at(message), 0]).map(drop)
    })
}

/// Takes one.
pub(crate) fn receive_descriptor(socket: usize) -> Result<OwnedFd> {
    with_descriptor(-1, |message, control| {
        call(libc::SYS_recvmsg, &[socket, at(message), 0])?;
        // SAFETY: the kernel wrote there; the number is that of a descriptor it just made, if it made one.
        let received = unsafe { std::ptr::from_ref(&control[4]).read_volatile() } as i32;
        if received < 0 {
            return Err(Error::other("no descriptor came"));
        }
        // SAFETY: just made, and nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(received) })
    })
}

/// What the kernel wrote to a value that was handed to it by address only.
pub(crate) fn written<T: Copy>(value: &T) -> T {
    // SAFETY: a reference is readable; volatile since the compiler does not know that somebody wrote there.
    unsafe { std::ptr::from_ref(value).read_volatile() }
}

/// Bytes at an address that 32-bit calls can be given.
pub(crate) fn low(bytes: &[u8]) -> Result<u32> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | 0x40;
    let start = map(bytes.len().max(4096), protection, flags, None)?;
    put(start, bytes);
    u32::try_from(start as usize).map_err(Error::other)
}

/// A system call as 32-bit programs make it: another table of numbers, another way into the kernel. See [`call`].
#[cfg(target_arch = "x86_64")]
pub(crate) fn call_32(number: u32, arguments: [u32; 4]) -> Result<usize> {
    let [first, second, third, fourth] = arguments;
    let mut result = number;
    // SAFETY: as in `call`. The compiler keeps `rbx` for itself, so it gets its value back.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {first}", "int 0x80", "xchg rbx, {first}",
            first = inout(reg) u64::from(first) => _,
            inout("eax") result,
            in("ecx") second, in("edx") third, in("esi") fourth,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    let result = result as i32;
    if result < 0 { Err(Error::from_raw_os_error(-result)) } else { Ok(result as usize) }
}

/// There is no such way elsewhere.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn call_32(_: u32, _: [u32; 4]) -> Result<usize> {
    Err(Error::from_raw_os_error(libc::ENOSYS))
}
