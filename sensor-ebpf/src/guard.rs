//! What belongs to the sensor and is no registered name: file systems that its pins depend on, its processes' files
//! below `/proc`, control groups.

use sallyport_sensor_abi::fields::GUARDED_DEVICES as N_DEVICES;

use crate::{
    fields::field,
    read::{self, Address, Unreadable, offset},
    system::{self, Target},
};

const BPFFS: u64 = 0xcafe_4a11;
const CGROUP2: u64 = 0x6367_7270;
const CGROUP1: u64 = 0x0027_e0eb;
const PROC: u64 = 0x9fa0;
const SECURITYFS: u64 = 0x7363_6673;

/// Devices of the file systems that the pins and the cgroup hierarchy are mounted on; the first is the root's. Written by
/// the loader, then frozen by the kernel.
#[unsafe(no_mangle)]
static GUARDED_DEVICES: [u32; N_DEVICES] = [0; N_DEVICES];

/// A folder to mount on, or a mount's root.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Mounting here could hide or take away what is guarded.
    Guarded,
    /// Any other.
    Other,
}

/// What guards a file system.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Other,
    /// The root's: only all of it.
    Root,
    /// What is guarded is mounted on it.
    Below,
    /// It is itself guarded.
    Itself,
}

#[inline(always)]
fn kind(super_block: Address) -> Result<Kind, Unreadable> {
    // SAFETY: offsets point into `OFFSETS`.
    let (magic, device) = unsafe {
        (
            read::kernel::<u64>(super_block + offset!(super_block_s_magic))?,
            read::kernel::<u32>(super_block + offset!(super_block_s_dev))?,
        )
    };
    if magic == BPFFS || magic == CGROUP2 {
        return Ok(Kind::Itself);
    }
    if device == 0 {
        return Ok(Kind::Other);
    }
    let mut i = 0;
    while i < N_DEVICES {
        // SAFETY: within the array; volatile since the compiler knows only zeros.
        let guarded = unsafe { core::ptr::read_volatile((&raw const GUARDED_DEVICES).cast::<u32>().add(i)) };
        if guarded == device {
            return Ok(if i == 0 { Kind::Root } else { Kind::Below });
        }
        i += 1;
    }
    Ok(Kind::Other)
}

/// Whether a file system as a whole must stay as it is.
#[inline(always)]
pub(crate) fn file_system(super_block: Address) -> Result<bool, Unreadable> {
    Ok(matches!(kind(super_block)?, Kind::Itself | Kind::Below))
}

/// Whether a mount must stay where it is.
#[inline(always)]
pub(crate) fn mount(vfsmount: Address) -> Result<bool, Unreadable> {
    // SAFETY: offsets point into `OFFSETS` and `FIELDS`.
    unsafe {
        let super_block: Address = read::kernel(vfsmount + field!(vfsmount_mnt_sb))?;
        let whole = read::kernel::<Address>(vfsmount + offset!(vfsmount_mnt_root))?
            == read::kernel::<Address>(super_block + offset!(super_block_s_root))?;
        Ok(match kind(super_block)? {
            Kind::Other => false,
            Kind::Root | Kind::Below => whole,
            Kind::Itself => true,
        })
    }
}

/// Whether something may be mounted on a folder.
#[inline(always)]
pub(crate) fn place(dentry: Address) -> Result<Place, Unreadable> {
    // SAFETY: offsets point into `OFFSETS`.
    unsafe {
        let super_block: Address = read::kernel(dentry + offset!(dentry_d_sb))?;
        let root: Address = read::kernel(super_block + offset!(super_block_s_root))?;
        let guarded = match kind(super_block)? {
            Kind::Other => false,
            Kind::Itself => true,
            Kind::Root => dentry == root,
            // `/sys`, and `/sys/fs`, too.
            Kind::Below => {
                dentry == root || read::kernel::<Address>(dentry + offset!(dentry_d_parent))? == root
            }
        };
        Ok(if guarded { Place::Guarded } else { Place::Other })
    }
}

/// Whether an inode is on a BPF file system, where pins are.
#[inline(always)]
pub(crate) fn is_pin(inode: Address) -> Result<bool, Unreadable> {
    Ok(magic(inode)? == BPFFS)
}

/// The kind of file system that an inode is on.
#[inline(always)]
pub(crate) fn magic(inode: Address) -> Result<u64, Unreadable> {
    // SAFETY: offsets point into `OFFSETS`.
    unsafe {
        let super_block: Address = read::kernel(inode + offset!(inode_i_sb))?;
        read::kernel(super_block + offset!(super_block_s_magic))
    }
}

/// What writing to an opened file could do.
pub(crate) enum Harm {
    /// Nothing that is judged by what the file is.
    None,
    /// It reaches into the kernel: for policy to judge.
    Kernel,
    /// It types in somebody's place: for policy to judge.
    Keyboard,
    /// It could harm the sensor; if it is a file of one of its processes, which.
    Guarded(Target),
}

/// What writing to an opened file could do.
///
/// Control groups: a process that could write to those of others can freeze, kill, move or choke the sensor, so it
/// may write to none. Who has no right over others' files is held off by the kernel's own permissions and may use
/// those that were delegated to it. `/proc`: the files of the sensor's processes (`oom_score_adj`, `mem`, `sched`…),
/// `sysrq-trigger`, and `ftrace_enabled`, without which the kernel calls no LSM program.
///
/// Policies of other security modules (files of securityfs) and keyboards made by programs (`/dev/uinput`, `/dev/uhid`: they
/// can press SysRq) are for policy to forbid.
#[inline(always)]
pub(crate) fn written(inode: Address, dentry: Address) -> Result<Harm, Unreadable> {
    const SOMETHING: Harm = Harm::Guarded(Target { tgid: 0, started: 0 });
    let magic = magic(inode)?;
    if magic == CGROUP2 || magic == CGROUP1 {
        return Ok(if privileged()? { SOMETHING } else { Harm::None });
    }
    if magic == SECURITYFS {
        return Ok(Harm::Kernel);
    }
    if magic != PROC {
        return Ok(if types(inode)? { Harm::Keyboard } else { Harm::None });
    }
    // SAFETY: offsets point into `OFFSETS` and `FIELDS`.
    unsafe {
        let pid: Address = read::kernel(inode - field!(proc_inode_vfs_inode) + field!(proc_inode_pid))?;
        if pid == 0 {
            let name: Address = read::kernel(dentry + offset!(dentry_d_name) + 8)?;
            let found: [u64; 2] = read::kernel(name)?;
            let same =
                is_name(found, b"sysrq-trigger\0\0\0", 14) || is_name(found, b"ftrace_enabled\0\0", 15);
            return Ok(if same { SOMETHING } else { Harm::None });
        }
        // The first of the threads that have this number.
        let link: Address = read::kernel(pid + field!(pid_tasks))?;
        if link == 0 {
            return Ok(Harm::None);
        }
        let target = system::target(link - field!(task_struct_pid_links))?;
        Ok(if system::is_guarded(&target) { Harm::Guarded(target) } else { Harm::None })
    }
}

/// Whether the first `len` bytes of a name, among which the terminating zero is, are those wanted; more than 8.
#[inline(always)]
fn is_name(found: [u64; 2], wanted: &[u8; 16], len: u32) -> bool {
    let (low, high) = wanted.split_at(8);
    let mask = (1 << ((len - 8) * 8)) - 1;
    found[0] == bytes(low) && found[1] & mask == bytes(high) & mask
}

/// `S_IFMT`, `S_IFCHR`
const KIND: u16 = 0o170_000;
const CHARACTERS: u16 = 0o020_000;
/// `/dev/uinput` and `/dev/uhid`: major number 10, as the kernel keeps it.
const UINPUT: u32 = 10 << 20 | 223;
const UHID: u32 = 10 << 20 | 239;

/// Whether a file is one by which a program can be a keyboard.
#[inline(always)]
fn types(inode: Address) -> Result<bool, Unreadable> {
    // SAFETY: offsets point into `OFFSETS` and `FIELDS`.
    unsafe {
        if read::kernel::<u16>(inode + offset!(inode_i_mode))? & KIND != CHARACTERS {
            return Ok(false);
        }
        let device: u32 = read::kernel(inode + field!(inode_i_rdev))?;
        Ok(device == UINPUT || device == UHID)
    }
}

#[inline(always)]
fn bytes(of: &[u8]) -> u64 {
    u64::from_ne_bytes([of[0], of[1], of[2], of[3], of[4], of[5], of[6], of[7]])
}

/// `CAP_DAC_OVERRIDE`
const OVERRIDE: u64 = 1 << 1;

/// The current process may write to root's files.
#[inline(always)]
pub(crate) fn privileged() -> Result<bool, Unreadable> {
    // SAFETY: offsets point into `FIELDS`.
    unsafe {
        let cred: Address = read::kernel(read::current_task() + field!(task_struct_cred))?;
        let fsuid: u32 = read::kernel(cred + field!(cred_fsuid))?;
        let effective: u64 = read::kernel(cred + field!(cred_cap_effective))?;
        Ok(fsuid == 0 || effective & OVERRIDE != 0)
    }
}
