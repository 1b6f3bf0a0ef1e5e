//! More of the helper's small hostile programs: what they do to other processes, to the kernel, and over sockets.
#![expect(unsafe_code, reason = "system calls that no library here wraps")]

use std::ffi::CString;
use std::io::{Error, Read as _, Result, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram, UnixListener, UnixStream};

fn done(status: impl Into<i64>) -> Result<i64> {
    let status = status.into();
    if status < 0 { Err(Error::last_os_error()) } else { Ok(status) }
}

/// A system call with up to six numbers or addresses.
fn call<const N: usize>(number: libc::c_long, arguments: [usize; N]) -> Result<i64> {
    let mut all = [0; 6];
    all[..N].copy_from_slice(&arguments);
    // SAFETY: each caller passes what the call wants; addresses outlive it.
    done(unsafe { libc::syscall(number, all[0], all[1], all[2], all[3], all[4], all[5]) })
}

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: just made, and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn text(path: &str) -> CString {
    CString::new(path).expect("no zero byte")
}

fn pidfd(pid: i32) -> Result<OwnedFd> {
    call(libc::SYS_pidfd_open, [pid as usize, 0]).map(owned)
}

/// Carries out one operation; `None`: there is none of that name here.
pub(crate) fn operate(words: &[&str]) -> Option<Result<()>> {
    let number = |i: usize| -> i32 { words[i].parse().expect("a number") };
    let path = |i: usize| text(words[i]);
    Some(
        match words[0] {
            "kill" => call(libc::SYS_kill, [number(1) as usize, number(2) as usize]),
            "tgkill" => call(libc::SYS_tgkill, [number(1) as usize, number(1) as usize, number(2) as usize]),
            "queue" => queue(number(1), number(2)),
            "pidfd-signal" => pidfd(number(1)).and_then(|fd| {
                call(libc::SYS_pidfd_send_signal, [fd.as_raw_fd() as usize, number(2) as usize, 0, 0])
            }),
            "own" => own(number(1), number(2)),
            "own-ex" => own_ex(number(1), number(2)),
            "ptrace" => trace(number(1)),
            "vm-write" => vm_write(number(1), words[2]),
            "proc-mem" => proc_mem(number(1), words[2]),
            "getfd" => pidfd(number(1))
                .and_then(|fd| call(libc::SYS_pidfd_getfd, [fd.as_raw_fd() as usize, number(2) as usize, 0])),
            "getfd-write" => getfd_write(number(1), number(2)),
            "nice" => call(libc::SYS_setpriority, [0, number(1) as usize, 10]),
            "affinity" => {
                let set = 1u64;
                call(libc::SYS_sched_setaffinity, [number(1) as usize, 8, (&raw const set) as usize])
            }
            "prlimit" => {
                let limit = [64u64, 64];
                call(libc::SYS_prlimit64, [number(1) as usize, 7, (&raw const limit) as usize, 0])
            }
            "ioprio" => call(libc::SYS_ioprio_set, [1, number(1) as usize, 3 << 13]),
            "mount" => mount(&path(1)),
            "bind-mount" => bind_mount(&path(1), &path(2)),
            "umount" => call(libc::SYS_umount2, [path(1).as_ptr() as usize, libc::MNT_DETACH as usize]),
            "chroot" => call(libc::SYS_chroot, [path(1).as_ptr() as usize]),
            "fsmount" => fsmount(),
            "open-tree" => open_tree(&path(1)),
            "unshare" => in_child(|| call(libc::SYS_unshare, [flags(words[1])])),
            "clone" => clone3(flags(words[1])),
            "setns" => in_child(|| setns(number(1), words[2])),
            "setuid" => call(libc::SYS_setuid, [number(1) as usize]),
            "setgid" => call(libc::SYS_setgid, [number(1) as usize]),
            "capset" => capset(),
            "delete-module" => call(
                libc::SYS_delete_module,
                [c"no_such_module".as_ptr() as usize, libc::O_NONBLOCK as usize],
            ),
            "init-module" => call(libc::SYS_init_module, [c"x".as_ptr() as usize, 1, c"".as_ptr() as usize]),
            "kexec" => call(libc::SYS_kexec_load, [0, 0, 0, 0]),
            "reboot" => call(libc::SYS_reboot, [0xfee1_dead, 672_274_793, 0, 0]),
            "clock" => set_clock(),
            "bpf-map" => bpf_map(),
            "bpf-pin" => bpf_pin(&path(1)),
            "bpf-id" => bpf_id(number(1) as u32),
            "perf" => perf(),
            "keys" => keys(),
            "sqpoll" => ring(2).map(|_| 0),
            "ring" => ring(0).map(|_| 0),
            "type" => type_into_terminal(words[1]),
            "handle" => by_handle(&path(1), words[2]),
            "receive-tcp" => receive(words[1]).and_then(|fd| write(&fd)),
            "receive-own" => receive_own(words[1].parse().expect("address")),
            "unix" => UnixStream::connect(words[1]).and_then(|mut peer| peer.write_all(b"hello")).map(|()| 0),
            "unix-name" => UnixAddress::from_abstract_name(unhex(words[1]))
                .and_then(|name| UnixStream::connect_addr(&name))
                .and_then(|mut peer| peer.write_all(b"hello"))
                .map(|()| 0),
            "unix-send" => UnixDatagram::unbound().and_then(|own| own.send_to(b"hello", words[1])).map(|_| 0),
            "unix-pair" => UnixDatagram::pair().and_then(|(one, _other)| one.send(b"hello")).map(|_| 0),
            "unix-server" => unix_server(words[1]),
            "listen" => {
                words[1].parse::<SocketAddr>().map_err(Error::other).and_then(TcpListener::bind).map(|_| 0)
            }
            "listen-udp" => {
                words[1].parse::<SocketAddr>().map_err(Error::other).and_then(UdpSocket::bind).map(|_| 0)
            }
            "listen-unbound" => socket(libc::AF_INET, libc::SOCK_STREAM)
                .and_then(|fd| call(libc::SYS_listen, [fd.as_raw_fd() as usize, 1])),
            "route" => route(words[1].parse().expect("address"), false),
            "route-message" => route(words[1].parse().expect("address"), true),
            _ => return None,
        }
        .map(drop),
    )
}

fn socket(family: i32, kind: i32) -> Result<OwnedFd> {
    call(libc::SYS_socket, [family as usize, kind as usize, 0]).map(owned)
}

/// Does it in a child, which has one thread only, as these calls want.
fn in_child(act: impl FnOnce() -> Result<i64>) -> Result<i64> {
    // SAFETY: the child makes system calls and ends.
    let child = done(unsafe { libc::fork() })?;
    if child == 0 {
        let status = act().err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
        // SAFETY: ends the child.
        unsafe { libc::_exit(status) }
    }
    let mut status = 0;
    call(libc::SYS_wait4, [child as usize, (&raw mut status) as usize, 0, 0])?;
    match libc::WEXITSTATUS(status) {
        0 => Ok(0),
        errno => Err(Error::from_raw_os_error(errno)),
    }
}

fn flags(which: &str) -> usize {
    match which {
        "user" => libc::CLONE_NEWUSER as usize,
        "mount" => libc::CLONE_NEWNS as usize,
        other => panic!("no namespace `{other}`"),
    }
}

fn queue(pid: i32, signal: i32) -> Result<i64> {
    // SAFETY: integers only.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    info.si_signo = signal;
    info.si_code = libc::SI_QUEUE;
    call(libc::SYS_rt_sigqueueinfo, [pid as usize, signal as usize, (&raw const info) as usize])
}

/// Has the kernel send the signal: by a pipe that becomes readable.
fn own(pid: i32, signal: i32) -> Result<i64> {
    asynchronous(signal, |fd| call(libc::SYS_fcntl, [fd, libc::F_SETOWN as usize, pid as usize]))
}

fn own_ex(pid: i32, signal: i32) -> Result<i64> {
    const F_SETOWN_EX: usize = 15;
    // `F_OWNER_PID`
    let owner = [1, pid];
    asynchronous(signal, |fd| call(libc::SYS_fcntl, [fd, F_SETOWN_EX, (&raw const owner) as usize]))
}

fn asynchronous(signal: i32, own: impl FnOnce(usize) -> Result<i64>) -> Result<i64> {
    let mut ends = [0; 2];
    call(libc::SYS_pipe2, [(&raw mut ends) as usize, 0])?;
    let (reader, writer) = (owned(ends[0].into()), owned(ends[1].into()));
    let fd = reader.as_raw_fd() as usize;
    const F_SETSIG: usize = 10;
    own(fd)?;
    call(libc::SYS_fcntl, [fd, F_SETSIG, signal as usize])?;
    call(libc::SYS_fcntl, [fd, libc::F_SETFL as usize, libc::O_ASYNC as usize])?;
    write(&writer)
}

fn write(fd: &OwnedFd) -> Result<i64> {
    call(libc::SYS_write, [fd.as_raw_fd() as usize, b"hello".as_ptr() as usize, 5])
}

fn trace(pid: i32) -> Result<i64> {
    const SEIZE: usize = 0x4206;
    const INTERRUPT: usize = 0x4207;
    call(libc::SYS_ptrace, [SEIZE, pid as usize, 0, 0])?;
    call(libc::SYS_ptrace, [INTERRUPT, pid as usize, 0, 0])
}

fn vm_write(pid: i32, address: &str) -> Result<i64> {
    let bytes = *b"written";
    let local = [bytes.as_ptr() as usize, bytes.len()];
    let remote = [usize::from_str_radix(address, 16).expect("an address"), bytes.len()];
    call(
        libc::SYS_process_vm_writev,
        [pid as usize, (&raw const local) as usize, 1, (&raw const remote) as usize, 1, 0],
    )
}

fn proc_mem(pid: i32, address: &str) -> Result<i64> {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/mem"))?;
    file.write_all_at(b"written", u64::from_str_radix(address, 16).expect("an address"))?;
    Ok(0)
}

fn getfd_write(pid: i32, fd: i32) -> Result<i64> {
    let process = pidfd(pid)?;
    let fd = call(libc::SYS_pidfd_getfd, [process.as_raw_fd() as usize, fd as usize, 0]).map(owned)?;
    write(&fd)
}

fn mount(on: &CString) -> Result<i64> {
    let kind = c"tmpfs".as_ptr() as usize;
    call(libc::SYS_mount, [kind, on.as_ptr() as usize, kind, 0, 0])
}

fn bind_mount(from: &CString, on: &CString) -> Result<i64> {
    call(libc::SYS_mount, [from.as_ptr() as usize, on.as_ptr() as usize, 0, libc::MS_BIND as usize, 0])
}

/// A file system that is mounted nowhere, and a file in it.
fn fsmount() -> Result<i64> {
    let context = call(libc::SYS_fsopen, [c"tmpfs".as_ptr() as usize, 0]).map(owned)?;
    call(libc::SYS_fsconfig, [context.as_raw_fd() as usize, 6, 0, 0, 0])?;
    let mount = call(libc::SYS_fsmount, [context.as_raw_fd() as usize, 0, 0]).map(owned)?;
    call(libc::SYS_mkdirat, [mount.as_raw_fd() as usize, c"made".as_ptr() as usize, 0o700])
}

fn open_tree(path: &CString) -> Result<i64> {
    const CLONE: usize = 1;
    call(libc::SYS_open_tree, [libc::AT_FDCWD as usize, path.as_ptr() as usize, CLONE])
}

fn clone3(flags: usize) -> Result<i64> {
    let arguments = [flags as u64, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
    let child = call(libc::SYS_clone3, [(&raw const arguments) as usize, size_of_val(&arguments)])?;
    if child == 0 {
        // SAFETY: the child does nothing else.
        unsafe { libc::_exit(0) }
    }
    Ok(child)
}

fn setns(pid: i32, which: &str) -> Result<i64> {
    let file = std::fs::File::open(format!("/proc/{pid}/ns/{which}"))?;
    call(libc::SYS_setns, [file.as_raw_fd() as usize, 0])
}

fn capset() -> Result<i64> {
    let header = [0x2008_0522u32, 0];
    let mut data = [0u32; 6];
    call(libc::SYS_capget, [(&raw const header) as usize, (&raw mut data) as usize])?;
    call(libc::SYS_capset, [(&raw const header) as usize, (&raw const data) as usize])
}

/// Sets the clock to what it says.
fn set_clock() -> Result<i64> {
    let mut now = [0i64; 2];
    call(libc::SYS_clock_gettime, [libc::CLOCK_REALTIME as usize, (&raw mut now) as usize])?;
    call(libc::SYS_clock_settime, [libc::CLOCK_REALTIME as usize, (&raw const now) as usize])
}

fn bpf(command: usize, attributes: &[u32]) -> Result<i64> {
    call(libc::SYS_bpf, [command, attributes.as_ptr() as usize, size_of_val(attributes)])
}

fn bpf_map() -> Result<i64> {
    // `BPF_MAP_CREATE` of an array.
    bpf(0, &[2, 4, 4, 1])
}

fn bpf_pin(path: &CString) -> Result<i64> {
    // `BPF_OBJ_GET`
    let address = path.as_ptr() as u64;
    bpf(7, &[address as u32, (address >> 32) as u32, 0, 0])
}

fn bpf_id(id: u32) -> Result<i64> {
    // `BPF_MAP_GET_FD_BY_ID`
    bpf(14, &[id, 0, 0])
}

fn perf() -> Result<i64> {
    // `PERF_TYPE_SOFTWARE`, `PERF_COUNT_SW_CPU_CLOCK`; of the process itself, in user space only.
    let mut attributes = [0u32; 32];
    attributes[0] = 1;
    attributes[1] = 128;
    attributes[10] = 1 << 5 | 1 << 6;
    call(libc::SYS_perf_event_open, [(&raw const attributes) as usize, 0, usize::MAX, usize::MAX, 0])
}

/// Looks for a key that does not exist, so that the kernel would call out for it. Its name is new each time: for a minute the
/// kernel remembers that there was none, and asks nobody.
fn keys() -> Result<i64> {
    let name = CString::new(format!("sallyport-test-no-such-key-{}", std::process::id()))?;
    let answer = call(
        libc::SYS_request_key,
        [c"user".as_ptr() as usize, name.as_ptr() as usize, c"please".as_ptr() as usize, 0],
    );
    match answer {
        // It looked, and found nothing: no such key, or nobody to call out to.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOKEY | libc::ENOENT)) => Ok(0),
        other => other,
    }
}

fn ring(flags: u32) -> Result<OwnedFd> {
    let mut parameters = [0u32; 30];
    parameters[2] = flags;
    call(libc::SYS_io_uring_setup, [1, (&raw mut parameters) as usize]).map(owned)
}

/// Types one character into a terminal.
fn type_into_terminal(terminal: &str) -> Result<i64> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(terminal)?;
    call(libc::SYS_ioctl, [file.as_raw_fd() as usize, libc::TIOCSTI as usize, c"x".as_ptr() as usize])
}

/// Opens a file by its handle and writes into it.
fn by_handle(folder: &CString, _name: &str) -> Result<i64> {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        data: [u8; 128],
    }
    let mut handle = Handle { bytes: 128, kind: 0, data: [0; 128] };
    let mut mount = 0;
    call(
        libc::SYS_name_to_handle_at,
        [
            libc::AT_FDCWD as usize,
            folder.as_ptr() as usize,
            (&raw mut handle) as usize,
            (&raw mut mount) as usize,
            0,
        ],
    )?;
    let parent = std::path::Path::new(folder.to_str().expect("text")).parent().expect("a folder");
    let parent = std::fs::File::open(parent)?;
    let file = call(
        libc::SYS_open_by_handle_at,
        [parent.as_raw_fd() as usize, (&raw mut handle) as usize, libc::O_WRONLY as usize],
    )
    .map(owned)?;
    write(&file)
}

/// The descriptor that whoever listens on `path` hands over.
fn receive(path: &str) -> Result<OwnedFd> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let stream = UnixStream::connect(path)?;
    let mut byte = [0; 1];
    let mut iov = [std::io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::empty())?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(fd) = fds.first()
        {
            return Ok(owned((*fd).into()));
        }
    }
    Err(Error::from_raw_os_error(libc::EPERM))
}

/// Hands a connected socket of its own to itself and uses it.
fn receive_own(address: SocketAddr) -> Result<i64> {
    use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
    let connected = std::net::TcpStream::connect(address)?;
    let (one, other) = UnixStream::pair()?;
    let fds = [connected.as_raw_fd()];
    sendmsg::<()>(
        one.as_raw_fd(),
        &[std::io::IoSlice::new(b"x")],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::empty(),
        None,
    )?;
    let mut byte = [0; 1];
    let mut iov = [std::io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let message = recvmsg::<()>(other.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::empty())?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(fd) = fds.first()
        {
            return write(&owned((*fd).into()));
        }
    }
    Err(Error::from_raw_os_error(libc::EPERM))
}

/// Listens, connects to itself, and is heard.
fn unix_server(path: &str) -> Result<i64> {
    let listener = UnixListener::bind(path)?;
    UnixStream::connect(path)?.write_all(b"hello")?;
    let mut heard = String::new();
    listener.accept()?.0.read_to_string(&mut heard)?;
    Ok(i64::from(heard == "hello") - 1)
}

pub(crate) fn unhex(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).expect("hex")).collect()
}

/// Sends a datagram by way of 127.0.0.1.
fn route(address: SocketAddr, with_message: bool) -> Result<i64> {
    // Loose source route: one hop, then padding.
    const OPTION: [u8; 8] = [131, 7, 4, 127, 0, 0, 1, 0];
    const IP_OPTIONS: usize = 4;
    const IP_RETOPTS: i32 = 7;
    let own = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let fd = own.as_raw_fd() as usize;
    if !with_message {
        call(libc::SYS_setsockopt, [fd, libc::IPPROTO_IP as usize, IP_OPTIONS, OPTION.as_ptr() as usize, 8])?;
        return Ok(0);
    }
    let SocketAddr::V4(address) = address else { panic!("an IPv4 address is needed") };
    let name = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    };
    /// `struct cmsghdr` with what it carries.
    #[repr(C)]
    struct Control(u64, i32, i32, [u8; 8]);
    let control = Control(24, libc::IPPROTO_IP, IP_RETOPTS, OPTION);
    let data = [b"hello".as_ptr() as usize, 5];
    // SAFETY: plain integers and addresses.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw const name).cast_mut().cast();
    message.msg_namelen = size_of_val(&name) as u32;
    message.msg_iov = (&raw const data).cast_mut().cast();
    message.msg_iovlen = 1;
    message.msg_control = (&raw const control).cast_mut().cast();
    message.msg_controllen = 24;
    call(libc::SYS_sendmsg, [fd, (&raw const message) as usize, 0])
}
