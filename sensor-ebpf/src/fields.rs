//! Offsets that only hooks on sockets and on the system need; see `sensor-abi/src/fields.rs`.

use sallyport_sensor_abi::fields::Fields;

/// Written by the loader, then frozen by the kernel.
#[unsafe(no_mangle)]
// SAFETY: words only; every bit pattern is a value.
static FIELDS: Fields = unsafe { core::mem::zeroed() };

/// Reads one offset, or fails if this kernel has no such field. A macro since each must be its own volatile load: the
/// compiler knows only zeros.
macro_rules! field {
    ($field:ident) => {
        $crate::fields::load(&raw const (*$crate::fields::fields()).$field)?
    };
}
pub(crate) use field;

#[inline(always)]
pub(crate) const fn fields() -> *const Fields {
    &raw const FIELDS
}

/// The offset behind `field`.
///
/// # Safety
/// `field` must point into [`FIELDS`].
#[inline(always)]
pub(crate) unsafe fn load(field: *const u32) -> Result<u64, crate::read::Unreadable> {
    // SAFETY: the caller's promise; `FIELDS` is always initialised.
    let offset = u64::from(unsafe { core::ptr::read_volatile(field) });
    if crate::read::has(offset) { Ok(offset) } else { Err(crate::read::Unreadable) }
}
