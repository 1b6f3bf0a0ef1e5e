//! What the leader gives up before it becomes the user, for itself and all that descends from it.
//!
//! Where the kernel programs cannot refuse what policy forbids (tracepoint mode, and single hooks that older kernels
//! lack), the leader refuses it to itself: system calls by seccomp, processes outside by Landlock ([`super::enclosure`]), and what
//! is a capability by giving that up ([`super::bounds`]). All are put on as root, so `no_new_privs` is not needed and set-uid programs still work, unless policy forbids to change
//! the user: then `no_new_privs` is just what is wanted.
//!
//! *It is for good.* A filter is inherited and cannot be taken off or changed: what a later policy forbids is not refused
//! by it in running channels, and what a later policy permits stays refused there.
//!
//! *It is coarse.* Seccomp sees numbers, neither memory nor the other process: rules that depend on the calling program are
//! not refused by it, and `clone3`, whose flags lie in memory, does not exist (`ENOSYS`) where namespaces are
//! forbidden; libraries then use `clone`. `ioctl` requests are compared by the 32 bits that the kernel looks at.
//!
//! *Other numbers.* A process that uses another ABI of the processor (`int 0x80`, 32-bit programs) is killed at its first
//! call, calls of x32 fail with `EPERM`. Numbers that the tables here do not know fail with `ENOSYS`: a later kernel
//! may have another call for the same thing (as `open_tree_attr` does what `mount_setattr` does), and programs take that
//! answer for an older kernel, with which they must live anyway.
//!
//! *Files* are not refused by Landlock. It permits what lies below given folders, layer by layer, and cannot take anything away again: "everything
//! but `/etc/shadow`" would have to name every sibling on the way, as they were when the session began, and what is made there later
//! (a renewed `/etc/passwd`) could not be used. It knows neither names and patterns, nor the calling program, nor hard links;
//! and a domain that handles files forbids every mount. A faithful translation is not possible, so none is made.
//!
//! Unsafe: the `seccomp` system call itself, since the crate's wrapper would set `no_new_privs`.

mod calls;
#[cfg(test)]
mod tests;

use sallyport_sensor_abi::policy::operation;
use seccompiler::{BackendError, BpfProgram, SeccompAction, SeccompFilter, TargetArch, sock_filter};
use serde::{Deserialize, Serialize};

use self::calls::Rules;
use super::bounds::{self, BOUNDED};
use super::enclosure;

/// Bit of an operation ([`operation`]) in [`Refusals::operations`].
#[must_use]
pub const fn bit(operation: u32) -> u32 {
    1 << operation
}

/// Operations that can be refused to a leader.
pub const REFUSABLE: u32 = FILTERED | BOUNDED;

/// Operations that have system calls of their own.
const FILTERED: u32 = bit(operation::TRACE)
    | bit(operation::MOUNT)
    | bit(operation::UNMOUNT)
    | bit(operation::CHROOT)
    | bit(operation::NAMESPACE)
    | bit(operation::SET_USER)
    | bit(operation::SET_CAPABILITIES)
    | bit(operation::MODULE)
    | bit(operation::KEXEC)
    | bit(operation::BPF)
    | bit(operation::PERF)
    | bit(operation::KEYRING)
    | bit(operation::IO_URING)
    | bit(operation::TERMINAL_INPUT)
    | bit(operation::KERNEL_ACCESS)
    | bit(operation::OPEN_BY_HANDLE)
    | bit(operation::REBOOT)
    | bit(operation::CLOCK);

/// What a leader refuses to itself. Nothing: it has no filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusals {
    /// Operations, by [`bit`]; those outside of [`REFUSABLE`] do not count.
    pub operations: u32,
    /// Signals to and tracing of processes that do not descend from the leader.
    pub enclosed: bool,
    /// What could get around the kernel programs' own judgement: `userfaultfd` (stops another thread's call half-way), and
    /// to change which program one is said to run (`PR_SET_MM_EXE_FILE`).
    pub judgement: bool,
}

impl Refusals {
    /// Whether system calls are refused.
    #[must_use]
    pub fn filters(self) -> bool {
        self.operations & FILTERED != 0 || self.judgement
    }

    /// Whether it refuses an operation, whoever it is done to.
    #[must_use]
    pub fn has(self, operation: u32) -> bool {
        self.operations & REFUSABLE & bit(operation) != 0
    }
}

/// The filter cannot be made or put on.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The crate does not take the rules, or does not know the processor.
    #[error("the session's system call filter cannot be made: {0}")]
    Compile(#[from] BackendError),
    /// The kernel does not take it.
    #[error("the session's system call filter cannot be put on, so nothing was started: {0}")]
    Install(#[source] std::io::Error),
}

/// The programs that a leader puts on itself.
#[derive(Debug, Default)]
pub struct Filter {
    /// While it is root.
    as_root: Vec<BpfProgram>,
    /// Once it is the user, together with `no_new_privs`.
    as_user: Option<BpfProgram>,
}

/// Makes the programs for somebody who becomes this user. None for no refusals.
///
/// # Errors
/// The processor is not known.
pub fn compile(refusals: Refusals, uid: u32, gid: u32) -> Result<Filter, FilterError> {
    if !refusals.filters() {
        return Ok(Filter::default());
    }
    let as_root = vec![refuse(calls::rules(refusals)?)?, numbers(refusals.has(operation::NAMESPACE))];
    let changes = refusals.has(operation::SET_USER).then(|| calls::changes_of_ids(uid, gid)).transpose()?;
    Ok(Filter { as_root, as_user: changes.map(refuse).transpose()? })
}

/// Refuses the calls; kills on calls of another ABI, as the crate does.
fn refuse(rules: Rules) -> Result<BpfProgram, FilterError> {
    let processor: TargetArch = std::env::consts::ARCH.try_into()?;
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, refuse, processor)?.try_into()?)
}

/// The last number known here: `file_setattr`, of 6.17.
const LAST: u32 = 469;
/// On x86-64 no call has a number from here to the one before the second.
const GAP: [u32; 2] = if cfg!(target_arch = "x86_64") { [337, 424] } else { [LAST, LAST] };
/// `x32` shares the processor's id with 64-bit calls and has bit 30 in its numbers.
const X32: u32 = 1 << 30;

/// Refuses numbers by themselves: x32, unknown ones, and `clone3`.
fn numbers(without_clone3: bool) -> BpfProgram {
    const LOAD: u16 = 0x20;
    const IF_EQUAL: u16 = 0x15;
    const IF_ABOVE: u16 = 0x25;
    const IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    let next = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let errno = |number: i32| libc::SECCOMP_RET_ERRNO | number.unsigned_abs();
    // No call has this number.
    let clone3 = if without_clone3 { libc::SYS_clone3 as u32 } else { u32::MAX };
    vec![
        // `seccomp_data.nr` is at offset 0.
        next(LOAD, 0, 0, 0),
        next(IF_AT_LEAST, 6, 0, X32),
        next(IF_ABOVE, 4, 0, LAST),
        next(IF_AT_LEAST, 0, 1, GAP[0]),
        next(IF_AT_LEAST, 0, 2, GAP[1]),
        next(IF_EQUAL, 1, 0, clone3),
        next(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        next(RETURN, 0, 0, errno(libc::ENOSYS)),
        next(RETURN, 0, 0, errno(libc::EPERM)),
    ]
}

/// Gives up, for good, everything that is given up while this process is root.
///
/// # Errors
/// The kernel refuses; some of it may be given up then, so the process must end.
pub fn give_up(refusals: Refusals, filter: &Filter) -> Result<(), String> {
    if refusals.enclosed {
        enclosure::enter()
            .map_err(|error| format!("processes outside of the session cannot be closed off: {error}"))?;
    }
    bounds::tighten(refusals)?;
    filter.put_on_as_root().map_err(|error| error.to_string())
}

impl Filter {
    /// Puts the first part on this thread. Needs `CAP_SYS_ADMIN`; the process has one thread.
    ///
    /// # Errors
    /// The kernel refuses; some of it may be on then, so the process must end.
    pub fn put_on_as_root(&self) -> Result<(), FilterError> {
        self.as_root.iter().try_for_each(install)
    }

    /// Puts on the rest, if there is any, with `no_new_privs`.
    ///
    /// # Errors
    /// As above.
    pub fn put_on_as_user(&self) -> Result<(), FilterError> {
        let Some(program) = &self.as_user else { return Ok(()) };
        nix::sys::prctl::set_no_new_privs().map_err(|error| FilterError::Install(error.into()))?;
        install(program)
    }
}

fn install(program: &BpfProgram) -> Result<(), FilterError> {
    let len = u16::try_from(program.len())
        .map_err(|_| FilterError::Install(std::io::ErrorKind::InvalidInput.into()))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // This is no sandbox for untrusted machine code in one address space: processes are not to be slowed down by
    // defences against speculation, as kernels before 5.16 would do.
    let flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // SAFETY: the kernel copies `len` instructions from `filter` and writes nothing there. They live until after the
    // call, and the crate's `sock_filter` has the layout of the kernel's (it passes it to the same call).
    #[allow(unsafe_code, reason = "no safe wrapper of seccomp without no_new_privs")]
    let status =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if status != 0 {
        return Err(FilterError::Install(std::io::Error::last_os_error()));
    }
    Ok(())
}
