//! Offsets of kernel structure fields, from the running kernel's own description (BTF).

use std::path::PathBuf;

use btf_rs::{Btf, Type};
use sallyport_sensor_abi::kernel::Offsets;

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

/// Reads all offsets.
pub(super) fn read() -> Result<Offsets, OffsetError> {
    let release = super::probe::release();
    let btf = Btf::from_file(VMLINUX).map_err(|source| OffsetError::NoBtf {
        path: VMLINUX.into(),
        release: release.clone(),
        source,
    })?;
    let of = |structure: &'static str, field: &'static str| {
        field_offset(&btf, structure, field).ok_or_else(|| OffsetError::NoField {
            structure,
            field,
            release: release.clone(),
        })
    };
    // The programs read a name's length and address at once, as all kernels have had them so far.
    if of("qstr", "name")? != 8 || ![0, 4].contains(&of("qstr", "len")?) {
        return Err(OffsetError::NoField { structure: "qstr", field: "hash_len", release });
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
        _pad: 0,
    })
}

/// Offset in bytes of a field of the structure of that name, looking into anonymous members.
fn field_offset(btf: &Btf, structure: &str, field: &str) -> Option<u32> {
    // A name can be a structure, a typedef and a function at once.
    btf.resolve_types_by_name(structure).ok()?.iter().find_map(|r#type| match r#type {
        Type::Struct(found) => within(btf, found, field, 0),
        _ => None,
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
