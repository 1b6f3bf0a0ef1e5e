//! LSM `file_receive`: descriptors that another process hands over.
//!
//! Sees: `SCM_RIGHTS`, `pidfd_getfd`, descriptors that a seccomp supervisor adds. Judged: sockets of all families but
//! Unix, by whether the session made them (one that it accepted, or that was made too long ago, counts as made
//! outside); `io_uring` rings, which can have such sockets registered; Unix sockets that are connected to a named one,
//! as if connected now. Guarded: maps, programs and links of `bpf()`. Files and folders pass: they are judged when
//! they are used by name, and what was opened outside is the outside's doing. Needs: 5.7 and BPF LSM. On error:
//! denied.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use sallyport_sensor_abi::{
    policy::operation::{BPF, RECEIVE_SOCKET},
    session::Tag,
};

use crate::{
    fields::field,
    guard,
    read::{self, Address, Unreadable, offset},
    sockets,
    system::{ALLOW, argument, ask_outside, guard as refuse, tag, unreadable},
    unix,
};

const SOCKFS: u64 = 0x534f_434b;
const ANON_INODES: u64 = 0x0904_1934;
const AF_UNIX: u32 = 1;

/// What was handed over.
enum Received {
    /// Nothing that is judged here.
    Other,
    /// A socket of this family.
    Socket { family: u32, own: bool },
    /// The peer of a Unix socket.
    Unix { peer: Address },
    /// Something of `bpf()`.
    Bpf,
}

/// match-proto:v5.10:include/linux/lsm_hook_defs.h:LSM_HOOK(int, 0, file_receive, struct file *file)
#[lsm(hook = "file_receive")]
pub fn sally_receive(ctx: LsmContext) -> i32 {
    let Some(tag) = tag() else { return ALLOW };
    match argument(&ctx, 0).and_then(|file| look(file, &tag)) {
        Ok(Received::Other) => ALLOW,
        Ok(Received::Socket { family, own }) => ask_outside(RECEIVE_SOCKET, family, !own),
        Ok(Received::Unix { peer }) => unix::judge(Ok(peer)),
        Ok(Received::Bpf) => refuse(BPF, 0),
        Err(Unreadable) => unreadable(RECEIVE_SOCKET, 0),
    }
}

#[inline(always)]
fn look(file: Address, tag: &Tag) -> Result<Received, Unreadable> {
    // SAFETY: offsets point into `OFFSETS` and `FIELDS`.
    unsafe {
        let inode: Address = read::kernel(file + offset!(file_f_inode))?;
        let magic = guard::magic(inode)?;
        if magic == SOCKFS {
            let socket: Address = read::kernel(file + field!(file_private_data))?;
            let sock = sockets::of(socket)?;
            let family = sockets::family(sock)?;
            if family != AF_UNIX {
                return Ok(Received::Socket { family, own: sockets::own(sock, tag)? });
            }
            let peer: Address = read::kernel(sock + field!(unix_sock_peer))?;
            return Ok(if peer == 0 { Received::Other } else { Received::Unix { peer } });
        }
        if magic != ANON_INODES {
            return Ok(Received::Other);
        }
        let dentry: Address = read::kernel(file + offset!(file_f_path) + offset!(path_dentry))?;
        let name: Address = read::kernel(dentry + offset!(dentry_d_name) + 8)?;
        let name: u64 = read::kernel(name)?;
        // `[io_urin`, `bpf`: the first bytes of what the kernel calls them.
        if name == u64::from_ne_bytes(*b"[io_urin") {
            return Ok(Received::Socket { family: 0, own: false });
        }
        let bpf = u64::from_ne_bytes(*b"bpf\0\0\0\0\0");
        Ok(if name & 0x00ff_ffff == bpf { Received::Bpf } else { Received::Other })
    }
}
