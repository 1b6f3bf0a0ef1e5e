//! What the loader tells the kernel programs about the running kernel, and what it notes about itself.

/// Byte offsets of kernel structure fields, from the running kernel's BTF. The loader writes them into the
/// read-only global `OFFSETS`, so the verifier sees constants.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is named structure_field after the kernel's own")]
pub struct Offsets {
    pub linux_binprm_file: u32,
    pub file_f_path: u32,
    pub path_mnt: u32,
    pub path_dentry: u32,
    pub dentry_d_parent: u32,
    pub dentry_d_name: u32,
    pub dentry_d_inode: u32,
    pub qstr_len: u32,
    pub qstr_name: u32,
    pub vfsmount_mnt_root: u32,
    pub mount_mnt: u32,
    pub mount_mnt_parent: u32,
    pub mount_mnt_mountpoint: u32,
    pub mount_mnt_ns: u32,
    pub mnt_namespace_user_ns: u32,
    pub user_namespace_level: u32,
    pub inode_i_nlink: u32,
    pub inode_i_ino: u32,
    pub inode_i_sb: u32,
    pub super_block_s_dev: u32,
    pub task_struct_tgid: u32,
    pub task_struct_real_parent: u32,
    pub task_struct_mm: u32,
    pub task_struct_signal: u32,
    pub task_struct_exit_code: u32,
    pub task_struct_start_boottime: u32,
    pub mm_struct_arg_start: u32,
    pub mm_struct_arg_end: u32,
    pub signal_struct_live: u32,
    pub linux_binprm_executable: u32,
    pub file_f_mode: u32,
    pub file_f_flags: u32,
    pub file_f_inode: u32,
    pub inode_i_mode: u32,
    pub dentry_d_sb: u32,
    pub super_block_s_root: u32,
    pub super_block_s_mounts: u32,
    pub super_block_s_magic: u32,
    pub mm_struct_exe_file: u32,
    pub vm_area_struct_vm_file: u32,
    pub task_struct_fs: u32,
    pub task_struct_files: u32,
    pub task_struct_nsproxy: u32,
    pub files_struct_fdt: u32,
    pub fdtable_fd: u32,
    pub fdtable_max_fds: u32,
    pub fs_struct_pwd: u32,
    pub nsproxy_mnt_ns: u32,
    pub nsproxy_pid_ns_for_children: u32,
    pub mnt_namespace_ns: u32,
    pub pid_namespace_ns: u32,
    pub ns_common_inum: u32,
    /// A `u64` in `mnt_namespace` that is zero for namespaces that no process is in (`seq`, since 6.18 `ns.ns_id`).
    pub mnt_namespace_id: u32,
    /// [`NO_OFFSET`] without `CONFIG_AUDIT`.
    pub task_struct_loginuid: u32,
    /// [`NO_OFFSET`] without `CONFIG_AUDIT`.
    pub task_struct_sessionid: u32,
    /// Where a `mount` is linked from `super_block.s_mounts`; 0 since 6.18, where that points to the `mount` itself.
    pub mount_mnt_instance: u32,
    /// Arguments of LSM hook `path_rename` (5 since 5.19, with flags).
    pub path_rename_arguments: u32,
    /// Which argument of LSM hooks `inode_setxattr` and `inode_removexattr` is the dentry (1 since 5.12).
    pub xattr_dentry: u32,
}

/// In [`Offsets`]: this kernel has no such field.
pub const NO_OFFSET: u32 = u32::MAX;

/// First component of the path of a program that lies in a mount namespace which an unprivileged user made:
/// there anything can be mounted over `/usr/bin`, so its paths must not match rules on the host's.
pub const USERNS_COMPONENT: &str = "(userns)";
/// First component of the path of a program on a mount that is no longer in any tree (`umount -l`).
pub const DETACHED_COMPONENT: &str = "(unreachable)";

/// Words of array map `META`, each a `u64`. Word 0 keeps its meaning for ever.
pub mod meta {
    /// [`crate::ABI_VERSION`] of the maps.
    pub const ABI: u32 = 0;
    /// [`MODE_LSM`] or [`MODE_TRACEPOINT`].
    pub const MODE: u32 = 1;
    /// First of four words: SHA-256 of the object whose programs are attached, zero while they are replaced.
    pub const DIGEST: u32 = 2;
    /// The generation of programs that is attached; names the folder of their pins.
    pub const GENERATION: u32 = 6;
    /// The last [`crate::policy::PolicyHeader::generation`] that was given away.
    pub const POLICY_GENERATION: u32 = 7;
    /// How many words there are.
    pub const COUNT: u32 = 8;
    /// Value of [`MODE`].
    pub const MODE_LSM: u64 = 1;
    /// Value of [`MODE`].
    pub const MODE_TRACEPOINT: u64 = 2;
}

// Words only, so there is never padding.
const _: () = assert!(align_of::<Offsets>() == 4);

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, words only, so no implicit padding.
#[allow(unsafe_code, reason = "aya::Pod is an unsafe trait and the orphan rule puts the impl here")]
unsafe impl aya::Pod for Offsets {}
