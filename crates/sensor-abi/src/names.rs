//! Names of files that rules speak of, by device and inode.
//!
//! A rule on a path would not see a hard link, a bind mount or a renamed folder. So the sensor registers the files and
//! folders that the loaded policies name literally: map `NAMES`, keyed by [`Inode`]. The path walk looks up every
//! folder it passes; where it meets a registered one by another way, the file is judged by the registered name, too.

/// Key of map `NAMES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Inode {
    /// Inode number.
    pub inode: u64,
    /// Device of its superblock (`s_dev`, kernel encoding: major << 20 | minor).
    pub device: u32,
    /// Always zero.
    pub _pad: u32,
}

/// Value of map `NAMES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// [`NAME_GUARDED`].
    pub flags: u32,
    /// Bytes of [`Self::path`], at most [`NAME_BYTES`].
    pub path_len: u32,
    /// Absolute path, not terminated.
    pub path: [u8; NAME_BYTES],
}

/// It belongs to the sensor: no tagged process may open it for writing, create, delete, rename, link or change anything in it, and of what lies
/// below [`NAME_SECRET`] not even read, whatever policy says.
pub const NAME_GUARDED: u32 = 1;
/// Nor may a tagged process read it.
pub const NAME_SECRET: u32 = 2;
/// Longest registered name; a longer one is not registered, and the sensor says so.
pub const NAME_BYTES: usize = 248;
/// Registered names at most.
pub const MAX_NAMES: u32 = 16_384;
/// Registered names that one path is judged by at most, beside the path itself: the first ones met on the way up.
pub const NAMES_JUDGED: u32 = 2;

/// Words (`u64`) of array map `NAMED`: a bit for each value of [`named_bit`]; clear: no registered inode has it. Spares most files the
/// hash table. User space only sets bits (and rewrites all of it when names were removed).
pub const NAMED_WORDS: u32 = 1 << 10;

/// The bit of an inode number in `NAMED`.
#[must_use]
pub const fn named_bit(inode: u64) -> u32 {
    (inode.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u32
}

const _: () = assert!(size_of::<Inode>() == 16 && size_of::<Name>() == 256);
const _: () = assert!(NAMED_WORDS * 64 == 1 << 16);

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, integers only, no implicit padding (the size assertion above).
#[allow(unsafe_code, reason = "aya::Pod is an unsafe trait and the orphan rule puts the impl here")]
unsafe impl aya::Pod for Inode {}

#[cfg(feature = "user")]
// SAFETY: as above.
#[allow(unsafe_code, reason = "aya::Pod is an unsafe trait and the orphan rule puts the impl here")]
unsafe impl aya::Pod for Name {}
