//! `cargo xtask codegen`: turns `crates/contract/proto` into committed Rust, without `protoc`.

use std::path::Path;

use anyhow::{Context, Result, bail};

/// The services' files, relative to the proto folder.
const FILES: [&str; 3] =
    ["sallyport/v1/enrolment.proto", "sallyport/v1/sensor.proto", "sallyport/v1/console.proto"];

/// `cargo xtask codegen`
#[derive(clap::Args, Default)]
pub(crate) struct CodegenArguments {
    /// Write nothing; fail if the committed code is not what the .proto files give
    #[arg(long)]
    check: bool,
}

/// Generates, or checks, the committed code.
pub(crate) fn run(arguments: &CodegenArguments) -> Result<()> {
    let contract = crate::places::root().join("crates/contract");
    let committed = contract.join("src/gen");
    if !arguments.check {
        return generate(&contract, &committed);
    }
    match stale(&contract, &committed)? {
        None => Ok(()),
        Some(file) => {
            bail!("{file} is not what the .proto files give: run `cargo xtask codegen`, and commit")
        }
    }
}

/// The first committed file that differs from what would be generated.
fn stale(contract: &Path, committed: &Path) -> Result<Option<String>> {
    let fresh = tempfile::tempdir()?;
    generate(contract, fresh.path())?;
    for entry in std::fs::read_dir(fresh.path())? {
        let entry = entry?;
        let name = entry.file_name();
        let old = std::fs::read(committed.join(&name)).unwrap_or_default();
        if old != std::fs::read(entry.path())? {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// Generates into `out` from the contract crate at `contract`.
pub(crate) fn generate(contract: &Path, out: &Path) -> Result<()> {
    let protos = contract.join("proto");
    let descriptors = protox::compile(FILES, [&protos]).context("compile the .proto files")?;
    std::fs::create_dir_all(out)?;
    tonic_prost_build::configure()
        .out_dir(out)
        // Payloads are shared slices of the receive buffer, not copies.
        .bytes(".sallyport.v1.Chunk.data")
        .bytes(".sallyport.v1.RecordBatch.records")
        .bytes(".sallyport.v1.RecordingChunk.data")
        .bytes(".sallyport.v1.LogEntry.record")
        // One archive for all sensors, however many there are.
        .bytes(".sallyport.v1.PolicyBundle.archive")
        .compile_fds(descriptors)
        .context("generate Rust from the .proto files")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_code_is_fresh() -> Result<()> {
        run(&CodegenArguments { check: true })
    }

    #[test]
    fn a_changed_file_is_found_stale() -> Result<()> {
        let elsewhere = tempfile::tempdir()?;
        let contract = crate::places::root().join("crates/contract");
        generate(&contract, elsewhere.path())?;
        let file = elsewhere.path().join("sallyport.v1.rs");
        std::fs::write(&file, "// edited by hand")?;
        assert_eq!(stale(&contract, elsewhere.path())?.as_deref(), Some("sallyport.v1.rs"));
        Ok(())
    }
}
