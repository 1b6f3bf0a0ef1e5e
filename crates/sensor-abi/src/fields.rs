//! More byte offsets of kernel structure fields: those that only hooks on sockets and on the system need.
//!
//! Apart from [`crate::kernel::Offsets`] since any of them may be missing from a kernel ([`NO_OFFSET`]): then what needs it
//! is denied for tagged processes, or, where a field only narrows down what is looked at, not told apart.

pub use crate::kernel::NO_OFFSET;

/// Read-only global `FIELDS` of the kernel programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is named structure_field after the kernel's own")]
pub struct Fields {
    pub cred_uid: u32,
    pub cred_euid: u32,
    pub cred_suid: u32,
    pub cred_fsuid: u32,
    pub cred_gid: u32,
    pub cred_egid: u32,
    pub cred_sgid: u32,
    pub cred_fsgid: u32,
    pub cred_group_info: u32,
    pub cred_cap_inheritable: u32,
    pub cred_cap_permitted: u32,
    pub cred_cap_effective: u32,
    pub linux_binprm_cred: u32,
    pub linux_binprm_filename: u32,
    pub linux_binprm_interp: u32,
    pub task_struct_cred: u32,
    pub task_struct_group_leader: u32,
    pub task_struct_pid_links: u32,
    pub task_struct_thread_pid: u32,
    /// Where the kernel stack begins; [`NO_OFFSET`] except on x86-64, whose system call numbers the programs know.
    pub task_struct_stack: u32,
    /// `thread_info.status`; [`NO_OFFSET`] except on x86-64.
    pub task_struct_status: u32,
    /// Device number of a device file.
    pub inode_i_rdev: u32,
    pub pid_level: u32,
    pub pid_tasks: u32,
    pub proc_inode_pid: u32,
    pub proc_inode_vfs_inode: u32,
    pub file_private_data: u32,
    /// A `struct fown_struct`; since 6.12 a pointer to it.
    pub file_f_owner: u32,
    /// Since 6.12; [`NO_OFFSET`] before, where it is a part of the file.
    pub fown_struct_file: u32,
    pub socket_sk: u32,
    pub sock_common_skc_family: u32,
    pub sock_common_skc_num: u32,
    pub sock_common_skc_rcv_saddr: u32,
    pub sock_common_skc_v6_rcv_saddr: u32,
    pub sock_common_skc_cookie: u32,
    pub unix_sock_addr: u32,
    pub unix_sock_path: u32,
    pub unix_sock_peer: u32,
    pub unix_address_len: u32,
    pub unix_address_name: u32,
    pub vfsmount_mnt_sb: u32,
    pub msghdr_msg_control: u32,
    pub msghdr_msg_controllen: u32,
}

/// Value of map `SOCKETS`, keyed by the kernel's cookie of an Internet socket: the session that made it.
pub type SocketSession = u64;
/// Entries of map `SOCKETS`. The ones unused for longest go first; a socket that is not there counts as made outside.
pub const MAX_SOCKETS: u32 = 65_536;
/// Entries of map `OWNED`: files that a tagged process made somebody the owner of, by a hash of their address.
pub const OWNED: u32 = 1 << 12;
/// Entries of read-only global `GUARDED_DEVICES`: file systems that pins and the cgroup hierarchy are on or mounted
/// on (`s_dev`); 0: none.
pub const GUARDED_DEVICES: usize = 8;

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, words only, so no padding.
#[allow(unsafe_code, reason = "aya::Pod is an unsafe trait and the orphan rule puts the impl here")]
unsafe impl aya::Pod for Fields {}
