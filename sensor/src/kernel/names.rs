//! Registered names: files and folders that rules speak of, by inode.

use std::collections::HashMap;
use std::mem::offset_of;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use sallyport_sensor_abi::names::{
    Inode, MAX_NAMES, NAME_BYTES, NAME_GUARDED, NAME_SECRET, NAMED_WORDS, Name, named_bit,
};
use sallyport_sensor_abi::session::{HOST_GUARDED_NAMES, HOST_SECRET_NAMES, Host};

use super::host::map_error;
use super::{Kernel, KernelError};

impl Kernel {
    /// Registers names for inodes; what was registered before and is not among them is forgotten.
    ///
    /// A name that stays is never missing meanwhile. An inode has one name: the last one given counts. Inodes are those
    /// of the file system itself (`s_dev`): where `stat` shows another device, as on btrfs, take that from `mountinfo`.
    pub fn set_names(&self, names: impl IntoIterator<Item = (Inode, Name)>) -> Result<(), KernelError> {
        let wanted: HashMap<Inode, Name> = names.into_iter().collect();
        if wanted.len() > MAX_NAMES as usize {
            return Err(KernelError::Full { what: "registered names", limit: MAX_NAMES });
        }
        let mut words = vec![0_u64; NAMED_WORDS as usize];
        let mut flags = 0;
        for (inode, name) in &wanted {
            let bit = named_bit(inode.inode);
            words[bit as usize / 64] |= 1 << (bit % 64);
            if name.flags & (NAME_GUARDED | NAME_SECRET) != 0 {
                flags |= HOST_GUARDED_NAMES;
            }
            if name.flags & NAME_SECRET != 0 {
                flags |= HOST_SECRET_NAMES;
            }
        }
        let mut map = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let before: HashMap<Inode, Name> =
            map.iter().collect::<Result<_, _>>().map_err(|source| map_error("NAMES", source))?;
        // First everything that is added, last what goes.
        let host = self.host_word(offset_of!(Host, flags));
        host.fetch_or(flags, Ordering::SeqCst);
        let named = |word: usize| self.named.double_word(word as u32, 0);
        for (i, bits) in words.iter().enumerate().filter(|(_, bits)| **bits != 0) {
            named(i).fetch_or(*bits, Ordering::SeqCst);
        }
        // Room first, if both together are too many: what goes is wanted by no rule.
        for inode in before.keys().filter(|inode| !wanted.contains_key(inode)) {
            let _ = map.remove(inode);
        }
        for (inode, name) in wanted.iter().filter(|(inode, name)| before.get(inode) != Some(name)) {
            map.insert(inode, name, 0).map_err(|source| map_error("NAMES", source))?;
        }
        for (i, bits) in words.iter().enumerate() {
            named(i).store(*bits, Ordering::SeqCst);
        }
        host.fetch_and(flags | !(HOST_GUARDED_NAMES | HOST_SECRET_NAMES), Ordering::SeqCst);
        Ok(())
    }
}

/// An entry for [`Kernel::set_names`]. `None`: the path is empty or longer than [`NAME_BYTES`].
#[must_use]
pub fn name(path: &[u8], flags: u32) -> Option<Name> {
    let mut name = Name { flags, path_len: u32::try_from(path.len()).ok()?, path: [0; NAME_BYTES] };
    if path.is_empty() {
        return None;
    }
    name.path.get_mut(..path.len())?.copy_from_slice(path);
    Some(name)
}
