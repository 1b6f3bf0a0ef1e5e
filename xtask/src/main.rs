//! Everything a developer or CI runs.

mod codegen;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match std::env::args().nth(1).as_deref() {
        Some("codegen") => {
            let contract = root.join("crates/contract");
            codegen::generate(&contract, &contract.join("src/gen"))
        }
        _ => bail!("usage: cargo xtask codegen"),
    }
}
