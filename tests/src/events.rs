//! What the log says: records as `sallyport events --json` prints them.

use anyhow::{Context, Result};
use sallyport_evidence::Record;
use sallyport_evidence::record::{Kind, Outcome};
use serde_json::Value;

use crate::command_line::Person;
use crate::wait;

/// A record and its index in the log.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Index in the log.
    pub index: u64,
    /// The record.
    pub record: Record,
}

impl Entry {
    fn parse(line: &Value) -> Result<Self> {
        let index = line["index"].as_u64().context("an event without index")?;
        let record = serde_json::from_value(line["record"].clone()).context("an event that is no record")?;
        Ok(Self { index, record })
    }

    /// Is it a refusal (or a kill) by policy?
    #[must_use]
    pub fn is_denial(&self) -> bool {
        let outcome = self.record.decision.as_ref().map(|decision| decision.outcome);
        matches!(outcome, Some(Outcome::Blocked | Outcome::Killed))
    }

    /// Is it about the execution of the program at `path`?
    #[must_use]
    pub fn is_exec_of(&self, path: &str) -> bool {
        self.record.kind == Kind::Exec
            && self.record.process.as_ref().is_some_and(|process| process.path == path)
    }

    /// Is it about a connection to this address and port?
    #[must_use]
    pub fn is_connect_to(&self, address: std::net::SocketAddr) -> bool {
        self.record.kind == Kind::Connect
            && self.record.endpoint.as_ref().is_some_and(|endpoint| {
                endpoint.address == address.ip().to_string() && endpoint.port == address.port()
            })
    }

    /// The rule that decided.
    #[must_use]
    pub fn rule(&self) -> &str {
        self.record.decision.as_ref().map_or("", |decision| &decision.rule)
    }

    /// The session it belongs to.
    #[must_use]
    pub fn session(&self) -> &str {
        self.record.session.as_ref().map_or("", |session| &session.id)
    }
}

/// All records that `arguments` (of `sallyport events`) select, oldest first.
///
/// # Errors
/// The gateway refuses, or the person may not read evidence.
pub fn all(reader: &Person, arguments: &[&str]) -> Result<Vec<Entry>> {
    let arguments = [&["events", "--limit", "0"], arguments].concat();
    reader.json(&arguments)?.iter().map(Entry::parse).collect()
}

/// Index after the newest record: what comes from now on has this index or a later one.
///
/// # Errors
/// As [`all`].
pub fn end(reader: &Person) -> Result<u64> {
    Ok(all(reader, &[])?.last().map_or(0, |entry| entry.index + 1))
}

/// Waits until a record from index `from` on is as `wanted` says: records arrive after what they tell of.
///
/// # Errors
/// None arrives in time.
pub fn wait_for(reader: &Person, from: u64, what: &str, wanted: impl Fn(&Entry) -> bool) -> Result<Entry> {
    wait::until(&format!("a record of {what}"), wait::PATIENCE, || {
        Ok(all(reader, &[])?.into_iter().find(|entry| entry.index >= from && wanted(entry)))
    })
}
