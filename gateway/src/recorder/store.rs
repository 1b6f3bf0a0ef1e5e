//! Where leaves, checkpoints and high-water marks lie: one SQLite file. Everything of one [`Store::commit`] is
//! durable when it returns, or none of it is there.

use super::OpenError;
use rusqlite::{Connection, OptionalExtension as _, params};
use sallyport_evidence::Checkpoint;
use sallyport_evidence::merkle::{Frontier, leaf_hash};
use sallyport_evidence::note::Verifier;
use sallyport_evidence::record::Source;
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;

/// The file's name within the log's folder.
pub const FILE: &str = "evidence.db";

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS leaves (
    idx INTEGER PRIMARY KEY,
    hash BLOB NOT NULL,
    record BLOB NOT NULL,
    recv_ns INTEGER NOT NULL,
    kind TEXT NOT NULL,
    host TEXT, user TEXT, session TEXT, outcome TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS leaves_session ON leaves (session, idx) WHERE session IS NOT NULL;
CREATE INDEX IF NOT EXISTS leaves_user ON leaves (user, idx) WHERE user IS NOT NULL;
CREATE INDEX IF NOT EXISTS leaves_host ON leaves (host, idx) WHERE host IS NOT NULL;
CREATE INDEX IF NOT EXISTS leaves_outcome ON leaves (outcome, idx) WHERE outcome <> 'allowed';
CREATE TABLE IF NOT EXISTS tree (one INTEGER PRIMARY KEY CHECK (one = 1), size INTEGER NOT NULL, frontier BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS checkpoints (size INTEGER PRIMARY KEY, note TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS makers (maker TEXT NOT NULL, boot TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (maker, boot)) STRICT;
";

/// What of a record is indexed. Lenient: kinds of newer sensors are taken as they are.
#[derive(Clone, Debug, Deserialize)]
pub struct Head {
    /// Maker and number.
    pub source: Source,
    /// Kind.
    pub kind: String,
    /// Host.
    #[serde(default)]
    pub host: Option<String>,
    #[serde(default)]
    identity: Option<HeadIdentity>,
    /// Session.
    #[serde(default)]
    pub session: Option<HeadSession>,
    /// Decision.
    #[serde(default)]
    pub decision: Option<HeadDecision>,
    #[serde(default)]
    process: Option<HeadProcess>,
    #[serde(default)]
    endpoint: Option<HeadEndpoint>,
    #[serde(default)]
    file: Option<HeadFile>,
    #[serde(default)]
    system: Option<HeadSystem>,
}

#[derive(Clone, Debug, Deserialize)]
struct HeadIdentity {
    user: String,
}

/// Session and channel.
#[derive(Clone, Debug, Deserialize)]
pub struct HeadSession {
    /// Session id.
    pub id: String,
    /// Channel id.
    #[serde(default)]
    pub channel: String,
}

/// Outcome and rule.
#[derive(Clone, Debug, Deserialize)]
pub struct HeadDecision {
    /// Outcome.
    pub outcome: String,
    /// Policy version.
    #[serde(default)]
    pub policy: String,
    /// Rule id.
    #[serde(default)]
    pub rule: String,
}

#[derive(Clone, Debug, Deserialize)]
struct HeadProcess {
    #[serde(default)]
    path: String,
}

#[derive(Clone, Debug, Deserialize)]
struct HeadEndpoint {
    #[serde(default)]
    address: String,
    #[serde(default)]
    port: u16,
}

#[derive(Clone, Debug, Deserialize)]
struct HeadFile {
    #[serde(default)]
    op: String,
    #[serde(default)]
    path: String,
}

#[derive(Clone, Debug, Deserialize)]
struct HeadSystem {
    #[serde(default)]
    operation: String,
}

impl Head {
    /// The text of a marker in the session's recording, if this is a denial or a monitored one.
    #[must_use]
    pub fn marker(&self) -> Option<String> {
        let decision = self.decision.as_ref().filter(|d| d.outcome != "allowed")?;
        let what = if let Some(endpoint) = &self.endpoint {
            format!("{} port {}", endpoint.address, endpoint.port)
        } else if let Some(file) = &self.file {
            format!("{} {}", file.op, file.path)
        } else if let Some(system) = &self.system {
            system.operation.clone()
        } else if let Some(process) = &self.process {
            process.path.clone()
        } else {
            self.kind.clone()
        };
        let rule = if decision.rule.is_empty() { "default deny" } else { &decision.rule };
        Some(format!("{} {what} (rule {rule})", decision.outcome))
    }
}

/// One new leaf.
pub struct NewLeaf {
    /// The record's bytes, as they are hashed.
    pub bytes: Vec<u8>,
    /// The same, parsed.
    pub head: Head,
}

/// The log's storage: exclusive to its writer.
pub struct Store {
    connection: Connection,
    frontier: Frontier,
    seqs: HashMap<(String, String), u64>,
}

/// Settings of every connection to the log.
pub(super) fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // FULL: a commit is on the disk when it returns. NORMAL may lose the newest commits with the power.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.busy_timeout(std::time::Duration::from_secs(10))
}

impl Store {
    /// Opens and checks that leaves, tree and newest checkpoint agree.
    ///
    /// # Errors
    /// It cannot be opened, or contradicts itself.
    pub fn open(path: &Path, key: &Verifier) -> Result<Self, OpenError> {
        let fail = |err| OpenError::Database { path: path.to_owned(), err };
        let wrong = |what: String| OpenError::Inconsistent { path: path.to_owned(), what };
        crate::files::touch_private(path).map_err(|err| OpenError::File { path: path.to_owned(), err })?;
        let connection = Connection::open(path).map_err(fail)?;
        configure(&connection).and_then(|()| connection.execute_batch(SCHEMA)).map_err(fail)?;
        let tree: Option<(u64, Vec<u8>)> = connection
            .query_row("SELECT size, frontier FROM tree", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()
            .map_err(fail)?;
        let frontier = match tree {
            None => Frontier::new(),
            Some((size, bytes)) => Frontier::from_bytes(size, &bytes)
                .ok_or_else(|| wrong(format!("the tree of {size} leaves does not have the right hashes")))?,
        };
        let size = frontier.size();
        let leaves: Option<u64> =
            connection.query_row("SELECT max(idx) + 1 FROM leaves", [], |row| row.get(0)).map_err(fail)?;
        if leaves.unwrap_or(0) != size {
            return Err(wrong(format!("the tree has {size} leaves, the table has {}", leaves.unwrap_or(0))));
        }
        let newest: Option<String> = connection
            .query_row("SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1", [], |row| row.get(0))
            .optional()
            .map_err(fail)?;
        if let Some(note) = newest {
            let signed =
                Checkpoint::open(&note, key).map_err(|err| wrong(format!("the newest checkpoint: {err}")))?;
            if signed.size > size {
                return Err(wrong(format!("{} leaves were signed, {size} are there", signed.size)));
            }
            if signed.size == size && signed.root != frontier.root() {
                return Err(wrong(format!("the {size} leaves are not those that were signed")));
            }
        }
        let mut store = Self { connection, frontier, seqs: HashMap::new() };
        store.seqs = store.load_seqs().map_err(fail)?;
        Ok(store)
    }

    /// Durable leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// The newest number of a maker in a boot; 0: none.
    #[must_use]
    pub fn newest_seq(&self, maker: &str, boot: &str) -> u64 {
        self.seqs.get(&(maker.to_owned(), boot.to_owned())).copied().unwrap_or(0)
    }

    /// What the tree would sign now.
    #[must_use]
    pub fn checkpoint(&self, origin: &str) -> Checkpoint {
        Checkpoint { origin: origin.to_owned(), size: self.size(), root: self.frontier.root() }
    }

    /// Appends leaves, in order, durably. `sign` may give a checkpoint's note over the new tree: it becomes
    /// durable with the leaves, and must not be published before this returns.
    ///
    /// # Errors
    /// Nothing is stored, or it is not known what is: the store must not be used any more.
    pub fn commit(
        &mut self,
        leaves: &[NewLeaf],
        recv_ns: u64,
        sign: impl FnOnce(&Frontier) -> Option<String>,
    ) -> rusqlite::Result<()> {
        let mut frontier = self.frontier.clone();
        let transaction = self.connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO leaves (idx, hash, record, recv_ns, kind, host, user, session, outcome) VALUES (?,?,?,?,?,?,?,?,?)",
            )?;
            let mut mark = transaction.prepare_cached(
                "INSERT INTO makers (maker, boot, seq) VALUES (?,?,?) ON CONFLICT (maker, boot) DO UPDATE SET seq = excluded.seq",
            )?;
            let mut newest: HashMap<(&str, &str), u64> = HashMap::new();
            for NewLeaf { bytes, head } in leaves {
                let hash = leaf_hash(bytes);
                insert.execute(params![
                    frontier.size(),
                    hash.as_slice(),
                    bytes,
                    recv_ns,
                    head.kind,
                    head.host,
                    head.identity.as_ref().map(|i| &i.user),
                    head.session.as_ref().map(|s| &s.id),
                    head.decision.as_ref().map(|d| &d.outcome),
                ])?;
                frontier.push(hash);
                newest.insert((&head.source.maker, &head.source.boot), head.source.seq);
            }
            for ((maker, boot), seq) in newest {
                mark.execute(params![maker, boot, seq])?;
            }
            let mut tree =
                transaction.prepare_cached("REPLACE INTO tree (one, size, frontier) VALUES (1,?,?)")?;
            tree.execute(params![frontier.size(), frontier.to_bytes()])?;
            if let Some(note) = sign(&frontier) {
                let mut save =
                    transaction.prepare_cached("REPLACE INTO checkpoints (size, note) VALUES (?,?)")?;
                save.execute(params![frontier.size(), note])?;
            }
        }
        transaction.commit()?;
        self.frontier = frontier;
        for leaf in leaves {
            let source = &leaf.head.source;
            self.seqs.insert((source.maker.clone(), source.boot.clone()), source.seq);
        }
        Ok(())
    }

    fn load_seqs(&self) -> rusqlite::Result<HashMap<(String, String), u64>> {
        let mut query = self.connection.prepare("SELECT maker, boot, seq FROM makers")?;
        let rows = query.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?)))?;
        rows.collect()
    }
}
