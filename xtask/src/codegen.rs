//! `cargo xtask codegen`: turns `crates/contract/proto` into committed Rust, without `protoc`.

use std::path::Path;

use anyhow::{Context, Result};

/// The services' files, relative to the proto folder.
const FILES: [&str; 3] =
    ["sallyport/v1/enrolment.proto", "sallyport/v1/sensor.proto", "sallyport/v1/console.proto"];

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
        .compile_fds(descriptors)
        .context("generate Rust from the .proto files")
}
