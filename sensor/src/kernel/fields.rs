//! Offsets of fields that only hooks on sockets and on the system need, and what those hooks must guard.

use std::os::linux::fs::MetadataExt as _;
use std::path::Path;

use nix::sys::stat::{major, minor};
use sallyport_sensor_abi::fields::{Fields, GUARDED_DEVICES, NO_OFFSET};

use super::offsets::{OffsetError, field_offset};

/// Reads all offsets. What is missing is [`NO_OFFSET`].
pub(super) fn read() -> Result<Fields, OffsetError> {
    let btf = super::offsets::open()?;
    let of = |structure: &str, field: &str| field_offset(&btf, structure, field).unwrap_or(NO_OFFSET);
    let thread = (of("task_struct", "thread_info"), of("thread_info", "status"));
    let status = if cfg!(target_arch = "x86_64") && thread.0 != NO_OFFSET && thread.1 != NO_OFFSET {
        thread.0 + thread.1
    } else {
        NO_OFFSET
    };
    Ok(Fields {
        cred_uid: of("cred", "uid"),
        cred_euid: of("cred", "euid"),
        cred_suid: of("cred", "suid"),
        cred_fsuid: of("cred", "fsuid"),
        cred_gid: of("cred", "gid"),
        cred_egid: of("cred", "egid"),
        cred_sgid: of("cred", "sgid"),
        cred_fsgid: of("cred", "fsgid"),
        cred_group_info: of("cred", "group_info"),
        cred_cap_inheritable: of("cred", "cap_inheritable"),
        cred_cap_permitted: of("cred", "cap_permitted"),
        cred_cap_effective: of("cred", "cap_effective"),
        linux_binprm_cred: of("linux_binprm", "cred"),
        linux_binprm_filename: of("linux_binprm", "filename"),
        linux_binprm_interp: of("linux_binprm", "interp"),
        task_struct_cred: of("task_struct", "cred"),
        task_struct_group_leader: of("task_struct", "group_leader"),
        task_struct_pid_links: of("task_struct", "pid_links"),
        task_struct_thread_pid: of("task_struct", "thread_pid"),
        // The programs know the system calls of this machine only.
        task_struct_stack: if cfg!(target_arch = "x86_64") { of("task_struct", "stack") } else { NO_OFFSET },
        task_struct_status: status,
        inode_i_rdev: of("inode", "i_rdev"),
        pid_level: of("pid", "level"),
        pid_tasks: of("pid", "tasks"),
        proc_inode_pid: of("proc_inode", "pid"),
        proc_inode_vfs_inode: of("proc_inode", "vfs_inode"),
        file_private_data: of("file", "private_data"),
        file_f_owner: of("file", "f_owner"),
        fown_struct_file: of("fown_struct", "file"),
        socket_sk: of("socket", "sk"),
        sock_common_skc_family: of("sock_common", "skc_family"),
        sock_common_skc_num: of("sock_common", "skc_num"),
        sock_common_skc_rcv_saddr: of("sock_common", "skc_rcv_saddr"),
        sock_common_skc_v6_rcv_saddr: of("sock_common", "skc_v6_rcv_saddr"),
        sock_common_skc_cookie: of("sock_common", "skc_cookie"),
        unix_sock_addr: of("unix_sock", "addr"),
        unix_sock_path: of("unix_sock", "path"),
        unix_sock_peer: of("unix_sock", "peer"),
        unix_address_len: of("unix_address", "len"),
        unix_address_name: of("unix_address", "name"),
        vfsmount_mnt_sb: of("vfsmount", "mnt_sb"),
        msghdr_msg_control: of("msghdr", "msg_control"),
        msghdr_msg_controllen: of("msghdr", "msg_controllen"),
    })
}

/// Devices of the file systems that the pins are on or mounted on; the root's first.
pub(super) fn guarded_devices(pin_dir: Option<&Path>, cgroup: Option<&Path>) -> [u32; GUARDED_DEVICES] {
    let mut devices = [0; GUARDED_DEVICES];
    let device = |path: &Path| std::fs::metadata(path).ok().map(|found| in_kernel(found.st_dev()));
    let Some(root) = device(Path::new("/")) else { return devices };
    devices[0] = root;
    let mut found = Vec::new();
    for folder in [pin_dir, cgroup].into_iter().flatten().flat_map(Path::ancestors).filter_map(device) {
        if folder != root && !found.contains(&folder) {
            found.push(folder);
        }
    }
    for (slot, device) in devices.iter_mut().skip(1).zip(found) {
        *slot = device;
    }
    devices
}

/// The kernel's own encoding of a device number.
fn in_kernel(device: u64) -> u32 {
    // Twelve and twenty bits.
    (major(device) << 20 | minor(device)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_has_all_of_them() {
        let fields = read().expect("fields of the running kernel");
        assert_eq!(fields.sock_common_skc_family, 16);
        assert_eq!(fields.unix_address_len, 4);
        // Kernels before 6.12 lack it.
        let text = format!("{:?}", Fields { fown_struct_file: 0, ..fields });
        assert!(!text.contains(&NO_OFFSET.to_string()), "{text}");
    }

    #[test]
    fn the_root_comes_first_and_once() {
        let devices = guarded_devices(Some(Path::new("/sys/fs/bpf/none")), Some(Path::new("/sys/fs/cgroup")));
        let root = in_kernel(std::fs::metadata("/").expect("root").st_dev());
        assert_eq!(devices[0], root);
        assert!(devices[1] != 0 && !devices[1..].contains(&root), "{devices:?}");
    }
}
