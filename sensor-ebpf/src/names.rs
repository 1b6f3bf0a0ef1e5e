//! Registered names: files and folders that rules speak of, met by the path walk under another name.
//!
//! A hard link, a bind mount or a renamed folder leads to an inode in map `NAMES`; the file is then judged by the
//! registered name with the rest of its path behind it, too. Of a bind mount of a folder *below* a registered one the
//! walk sees nothing above, so it is walked a second time inside its file system ([`inside`]).

use sallyport_sensor_abi::{
    PATH_BYTES,
    names::{Inode, NAME_BYTES, NAMES_JUDGED, Name, named_bit},
};

use crate::{
    maps::{NAMED, NAMES, SCRATCH},
    path,
    read::{self, Address, Unreadable, offset},
    scratch::{Hit, Scratch},
};

/// Notes the inode at kernel address `inode`, if it is registered.
///
/// # Safety
/// `area` must be claimed.
#[inline(always)]
pub(crate) unsafe fn note(area: *mut Scratch, inode: Address) -> Result<(), Unreadable> {
    // SAFETY: offsets point into `OFFSETS`.
    unsafe {
        let number: u64 = read::kernel(inode + offset!(inode_i_ino))?;
        if !may_be_named(number) {
            return Ok(());
        }
        let sb: Address = read::kernel(inode + offset!(inode_i_sb))?;
        let device: u32 = read::kernel(sb + offset!(super_block_s_dev))?;
        let key = Inode { inode: number, device, _pad: 0 };
        let Some(name) = NAMES.get_ptr(key) else { return Ok(()) };
        (*area).name_flags |= (*name).flags;
        let hits = (*area).hits;
        if hits < NAMES_JUDGED {
            let hit = Hit { inode: key, from: (*area).path, _pad: 0 };
            // One by one: the verifier wants constant places.
            if hits == 0 {
                (*area).hit[0] = hit;
            } else {
                (*area).hit[1] = hit;
            }
            (*area).hits = hits + 1;
        }
    }
    Ok(())
}

/// Whether any registered inode has a number of this kind.
#[inline(always)]
fn may_be_named(number: u64) -> bool {
    let bit = named_bit(number);
    // SAFETY: an entry of an array map. Volatile: user space writes to it.
    NAMED
        .get_ptr(bit / 64)
        .is_some_and(|word| unsafe { core::ptr::read_volatile(word) } >> (bit % 64) & 1 != 0)
}

/// Makes the path of area `index` that of the registered name that was met as number `which`: the name, then what
/// followed. 0: the path is that already, or the name is not registered any more.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn take_name(index: u32, which: u32) -> u32 {
    let Some(area) = SCRATCH.get_ptr_mut(index) else { return 0 };
    u32::from(take(area, which).is_some())
}

#[inline(always)]
fn take(area: *mut Scratch, which: u32) -> Option<()> {
    // SAFETY: the caller claimed `area`.
    unsafe {
        let hit = if which == 0 { (*area).hit[0] } else { (*area).hit[1] };
        let name: *const Name = NAMES.get_ptr(hit.inode)?;
        let len = (*name).path_len;
        if len == 0 || len as usize > NAME_BYTES || hit.from > PATH_BYTES as u32 || hit.from < len {
            return None;
        }
        let at = hit.from - len;
        let offset = (read::opaque(u64::from(at)) & (PATH_BYTES as u64 - 1)) as usize;
        let bytes = (&raw mut (*area).bytes).cast::<u8>().add(offset);
        let text = (&raw const (*name).path).cast::<u8>();
        if at == (*area).path && same(bytes, text, len) {
            return None;
        }
        let len = (read::opaque(u64::from(len)) & 0xff) as u32;
        read::kernel_bytes(bytes, len, text as Address).ok()?;
        (*area).path = at;
    }
    Some(())
}

/// Whether two texts are equal.
///
/// # Safety
/// Both must go on for [`NAME_BYTES`] bytes.
#[inline(always)]
unsafe fn same(a: *const u8, b: *const u8, len: u32) -> bool {
    let mut done = 0;
    while done < NAME_BYTES as u32 {
        if done >= len {
            break;
        }
        // SAFETY: the caller's promise.
        let differs = unsafe { read::word(a.add(done as usize)) ^ read::word(b.add(done as usize)) };
        let left = len - done;
        // The last word may end before its eighth byte.
        let differs = if left < 8 { differs << ((8 - left) * 8) } else { differs };
        if differs != 0 {
            return false;
        }
        done = read::opaque(u64::from(done) + 8) as u32;
    }
    true
}

/// Prepares the second walk, inside the file system of the first mount that shows only a part of it. `None`: there was
/// no such mount.
#[inline(always)]
pub(crate) fn inside(index: u32, area: *mut Scratch) -> Option<()> {
    // SAFETY: the caller claimed `area`.
    unsafe {
        let part = (*area).part;
        if part == 0 {
            return None;
        }
        (*area).path = (*area).part_from;
        (*area).dentry = part;
        // No dentry is that, so the walk goes up to the root of the file system.
        (*area).root = 0;
        (*area).hits = 0;
    }
    // Its outcome is of no account: what it met is.
    let _ = path::climb(index, area);
    Some(())
}
