//! Evidence: the record envelope, the Merkle log's arithmetic, checkpoints, offline verification, signed orders.
//!
//! Pure: no IO, no clock, no async. What is verified here needs no network and no key but the log's public one.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod merkle;
pub mod note;
pub mod order;
pub mod record;
pub mod statement;
pub mod verify;

pub use checkpoint::Checkpoint;
pub use order::PolicyOrder;
pub use record::Record;
pub use statement::Statement;
