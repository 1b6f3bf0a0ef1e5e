//! Puts the shipped packs into the crate: see `src/packs.rs`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("../../policies");
    println!("cargo:rerun-if-changed={}", root.display());
    let mut packs: Vec<PathBuf> =
        fs::read_dir(&root)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    packs.sort();
    let mut text = String::from("static PACKS: &[(&str, Files)] = &[\n");
    for folder in packs {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("demo") || !folder.join("bundle.toml").is_file() {
            continue;
        }
        println!("cargo:rerun-if-changed={}", folder.display());
        let mut files = Vec::new();
        collect(&folder, "", &mut files)?;
        files.sort();
        let _ = writeln!(text, "    ({name:?}, &[");
        for (path, file) in files {
            println!("cargo:rerun-if-changed={}", file.display());
            let _ = writeln!(text, "        ({path:?}, include_bytes!({:?})),", fs::canonicalize(&file)?);
        }
        text.push_str("    ]),\n");
    }
    text.push_str("];\n");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    fs::write(out.join("packs.rs"), text)
}

/// The files that belong into a bundle, without its cases.
fn collect(folder: &Path, prefix: &str, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let inside = format!("{prefix}{name}");
        if path.is_dir() {
            if !(name.starts_with('.') || prefix.is_empty() && name == "tests") {
                collect(&path, &format!("{inside}/"), files)?;
            }
        } else if name == "bundle.toml" || name == "entities.json" || name.ends_with(".cedar") {
            files.push((inside, path));
        }
    }
    Ok(())
}
