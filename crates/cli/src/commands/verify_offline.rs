//! `verify --state-dir`: a copy of the gateway's state folder, with no gateway and no network.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use sallyport_evidence::{
    note::Verifier,
    verify::{Leaf, LogCheck, Report},
};

use super::verify::{self, Earlier, History};
use crate::{args::Verify, failure::Failure, gateway::Context};

/// The log's file, and where it may lie below the folder.
const FILE: &str = "evidence.db";

/// Runs it.
///
/// # Errors
/// The log does not verify, or cannot be read.
pub fn run(context: &Context, args: &Verify, dir: &Path) -> Result<(), Failure> {
    let (key, seen) = verify::offline_trust(context, args)?;
    let path = find(dir).ok_or_else(|| {
        Failure::failed(format!("there is no evidence log in `{}`", dir.display()))
            .next(format!("name the gateway's state folder, or the folder with `{FILE}`"))
    })?;
    let earlier: Vec<Earlier> = seen.into_iter().chain(verify::given(args, &key)?).collect();
    let report = check(context, &path, &key, &earlier).map_err(|err| {
        Failure::failed(format!("cannot read the evidence log `{}`", path.display())).because(&err)
    })?;
    if report.holds()
        && let (Some(save), Some(note)) = (&args.save_checkpoint, newest_note(&path))
    {
        crate::files::replace(save, note.as_bytes(), 0o644)
            .map_err(|err| Failure::failed("cannot save the checkpoint").because(&err))?;
    }
    let history = match earlier.iter().map(|earlier| earlier.checkpoint.size).max() {
        Some(size) => {
            History::Continued(report.proved.as_ref().map_or(0, |proved| proved.size.saturating_sub(size)))
        }
        None => History::Unknown,
    };
    verify::say(context, &report, &key, history)
}

/// The log's file in a state folder.
pub(super) fn find(dir: &Path) -> Option<PathBuf> {
    let direct = dir.join(FILE);
    if direct.is_file() {
        return Some(direct);
    }
    let below = std::fs::read_dir(dir).ok()?.filter_map(Result::ok).map(|entry| entry.path().join(FILE));
    below.into_iter().find(|path| path.is_file())
}

/// Reads nothing but; a copy must not change because somebody checked it.
pub(super) fn open(path: &Path) -> rusqlite::Result<Connection> {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
}

fn newest_note(path: &Path) -> Option<String> {
    let connection = open(path).ok()?;
    connection.query_row("SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1", [], |row| row.get(0)).ok()
}

fn check(context: &Context, path: &Path, key: &Verifier, earlier: &[Earlier]) -> rusqlite::Result<Report> {
    let mut connection = open(path)?;
    // One transaction: checkpoints and leaves of the same moment.
    let snapshot = connection.transaction()?;
    let mut query = snapshot.prepare("SELECT note FROM checkpoints ORDER BY size")?;
    let notes: Vec<String> = query.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let total: i64 = snapshot.query_row("SELECT count(*) FROM leaves", [], |row| row.get(0))?;
    let mut check = LogCheck::new(
        key,
        notes.iter().map(String::as_str).chain(earlier.iter().map(|earlier| earlier.note.as_str())),
    );
    check.expect_at_least(earlier.iter().map(|earlier| earlier.checkpoint.size).max().unwrap_or(0));
    let bar = verify::progress(context, total.unsigned_abs());
    let mut query = snapshot.prepare("SELECT idx, hash, record FROM leaves ORDER BY idx")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let hash = row.get_ref(1)?.as_blob().ok().and_then(|hash| hash.try_into().ok());
        // A hash that is no hash names its leaf as altered.
        let hash = Some(hash.unwrap_or([0; 32]));
        let record = row.get_ref(2)?.as_blob().unwrap_or_default();
        let index: i64 = row.get(0)?;
        check.leaf(Leaf { index: index.unsigned_abs(), hash, record });
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(check.finish())
}
