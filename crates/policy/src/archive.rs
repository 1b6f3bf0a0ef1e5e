//! The canonical archive of a bundle: one byte string per set of files.
//!
//! Layout, all numbers 32 bits, big endian: magic `SALLYPORT-BUNDLE`, format version, number of files; then for each
//! file, in ascending order of path bytes: length of the path, path, length of the content, content. Nothing
//! after that. An archive in any other form is refused, so the version of a bundle has one meaning.

use std::collections::BTreeMap;

use crate::bundle::{BundleError, ENTITIES, INCLUDE, MANIFEST};

/// First bytes of every archive.
const MAGIC: &[u8; 16] = b"SALLYPORT-BUNDLE";
/// Version of the layout.
const FORMAT: u32 = 1;
/// Content of all files together, in bytes.
pub(crate) const MAX_BYTES: usize = 8 << 20;
/// Number of files.
pub(crate) const MAX_FILES: usize = 1_000;
/// Length of a path in bytes.
pub(crate) const MAX_PATH: usize = 255;
/// Folders within folders.
pub(crate) const MAX_DEPTH: usize = 16;

/// Whether a file of this path is part of a bundle.
pub(crate) fn belongs(path: &str) -> bool {
    let own = match path.strip_prefix(INCLUDE) {
        Some(rest) => rest.split_once('/').map_or("", |(_, own)| own),
        None => path,
    };
    own == MANIFEST
        || own == ENTITIES
        || own.ends_with(".cedar")
        || (own.starts_with("tests/") && own.ends_with(".toml"))
}

/// Checks the form of a path.
pub(crate) fn check_path(path: &str) -> Result<(), BundleError> {
    let fault = |why| Err(BundleError::Path { path: path.escape_debug().to_string(), why });
    if path.len() > MAX_PATH {
        return fault("it is longer than 255 bytes");
    }
    let included = usize::from(path.starts_with(INCLUDE));
    if path.split('/').count() > MAX_DEPTH + 1 + included {
        return fault("its folders are nested too deeply");
    }
    for part in path.split('/') {
        if part.is_empty() || part.starts_with('.') {
            return fault("its parts must not be empty or begin with a dot");
        }
        if !part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
            return fault("only letters, digits, `-`, `_`, `.` and `/` may be used");
        }
    }
    if !belongs(path) {
        return fault("only bundle.toml, entities.json, *.cedar and tests/*.toml belong into a bundle");
    }
    Ok(())
}

/// Checks all paths and limits.
pub(crate) fn check(files: &BTreeMap<String, Vec<u8>>) -> Result<(), BundleError> {
    if files.len() > MAX_FILES {
        return Err(BundleError::TooLarge { what: "the number of files", limit: MAX_FILES });
    }
    let mut total = 0usize;
    for (path, content) in files {
        check_path(path)?;
        // Both could not lie in one folder, and every version must be one that can be written into a folder.
        let folders = path.match_indices('/').map(|(at, _)| &path[..at]);
        if folders.into_iter().any(|folder| files.contains_key(folder)) {
            let why = "a file has the name of a folder that it lies in";
            return Err(BundleError::Path { path: path.clone(), why });
        }
        total = total.saturating_add(content.len());
        if total > MAX_BYTES {
            return Err(BundleError::TooLarge { what: "the total size in bytes", limit: MAX_BYTES });
        }
    }
    if !files.contains_key(MANIFEST) {
        return Err(BundleError::Archive("it has no `bundle.toml`"));
    }
    Ok(())
}

/// Encodes; the files were checked when the bundle was made, so every length fits 32 bits.
pub(crate) fn encode(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes();
    let size: usize = files.iter().map(|(path, content)| 8 + path.len() + content.len()).sum();
    let mut out = Vec::with_capacity(MAGIC.len() + 8 + size);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&FORMAT.to_be_bytes());
    out.extend_from_slice(&number(files.len()));
    for (path, content) in files {
        out.extend_from_slice(&number(path.len()));
        out.extend_from_slice(path.as_bytes());
        out.extend_from_slice(&number(content.len()));
        out.extend_from_slice(content);
    }
    out
}

/// Decodes untrusted bytes.
pub(crate) fn decode(bytes: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, BundleError> {
    let mut rest = bytes;
    if take(&mut rest, MAGIC.len())? != MAGIC {
        return Err(BundleError::Archive("it does not begin as one"));
    }
    if number(&mut rest)? != FORMAT as usize {
        return Err(BundleError::Archive("its format is of another version"));
    }
    let count = number(&mut rest)?;
    if count > MAX_FILES {
        return Err(BundleError::TooLarge { what: "the number of files", limit: MAX_FILES });
    }
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut total = 0usize;
    for _ in 0..count {
        let length = number(&mut rest)?;
        if length > MAX_PATH {
            return Err(BundleError::TooLarge { what: "a path in bytes", limit: MAX_PATH });
        }
        let path = std::str::from_utf8(take(&mut rest, length)?)
            .map_err(|_| BundleError::Archive("a path is not UTF-8"))?;
        check_path(path)?;
        if files.last_key_value().is_some_and(|(last, _)| last.as_str() >= path) {
            return Err(BundleError::Archive("its files are not in ascending order"));
        }
        let length = number(&mut rest)?;
        total = total.saturating_add(length);
        if total > MAX_BYTES {
            return Err(BundleError::TooLarge { what: "the total size in bytes", limit: MAX_BYTES });
        }
        files.insert(path.to_owned(), take(&mut rest, length)?.to_vec());
    }
    if !rest.is_empty() {
        return Err(BundleError::Archive("bytes follow its end"));
    }
    check(&files)?;
    Ok(files)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], BundleError> {
    let (taken, left) = rest.split_at_checked(length).ok_or(BundleError::Archive("it is cut off"))?;
    *rest = left;
    Ok(taken)
}

fn number(rest: &mut &[u8]) -> Result<usize, BundleError> {
    let bytes = take(rest, 4)?;
    Ok(bytes.iter().fold(0usize, |n, byte| n << 8 | usize::from(*byte)))
}

/// For fuzzing: whatever the bytes, decoding neither panics nor accepts a second form of a bundle.
#[doc(hidden)]
pub fn fuzz_archive(bytes: &[u8]) {
    if let Ok(files) = decode(bytes) {
        assert_eq!(encode(&files), bytes, "an archive has one form only");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let files = BTreeMap::from([
            (MANIFEST.to_owned(), b"name = \"x\"".to_vec()),
            ("a/b.cedar".to_owned(), b"permit(principal, action, resource);".to_vec()),
        ]);
        encode(&files)
    }

    #[test]
    fn a_bundle_survives() {
        let files = decode(&sample()).expect("valid");
        assert_eq!(files.len(), 2);
        assert_eq!(encode(&files), sample());
    }

    #[test]
    fn every_cut_and_every_flip_ends_in_an_error_or_a_bundle() {
        let whole = sample();
        for length in 0..whole.len() {
            assert!(decode(&whole[..length]).is_err(), "cut to {length}");
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                fuzz_archive(&bytes);
            }
        }
    }

    #[test]
    fn hostile_paths_and_sizes_are_refused() {
        let both = BTreeMap::from([
            (MANIFEST.to_owned(), Vec::new()),
            ("a.cedar".to_owned(), Vec::new()),
            ("a.cedar-b.cedar".to_owned(), Vec::new()),
            ("a.cedar/b.cedar".to_owned(), Vec::new()),
        ]);
        assert!(matches!(decode(&encode(&both)), Err(BundleError::Path { .. })));
        for path in ["../x.cedar", "/x.cedar", "a//x.cedar", ".git/x.cedar", "x.sh", "a\0.cedar", "include/x"]
        {
            assert!(check_path(path).is_err(), "{path}");
        }
        let mut huge = MAGIC.to_vec();
        huge.extend_from_slice(&FORMAT.to_be_bytes());
        huge.extend_from_slice(&u32::MAX.to_be_bytes());
        assert!(matches!(decode(&huge), Err(BundleError::TooLarge { .. })));
        let mut more = sample();
        more.push(0);
        assert!(matches!(decode(&more), Err(BundleError::Archive(_))));
    }

    #[test]
    fn a_second_order_of_the_same_files_is_refused() {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&FORMAT.to_be_bytes());
        out.extend_from_slice(&2u32.to_be_bytes());
        for path in ["bundle.toml", "a.cedar"] {
            out.extend_from_slice(&(path.len() as u32).to_be_bytes());
            out.extend_from_slice(path.as_bytes());
            out.extend_from_slice(&0u32.to_be_bytes());
        }
        assert!(matches!(decode(&out), Err(BundleError::Archive(why)) if why.contains("order")));
    }
}
