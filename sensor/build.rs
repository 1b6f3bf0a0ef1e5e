//! Finds the compiled kernel programs and has them embedded; without them the sensor builds, too, and says so when
//! it starts, so that `cargo check` and clippy need no BPF toolchain.
//!
//! `SALLYPORT_EBPF_OBJECT` names the object; otherwise `cargo xtask ebpf` leaves it in `ebpf/` of the target folder.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=SALLYPORT_EBPF_OBJECT");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let object = match env::var_os("SALLYPORT_EBPF_OBJECT") {
        Some(path) => {
            let path = PathBuf::from(path);
            assert!(path.is_file(), "SALLYPORT_EBPF_OBJECT names `{}`, which is not there", path.display());
            Some(path)
        }
        None => in_target_folder(&out),
    };
    let embedded = out.join("sallyport.bpf.o");
    match &object {
        Some(object) => {
            println!("cargo::rerun-if-changed={}", object.display());
            std::fs::copy(object, &embedded).expect("copy the kernel programs");
        }
        None => std::fs::write(&embedded, []).expect("write an empty object"),
    }
    println!("cargo::rustc-env=SALLYPORT_EBPF_EMBEDDED={}", embedded.display());
}

/// `ebpf/sallyport.bpf.o` in the target folder, which is the nearest one above `out` that cargo has marked (with one
/// file if it made the folder itself, with another in any case).
fn in_target_folder(out: &Path) -> Option<PathBuf> {
    let target = out
        .ancestors()
        .find(|folder| ["CACHEDIR.TAG", ".rustc_info.json"].iter().any(|mark| folder.join(mark).is_file()))?;
    let folder = target.join("ebpf");
    // The folder is watched, since a file that is not there would count as changed every time.
    std::fs::create_dir_all(&folder).ok()?;
    println!("cargo::rerun-if-changed={}", folder.display());
    let object = folder.join("sallyport.bpf.o");
    object.is_file().then_some(object)
}
