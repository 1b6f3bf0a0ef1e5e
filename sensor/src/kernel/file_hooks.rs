//! The hooks for files: which program, where, and what is not judged without it.

use super::attach::Hook;

/// All of them are LSM hooks: see `sensor-ebpf/src/file.rs`.
pub(super) const FILES: &[(&str, Hook)] = &[
    ("sally_file_open", Hook::Lsm("file_open")),
    ("sally_truncate", Hook::Lsm("path_truncate")),
    // Where it is missing, `ftruncate` passes the one before.
    ("sally_file_truncate", Hook::OptionalLsm("file_truncate", "")),
    ("sally_mknod", Hook::Lsm("path_mknod")),
    ("sally_mkdir", Hook::Lsm("path_mkdir")),
    ("sally_symlink", Hook::Lsm("path_symlink")),
    ("sally_link", Hook::Lsm("path_link")),
    ("sally_unlink", Hook::Lsm("path_unlink")),
    ("sally_rmdir", Hook::Lsm("path_rmdir")),
    ("sally_rename", Hook::Lsm("path_rename")),
    ("sally_chmod", Hook::Lsm("path_chmod")),
    ("sally_chown", Hook::OptionalLsm("path_chown", "")),
    ("sally_setattr", Hook::InPlaceOf("path_chown", "inode_setattr")),
    ("sally_setxattr", Hook::Lsm("inode_setxattr")),
    ("sally_removexattr", Hook::Lsm("inode_removexattr")),
    // Where they are missing, access lists pass the two before, and flags the hook on `ioctl`.
    ("sally_set_acl", Hook::OptionalLsm("inode_set_acl", "")),
    ("sally_remove_acl", Hook::OptionalLsm("inode_remove_acl", "")),
    ("sally_file_setattr", Hook::OptionalLsm("inode_file_setattr", "")),
    ("sally_mmap", Hook::Lsm("mmap_file")),
    ("sally_mprotect", Hook::Lsm("file_mprotect")),
    // Kernels that have the first ask the others in all cases.
    ("sally_remap", Hook::InPlaceOf("inode_set_acl", "mmap_addr")),
];
