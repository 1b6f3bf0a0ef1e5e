//! What this kernel can do: for choosing the mode, and for `sallyport-sensor doctor`.

use std::os::fd::{FromRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;

use super::{Mode, attach, load, mounts, object, offsets};

/// What was found.
#[derive(Debug, Clone, serde::Serialize)]
pub struct KernelFacts {
    /// `uname -r`.
    pub release: String,
    /// The kernel describes its own structures.
    pub btf: bool,
    /// Active security modules, in order; empty if that could not be read.
    pub lsms: Vec<String>,
    /// The kernel is built with BPF LSM, whether it is on or not.
    pub lsm_built: bool,
    /// `none`, `integrity` or `confidentiality`, if that could be read.
    pub lockdown: Option<String>,
    /// Where a cgroup2 hierarchy is mounted.
    pub cgroup2: Option<PathBuf>,
    /// The kernel keeps login uids (`CONFIG_AUDIT`).
    pub audit: bool,
    /// The kernel takes seccomp filters.
    pub seccomp: bool,
    /// This sensor contains its kernel programs.
    pub has_object: bool,
    /// Running as root; what needs it could be tried.
    pub root: bool,
    /// The mode that would be chosen; `None`: no session can be enforced here.
    pub mode: Option<Mode>,
    /// What is not judged in LSM mode since this kernel lacks the hook, one phrase each.
    pub not_judged: Vec<String>,
    /// LSM mode.
    pub lsm: ModeFacts,
    /// Tracepoint mode.
    pub tracepoint: ModeFacts,
}

/// What is true of one mode.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ModeFacts {
    /// It can be used here.
    pub works: bool,
    /// Why not; empty if it works.
    pub obstacles: Vec<String>,
    /// What it does not stop, in sentences.
    pub limits: Vec<String>,
}

/// `uname -r`.
pub(super) fn release() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| "unknown".into(), |name| name.release().to_string_lossy().into_owned())
}

/// Looks, and as root also tries. Attaches nothing and leaves nothing behind.
pub fn probe() -> KernelFacts {
    let root = nix::unistd::geteuid().is_root();
    let has_object = !object::bytes().is_empty();
    let mut common = Vec::new();
    if !has_object {
        common.push(
            "this sensor was built without its kernel programs; run `cargo xtask ebpf` and build it again"
                .into(),
        );
    }
    if !root {
        common.push("not running as root, so nothing could be tried".into());
    }
    let btf = match offsets::read() {
        Ok(_) => true,
        Err(error) => {
            common.push(error.to_string());
            !matches!(error, super::OffsetError::NoBtf { .. })
        }
    };
    let lsm_obstacles: Vec<_> =
        common.iter().cloned().chain(if common.is_empty() { lsm_refusal() } else { None }).collect();
    let lsm_works = lsm_obstacles.is_empty();
    let tracepoint_works = common.is_empty();
    KernelFacts {
        release: release(),
        btf,
        lsms: lsms().unwrap_or_default(),
        lsm_built: offsets::has_function("bpf_lsm_bprm_check_security"),
        lockdown: lockdown(),
        cgroup2: mounts::cgroup2(),
        audit: crate::unbrokered::has_audit(),
        seccomp: std::path::Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
        has_object,
        root,
        mode: match (lsm_works, tracepoint_works) {
            (true, _) => Some(Mode::Lsm),
            (false, true) => Some(Mode::Tracepoint),
            (false, false) => None,
        },
        not_judged: super::hooks::not_judged().into_iter().map(str::to_owned).collect(),
        lsm: ModeFacts { works: lsm_works, obstacles: lsm_obstacles, limits: lsm_limits() },
        tracepoint: ModeFacts {
            works: tracepoint_works,
            obstacles: common,
            limits: limits(Mode::Tracepoint),
        },
    }
}

/// Why LSM mode cannot be used; `None` if it can. Tries to load a program of that kind.
pub(super) fn lsm_refusal() -> Option<String> {
    match lsms() {
        Some(lsms) if lsms.iter().any(|lsm| lsm == "bpf") => {}
        Some(lsms) => {
            return Some(format!(
                "`bpf` is not among the active security modules ({}), so programs of that kind would load but never run; boot with `lsm={},bpf`",
                lsms.join(","),
                lsms.join(",")
            ));
        }
        None => {
            return Some("the active security modules cannot be read from /sys/kernel/security/lsm".into());
        }
    }
    let offsets = match offsets::read() {
        Ok(offsets) => offsets,
        Err(error) => return Some(error.to_string()),
    };
    let tried = load::load_object(&offsets, None, false).and_then(|mut ebpf| attach::try_lsm(&mut ebpf));
    tried.err().map(|error| format!("the kernel refuses programs of that kind: {}", chain(&error)))
}

pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Reads a file of securityfs, mounting that if nobody has.
fn security(name: &str) -> Option<String> {
    let path = std::path::Path::new("/sys/kernel/security").join(name);
    std::fs::read_to_string(&path).ok().or_else(|| {
        use nix::mount::{MsFlags, mount};
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("securityfs"), "/sys/kernel/security", Some("securityfs"), flags, None::<&str>).ok()?;
        std::fs::read_to_string(&path).ok()
    })
}

fn lsms() -> Option<Vec<String>> {
    let list = security("lsm")?;
    Some(list.trim().split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

fn lockdown() -> Option<String> {
    // `none [integrity] confidentiality`
    let text = security("lockdown")?;
    text.split_whitespace().find_map(|word| Some(word.strip_prefix('[')?.strip_suffix(']')?.to_owned()))
}

/// What LSM mode does not stop, here.
fn lsm_limits() -> Vec<String> {
    let missing = super::hooks::not_judged().into_iter();
    let missing = missing.map(|what| format!("this kernel lacks the hook to judge {what}"));
    limits(Mode::Lsm).into_iter().chain(missing).collect()
}

/// What a mode does not stop. Only what is true of this version.
fn limits(mode: Mode) -> Vec<String> {
    let both = [
        "accepting connections is not judged, only making and awaiting them is",
        "programs and files are judged by path, not by content: a copy of a forbidden program at a permitted path runs, so permit folders that the session's user cannot write to",
        "what a permitted interpreter is told to do by a script, by its standard input or by a library is not judged as a program, only by what the interpreter then does",
        "a service outside of the session that may be asked over a permitted socket or connection acts as itself",
        "ICMP sockets are allowed only if the policy allows ICMP to every address",
    ];
    let own: &[&str] = match mode {
        Mode::Lsm => &[
            "rules on arguments are enforced by killing the program before its first instruction, all others by refusing the call",
            "rules on the arguments of a script are judged on the interpreter's arguments",
            "extended attributes are judged by the file's path on the first mount of its file system",
        ],
        Mode::Tracepoint => &[
            "a forbidden program is killed before its first instruction; its file has been opened and mapped by then, and its parent sees it die by SIGKILL instead of an error",
            "a script is judged only as its interpreter, with the script's path as an argument",
            "files, code mapped from files, Unix sockets and descriptors passed in are not judged",
            "of what is asked of the system, a session gives up beforehand what policy forbids to all programs; the rest is not judged, and a policy pushed later changes nothing of it in running channels",
            "packet, vsock, AF_ALG, XDP and other sockets outside of IPv4 and IPv6 are not refused; most of them need root",
            "listening on a socket that was not bound is not judged",
        ],
    };
    both.iter().chain(own).copied().map(str::to_owned).collect()
}

/// Whether the running kernel is older than that version.
pub(crate) fn is_before(major: u32, minor: u32) -> bool {
    let release = release();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(a), Some(b)) => (a, b) < (major, minor),
        _ => false,
    }
}

/// Whether what `io_uring` does happens in threads of the process that asks, which have its tag: since 5.12, and in later
/// versions of older kernels that were given a newer `io_uring`. The kernel says so when a ring is made; where none can be
/// made now, its version tells.
pub(crate) fn uring_has_threads() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| uring_features().map_or(!is_before(5, 12), |found| found & NATIVE_WORKERS != 0))
}

/// `IORING_FEAT_NATIVE_WORKERS`
const NATIVE_WORKERS: u32 = 1 << 9;
/// Words of `struct io_uring_params`, and which of them are the features.
const URING_PARAMETERS: usize = 30;
const URING_FEATURES: usize = 5;

#[allow(unsafe_code, reason = "no safe wrapper of io_uring_setup")]
fn uring_features() -> Option<u32> {
    let mut parameters = [0u32; URING_PARAMETERS];
    // SAFETY: the structure is that long, and zeros ask for nothing in particular; the kernel writes to it.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    if ring < 0 {
        return None;
    }
    // SAFETY: just made, and nobody else's.
    drop(unsafe { OwnedFd::from_raw_fd(i32::try_from(ring).ok()?) });
    Some(parameters[URING_FEATURES])
}
