//! The peer of a Unix socket, by its own name.
//!
//! An abstract name is any bytes; rules know it as `@` and those bytes, in which a zero byte is `\0` and a backslash is
//! `\\`, so that no two names look alike (many programs pad names with zero bytes, which makes another name). No
//! path begins with `@`.

use sallyport_sensor_abi::{PATH_BYTES, event::cause, policy::file_op};

use crate::{
    fields::field,
    file,
    maps::SCRATCH,
    path,
    read::{self, Address, Unreadable, next, offset},
    scratch::{CHUNK_AT, Scratch},
    system::ALLOW,
};

/// `struct sockaddr_un`: the family, then at most this many bytes of name, rounded up to a power of two.
const FAMILY_BYTES: u64 = 2;
const NAME_BYTES: u32 = 108;

enum Peer {
    /// Made by `socketpair`, or never bound.
    Unnamed,
    /// Bound in a folder.
    File { mount: Address, dentry: Address },
    /// Bound to a name of this many bytes, the first of which is zero.
    Abstract { name: Address, len: u32 },
}

/// Judges reaching `peer`, a `struct sock`.
#[inline(always)]
pub(crate) fn judge(peer: Result<Address, Unreadable>) -> i32 {
    match peer.and_then(look) {
        Ok(Peer::Unnamed) => ALLOW,
        Ok(Peer::File { mount, dentry }) => file::judge(file_op::UNIX, mount, dentry),
        Ok(Peer::Abstract { name, len }) => file::judge_abstract(name, len),
        Err(Unreadable) => file::judge_abstract(0, 0),
    }
}

#[inline(always)]
fn look(peer: Address) -> Result<Peer, Unreadable> {
    // SAFETY: offsets point into `OFFSETS` and `FIELDS`.
    unsafe {
        let path = peer + field!(unix_sock_path);
        let dentry: Address = read::kernel(path + offset!(path_dentry))?;
        if dentry != 0 {
            return Ok(Peer::File { mount: read::kernel(path + offset!(path_mnt))?, dentry });
        }
        let address: Address = read::kernel(peer + field!(unix_sock_addr))?;
        if address == 0 {
            return Ok(Peer::Unnamed);
        }
        let len: u32 = read::kernel(address + field!(unix_address_len))?;
        if len <= FAMILY_BYTES as u32 {
            return Ok(Peer::Unnamed);
        }
        let name = address + field!(unix_address_name) + FAMILY_BYTES;
        // A path, but no file any more: the socket is being closed.
        if read::kernel::<u8>(name)? != 0 || len > FAMILY_BYTES as u32 + NAME_BYTES {
            return Err(Unreadable);
        }
        Ok(Peer::Abstract { name, len: len - FAMILY_BYTES as u32 })
    }
}

/// Writes the name of `len` bytes at `name` as rules know it to where the area has paths.
#[inline(always)]
pub(crate) fn spell(index: u32, name: Address, len: u32) -> Result<(), u32> {
    if spell_name(index, name, len) == 0 { Ok(()) } else { Err(cause::READ_FAILED) }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn spell_name(index: u32, name: u64, len: u32) -> u32 {
    let Some(area) = SCRATCH.get_ptr_mut(index) else { return 1 };
    u32::from(try_spell(area, name, len).is_err())
}

#[inline(always)]
fn try_spell(area: *mut Scratch, name: Address, len: u32) -> Result<(), Unreadable> {
    // SAFETY: the caller claimed `area`. Each index is masked: `bytes` has `PATH_BYTES` and more, and 128 from `CHUNK_AT`.
    unsafe {
        (*area).path = PATH_BYTES as u32;
        (*area).flags = 0;
        (*area).inode = 0;
        (*area).device = 0;
        (*area).mode = 0;
        (*area).place = path::IN_TREE;
        (*area).part = 0;
        (*area).hits = 0;
        (*area).name_flags = 0;
        if len == 0 {
            return Err(Unreadable);
        }
        let source = (&raw mut (*area).bytes).cast::<u8>().add(CHUNK_AT as usize);
        let bytes = (read::opaque(u64::from(len)) & 0x7f) as u32;
        read::kernel_bytes(source, bytes, name)?;
        let mut turn = 0;
        while turn < NAME_BYTES {
            let left = bytes.wrapping_sub(turn);
            // The first byte, which is zero, says that the name is abstract.
            if left <= 1 || left > NAME_BYTES {
                break;
            }
            let at = (read::opaque(u64::from(left - 1)) & 0x7f) as usize;
            let byte = *source.add(at);
            if byte == 0 {
                put(area, b'0');
                put(area, b'\\');
            } else {
                put(area, byte);
                if byte == b'\\' {
                    put(area, byte);
                }
            }
            turn = next(turn);
        }
        put(area, b'@');
    }
    Ok(())
}

/// Puts a byte before the path.
///
/// # Safety
/// `area` must be claimed.
#[inline(always)]
unsafe fn put(area: *mut Scratch, byte: u8) {
    // Kept in memory, of which the verifier knows nothing: it need not follow every spelling there could be.
    // SAFETY: the caller's promise; the index is masked.
    unsafe {
        let at = core::ptr::read_volatile(&raw const (*area).path).wrapping_sub(1);
        let at = (read::opaque(u64::from(at)) & (PATH_BYTES as u64 - 1)) as u32;
        *(&raw mut (*area).bytes).cast::<u8>().add(at as usize) = byte;
        core::ptr::write_volatile(&raw mut (*area).path, at);
    }
}
