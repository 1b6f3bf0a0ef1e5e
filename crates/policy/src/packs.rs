//! The policies that come with this program, so that a bundle can include them wherever it is: `include = ["pack:base"]`.
//!
//! `build.rs` puts them in: every folder of `policies/` with a manifest, but for the demonstration's. Their cases stay out.

/// How an include names a pack.
pub(crate) const PREFIX: &str = "pack:";

/// Files of a pack: path in the bundle, and content.
type Files = &'static [(&'static str, &'static [u8])];

include!(concat!(env!("OUT_DIR"), "/packs.rs"));

/// The files of a pack.
pub(crate) fn find(name: &str) -> Option<Files> {
    PACKS.iter().find(|(known, _)| *known == name).map(|(_, files)| *files)
}

/// The names of all packs.
pub(crate) fn names() -> Vec<&'static str> {
    PACKS.iter().map(|(name, _)| *name).collect()
}

/// The packs that a bundle can include as `pack:NAME`, by name, each with the comment that its manifest begins with.
pub fn packs() -> Vec<(&'static str, String)> {
    let about = |files: Files| {
        let manifest = files.iter().find(|(path, _)| *path == crate::bundle::MANIFEST);
        let text = manifest.and_then(|(_, bytes)| std::str::from_utf8(bytes).ok()).unwrap_or_default();
        let lines = text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim);
        lines.collect::<Vec<_>>().join(" ")
    };
    PACKS.iter().map(|(name, files)| (*name, about(files))).collect()
}

/// A file of a pack.
pub fn pack_file(name: &str, path: &str) -> Option<&'static [u8]> {
    find(name)?.iter().find(|(known, _)| *known == path).map(|(_, bytes)| *bytes)
}
