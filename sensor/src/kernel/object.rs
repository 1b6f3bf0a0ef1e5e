//! The compiled kernel programs, embedded at build time (`build.rs`).

use sha2::{Digest as _, Sha256};

static BYTES: &[u8] = aya::include_bytes_aligned!(env!("SALLYPORT_EBPF_EMBEDDED"));

/// The object; empty if the sensor was built without it.
pub(super) fn bytes() -> &'static [u8] {
    BYTES
}

/// Its SHA-256, as the words that are kept in map `META`.
pub(super) fn digest() -> [u64; 4] {
    let digest = Sha256::digest(BYTES);
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(digest.chunks_exact(8)) {
        *word = bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    words
}
