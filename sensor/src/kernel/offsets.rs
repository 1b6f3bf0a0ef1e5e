//! Offsets of kernel structure fields, from the running kernel's own description (BTF).

use std::path::PathBuf;

use btf_rs::{Btf, Type};
use sallyport_sensor_abi::kernel::{NO_OFFSET, Offsets};

/// Where kernels from 5.4 on describe themselves, if built with `CONFIG_DEBUG_INFO_BTF`.
pub(super) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The running kernel does not say where its fields are.
#[derive(Debug, thiserror::Error)]
pub enum OffsetError {
    /// No BTF.
    #[error(
        "cannot read the kernel's type information `{path}` of Linux {release}; the kernel must be built with CONFIG_DEBUG_INFO_BTF"
    )]
    NoBtf {
        /// Where it should be.
        path: PathBuf,
        /// `uname -r`.
        release: String,
        /// Cause.
        #[source]
        source: btf_rs::Error,
    },
    /// A field moved out of sight.
    #[error(
        "Linux {release} has no field `{field}` in `struct {structure}`; this sensor does not know that kernel yet"
    )]
    NoField {
        /// Structure.
        structure: &'static str,
        /// Field.
        field: &'static str,
        /// `uname -r`.
        release: String,
    },
}

/// The running kernel's description of itself.
pub(super) fn open() -> Result<Btf, OffsetError> {
    Btf::from_file(VMLINUX).map_err(|source| OffsetError::NoBtf {
        path: VMLINUX.into(),
        release: super::probe::release(),
        source,
    })
}

/// Reads all offsets.
pub(super) fn read() -> Result<Offsets, OffsetError> {
    let release = super::probe::release();
    let btf = open()?;
    let of = |structure: &'static str, field: &'static str| {
        field_offset(&btf, structure, field).ok_or_else(|| OffsetError::NoField {
            structure,
            field,
            release: release.clone(),
        })
    };
    // Kernels are built with or without some fields.
    let optional = |structure: &str, field: &str| field_offset(&btf, structure, field).unwrap_or(NO_OFFSET);
    // The programs read a name's length and address at once, as all kernels have had them so far.
    if of("qstr", "name")? != 8 || ![0, 4].contains(&of("qstr", "len")?) {
        return Err(OffsetError::NoField { structure: "qstr", field: "hash_len", release });
    }
    // Nor do they read parent, name and inode of a directory entry one by one.
    let parent = of("dentry", "d_parent")?;
    if of("dentry", "d_name")? != parent + 8 || of("dentry", "d_inode")? != parent + 24 {
        return Err(OffsetError::NoField {
            structure: "dentry",
            field: "d_parent, d_name, d_inode",
            release,
        });
    }
    Ok(Offsets {
        linux_binprm_file: of("linux_binprm", "file")?,
        file_f_path: of("file", "f_path")?,
        path_mnt: of("path", "mnt")?,
        path_dentry: of("path", "dentry")?,
        dentry_d_parent: of("dentry", "d_parent")?,
        dentry_d_name: of("dentry", "d_name")?,
        dentry_d_inode: of("dentry", "d_inode")?,
        qstr_len: of("qstr", "len")?,
        qstr_name: of("qstr", "name")?,
        vfsmount_mnt_root: of("vfsmount", "mnt_root")?,
        mount_mnt: of("mount", "mnt")?,
        mount_mnt_parent: of("mount", "mnt_parent")?,
        mount_mnt_mountpoint: of("mount", "mnt_mountpoint")?,
        mount_mnt_ns: of("mount", "mnt_ns")?,
        mnt_namespace_user_ns: of("mnt_namespace", "user_ns")?,
        user_namespace_level: of("user_namespace", "level")?,
        inode_i_nlink: of("inode", "i_nlink")?,
        inode_i_ino: of("inode", "i_ino")?,
        inode_i_sb: of("inode", "i_sb")?,
        super_block_s_dev: of("super_block", "s_dev")?,
        task_struct_tgid: of("task_struct", "tgid")?,
        task_struct_real_parent: of("task_struct", "real_parent")?,
        task_struct_mm: of("task_struct", "mm")?,
        task_struct_signal: of("task_struct", "signal")?,
        task_struct_exit_code: of("task_struct", "exit_code")?,
        task_struct_start_boottime: of("task_struct", "start_boottime")?,
        mm_struct_arg_start: of("mm_struct", "arg_start")?,
        mm_struct_arg_end: of("mm_struct", "arg_end")?,
        signal_struct_live: of("signal_struct", "live")?,
        linux_binprm_executable: optional("linux_binprm", "executable"),
        file_f_mode: of("file", "f_mode")?,
        file_f_flags: of("file", "f_flags")?,
        file_f_inode: of("file", "f_inode")?,
        inode_i_mode: of("inode", "i_mode")?,
        dentry_d_sb: of("dentry", "d_sb")?,
        super_block_s_root: of("super_block", "s_root")?,
        super_block_s_mounts: of("super_block", "s_mounts")?,
        super_block_s_magic: of("super_block", "s_magic")?,
        mm_struct_exe_file: of("mm_struct", "exe_file")?,
        vm_area_struct_vm_file: of("vm_area_struct", "vm_file")?,
        task_struct_fs: of("task_struct", "fs")?,
        task_struct_files: of("task_struct", "files")?,
        task_struct_nsproxy: of("task_struct", "nsproxy")?,
        files_struct_fdt: of("files_struct", "fdt")?,
        fdtable_fd: of("fdtable", "fd")?,
        fdtable_max_fds: of("fdtable", "max_fds")?,
        fs_struct_pwd: of("fs_struct", "pwd")?,
        nsproxy_mnt_ns: of("nsproxy", "mnt_ns")?,
        nsproxy_pid_ns_for_children: of("nsproxy", "pid_ns_for_children")?,
        mnt_namespace_ns: of("mnt_namespace", "ns")?,
        pid_namespace_ns: of("pid_namespace", "ns")?,
        ns_common_inum: of("ns_common", "inum")?,
        mnt_namespace_id: match optional("mnt_namespace", "seq") {
            NO_OFFSET => of("mnt_namespace", "ns")? + of("ns_common", "ns_id")?,
            seq => seq,
        },
        task_struct_loginuid: optional("task_struct", "loginuid"),
        task_struct_sessionid: optional("task_struct", "sessionid"),
        mount_mnt_instance: match optional("mount", "mnt_instance") {
            NO_OFFSET => 0,
            instance => instance,
        },
        path_rename_arguments: arguments(&btf, "bpf_lsm_path_rename").unwrap_or(5),
        xattr_dentry: u32::from(arguments(&btf, "bpf_lsm_inode_removexattr").unwrap_or(3) == 3),
    })
}

/// Whether the running kernel has a function of that name that BTF describes.
pub(super) fn has_function(name: &str) -> bool {
    let types = Btf::from_file(VMLINUX).ok().and_then(|btf| btf.resolve_types_by_name(name).ok());
    types.is_some_and(|types| types.iter().any(|found| matches!(found, Type::Func(_))))
}

/// Offset in bytes of a field of the structure of that name, looking into anonymous members.
pub(super) fn field_offset(btf: &Btf, structure: &str, field: &str) -> Option<u32> {
    // A name can be a structure, a typedef and a function at once.
    btf.resolve_types_by_name(structure).ok()?.iter().find_map(|r#type| match r#type {
        Type::Struct(found) => within(btf, found, field, 0),
        _ => None,
    })
}

/// How many arguments a function has.
fn arguments(btf: &Btf, function: &str) -> Option<u32> {
    btf.resolve_types_by_name(function).ok()?.iter().find_map(|r#type| {
        let Type::Func(found) = r#type else { return None };
        match btf.resolve_chained_type(found).ok()? {
            Type::FuncProto(prototype) => u32::try_from(prototype.parameters.len()).ok(),
            _ => None,
        }
    })
}

/// How deep anonymous structures may nest (the kernel has three levels at most).
const DEPTH: u32 = 8;

fn within(btf: &Btf, structure: &btf_rs::Struct, field: &str, depth: u32) -> Option<u32> {
    if depth > DEPTH {
        return None;
    }
    for member in &structure.members {
        let name = btf.resolve_name(member).unwrap_or_default();
        if name == field {
            // A bit field has no byte offset.
            return (member.bitfield_size().unwrap_or(0) == 0 && member.bit_offset() % 8 == 0)
                .then(|| member.bit_offset() / 8);
        }
        if name.is_empty()
            && let Some(inner) = aggregate(btf, member)
            && let Some(offset) = within(btf, &inner, field, depth + 1)
        {
            return Some(member.bit_offset() / 8 + offset);
        }
    }
    None
}

/// The structure or union that a member is, qualifiers left out.
fn aggregate(btf: &Btf, member: &btf_rs::Member) -> Option<btf_rs::Struct> {
    let mut r#type = btf.resolve_chained_type(member).ok()?;
    for _ in 0..DEPTH {
        r#type = match &r#type {
            Type::Struct(found) | Type::Union(found) => return Some(found.clone()),
            Type::Const(inner) | Type::Volatile(inner) => btf.resolve_chained_type(inner).ok()?,
            _ => return None,
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kernel that this can be tested on has BTF; the offsets are checked against what cannot be otherwise.
    #[test]
    fn the_running_kernel_is_understood() {
        let offsets = read().expect("offsets of the running kernel");
        assert_eq!(offsets.path_mnt, 0);
        assert_eq!(offsets.path_dentry, 8);
        assert_eq!(offsets.qstr_len, 4, "second half of `hash_len`, in an anonymous structure of a union");
        assert!(offsets.task_struct_tgid > 0 && offsets.mm_struct_arg_end == offsets.mm_struct_arg_start + 8);
    }

    #[test]
    fn an_unknown_field_is_missing() {
        let btf = Btf::from_file(VMLINUX).expect("BTF of the running kernel");
        assert_eq!(field_offset(&btf, "linux_binprm", "no_such_field"), None);
        assert_eq!(field_offset(&btf, "no_such_structure", "file"), None);
    }
}
