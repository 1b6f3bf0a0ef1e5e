//! Faults of a configuration: collected, so that all are listed at once.

use serde::de::DeserializeOwned;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;
use toml::{Table, Value};

/// Every fault found, each with its key and what to do.
#[derive(Debug, Default)]
pub struct Faults(Vec<Fault>);

#[derive(Debug)]
struct Fault {
    key: String,
    problem: String,
}

impl Faults {
    /// Adds one: `key` as in the file (`ssh.listen`), `problem` says what is wrong and what to write instead.
    pub fn add(&mut self, key: &str, problem: impl Into<String>) {
        self.0.push(Fault { key: key.to_owned(), problem: problem.into() });
    }
    /// None so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// An `IP:PORT`; a fault and `None` otherwise.
    pub fn address(&mut self, key: &str, value: &str) -> Option<SocketAddr> {
        match value.parse() {
            Ok(address) => Some(address),
            Err(_) => {
                self.add(key, format!("`{value}` is not an address; write IP:PORT, such as \"0.0.0.0:2222\" or \"[::]:2222\""));
                None
            }
        }
    }

    /// A time span such as `90s`, `30m`, `12h`, `7d`; a fault and `None` otherwise.
    pub fn duration(&mut self, key: &str, value: &str) -> Option<Duration> {
        let parsed = parse_duration(value);
        if parsed.is_none() {
            self.add(
                key,
                format!("`{value}` is not a time span; write a number and s, m, h or d, such as \"12h\""),
            );
        }
        parsed
    }
}

/// A time span such as `90s`, `30m`, `12h`, `7d`.
#[must_use]
pub fn parse_duration(value: &str) -> Option<Duration> {
    let (at, unit) = value.char_indices().last()?;
    let n: u64 = value[..at].parse().ok()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    n.checked_mul(seconds).filter(|&s| s > 0).map(Duration::from_secs)
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            let end = if i + 1 < self.0.len() { "\n" } else { "" };
            write!(f, "  {}: {}{end}", fault.key, fault.problem)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Deserialises a section. Each fault is noted and mended from the default, so that the next one is found too.
pub(crate) fn fill<T: DeserializeOwned>(
    section: &str,
    (mut table, default): (Table, Table),
    faults: &mut Faults,
) -> Option<T> {
    let path = |key: &str| if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
    // Each turn mends one key; more keys than this are no configuration.
    for _ in 0..200 {
        let message = match T::deserialize(Value::Table(table.clone())) {
            Ok(value) => return Some(value),
            Err(err) => err.to_string(),
        };
        let first = message.lines().next().unwrap_or_default().to_owned();
        // serde's words: "missing field `x`", "unknown field `x`, expected …"; toml adds "in `x`" for types.
        let quoted = |text: &str| text.split('`').nth(1).map(str::to_owned);
        if first.starts_with("missing field") {
            let key = quoted(&first).unwrap_or_default();
            let Some(value) = default.get(&key) else {
                faults.add(&path(&key), "is missing");
                return None;
            };
            faults.add(&path(&key), format!("is missing; write for example {key} = {value}"));
            table.insert(key, value.clone());
        } else if first.starts_with("unknown field") {
            let key = quoted(&first).unwrap_or_default();
            let known =
                first.split_once(", expected").map(|(_, known)| known.trim_start_matches(" one of").trim());
            faults.add(
                &path(&key),
                format!("is not a key of this section; its keys are {}", known.unwrap_or("none")),
            );
            table.remove(&key)?;
        } else {
            // A wrong type: find the key by trying each value in place of the default's.
            let wrong = table.keys().find(|key| !alone_fits::<T>(&default, key, &table[*key])).cloned();
            let Some(key) = wrong else {
                faults.add(if section.is_empty() { "configuration" } else { section }, first);
                return None;
            };
            faults.add(&path(&key), format!("has the wrong form: {first}"));
            match default.get(&key) {
                Some(value) => table.insert(key, value.clone()),
                None => table.remove(&key),
            };
        }
    }
    None
}

/// Whether the default with this one value in it can be read.
fn alone_fits<T: DeserializeOwned>(default: &Table, key: &str, value: &Value) -> bool {
    let mut table = default.clone();
    table.insert(key.to_owned(), value.clone());
    T::deserialize(Value::Table(table)).is_ok()
}
