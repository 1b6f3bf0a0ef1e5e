//! Files that send signals for a tagged process (`F_SETOWN` and the like).
//!
//! Remembered by a hash of their address, and for ever: what is remembered too much (another file at the same address, or
//! with the same hash) only means that it cannot signal the sensor either, which nobody needs.

use aya_ebpf::{macros::map, maps::Array};
use sallyport_sensor_abi::fields::OWNED as N_OWNED;

use crate::{
    fields::{self, field},
    read::{self, Address, Unreadable},
};

/// By hash: nonzero if a tagged process made somebody the owner of such a file.
#[map]
static OWNED: Array<u64> = Array::with_max_entries(N_OWNED, 0);

#[inline(always)]
const fn hash(file: Address) -> u32 {
    (file.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as u32
}

const _: () = assert!(N_OWNED == 1 << 12);

/// Remembers a file. One that cannot be read is no file, of which the kernel makes nobody the owner.
#[inline(always)]
pub(crate) fn note(file: Result<Address, Unreadable>) {
    if let Ok(file) = file
        && let Some(entry) = OWNED.get_ptr_mut(hash(file))
    {
        // SAFETY: an entry of an array map; never anything but 0 and 1.
        unsafe { core::ptr::write_volatile(entry, 1) };
    }
}

/// Whether a file may be remembered.
#[inline(always)]
pub(crate) fn is_noted(file: Address) -> bool {
    // SAFETY: an entry of an array map.
    OWNED.get_ptr(hash(file)).is_some_and(|entry| unsafe { core::ptr::read_volatile(entry) } != 0)
}

/// The file of a `fown_struct`.
#[inline(always)]
pub(crate) fn file(owner: Address) -> Result<Address, Unreadable> {
    // SAFETY: points into `FIELDS`.
    match unsafe { fields::load(&raw const (*fields::fields()).fown_struct_file) } {
        Ok(offset) => read::kernel(owner + offset),
        // SAFETY: as above.
        Err(Unreadable) => Ok(owner - unsafe { field!(file_f_owner) }),
    }
}
