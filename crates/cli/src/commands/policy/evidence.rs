//! Records for `policy backtest` and `policy learn`: read once, in order, and shared out among threads.

use std::path::Path;
use std::sync::{Mutex, PoisonError, mpsc};

use indicatif::ProgressBar;
use rusqlite::{Connection, params_from_iter, types::Value};
use sallyport_contract::v1::EventsRequest;

use crate::{
    args::Evidence,
    commands::{events::parse_since, verify, verify_offline},
    failure::Failure,
    gateway::Context,
};

/// Records that go to a thread at once.
const BATCH: usize = 1_000;
/// Batches that wait: bounds memory.
const WAITING: usize = 16;
/// Hosts' and gateway's clocks differ by less.
const SLACK_NS: u64 = 3_600_000_000_000;

type Batch = Vec<(u64, Vec<u8>)>;

/// Gives every record of the choice to `take`, on as many threads as there are processors; each has a state of its own.
pub(super) fn each<T: Send>(
    context: &Context,
    evidence: &Evidence,
    fresh: impl Fn() -> T + Sync,
    take: impl Fn(&mut T, u64, &[u8]) + Sync,
) -> Result<Vec<T>, Failure> {
    let since = parse_since(&evidence.since)?;
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get());
    let (send, receive) = mpsc::sync_channel::<Batch>(WAITING);
    let receive = Mutex::new(receive);
    std::thread::scope(|scope| {
        let work = || {
            let mut state = fresh();
            loop {
                // Taken in turn; the lock is not held while working.
                let batch = receive.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(batch) = batch else { return state };
                for (index, record) in &batch {
                    take(&mut state, *index, record);
                }
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let read = match &evidence.state_dir {
            Some(dir) => stored(context, dir, evidence, since, &send),
            None => {
                let send = send.clone();
                let reader = scope.spawn(move || streamed(context, evidence, &send));
                reader.join().unwrap_or_else(|_| Err(Failure::failed("reading the records failed")))
            }
        };
        drop(send);
        let states = workers.into_iter().map(|worker| worker.join());
        let states: Result<Vec<T>, _> = states.collect();
        read?;
        states.map_err(|_| Failure::failed("judging the records failed"))
    })
}

/// From a gateway's state folder.
fn stored(
    context: &Context,
    dir: &Path,
    evidence: &Evidence,
    since: u64,
    send: &mpsc::SyncSender<Batch>,
) -> Result<(), Failure> {
    let path = verify_offline::find(dir).ok_or_else(|| {
        Failure::failed(format!("there is no evidence log in `{}`", dir.display()))
            .next("name the gateway's state folder, or the folder with `evidence.db`")
    })?;
    let read = || -> rusqlite::Result<()> {
        let mut connection = verify_offline::open(&path)?;
        let snapshot = connection.transaction()?;
        let end: i64 =
            snapshot.query_row("SELECT ifnull(max(idx) + 1, 0) FROM leaves", [], |row| row.get(0))?;
        let from = begin(&snapshot, end, since)?;
        let bar = verify::progress(context, (end - from).unsigned_abs());
        rows(&snapshot, from, evidence, send, &bar)?;
        bar.finish_and_clear();
        Ok(())
    };
    read().map_err(|err| {
        Failure::failed(format!("cannot read the evidence log `{}`", path.display())).because(&err)
    })
}

/// The first leaf that was received at that time or later: leaves lie in the order in which they came.
fn begin(connection: &Connection, end: i64, since: u64) -> rusqlite::Result<i64> {
    let wanted = i64::try_from(since.saturating_sub(SLACK_NS)).unwrap_or(i64::MAX);
    let mut query = connection.prepare("SELECT recv_ns FROM leaves WHERE idx >= ? ORDER BY idx LIMIT 1")?;
    let (mut low, mut high) = (0, end);
    while low < high {
        let middle = low + (high - low) / 2;
        let received: i64 = query.query_row([middle], |row| row.get(0))?;
        if received < wanted { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}

fn rows(
    connection: &Connection,
    from: i64,
    evidence: &Evidence,
    send: &mpsc::SyncSender<Batch>,
    bar: &ProgressBar,
) -> rusqlite::Result<()> {
    let mut sql = "SELECT idx, record FROM leaves WHERE idx >= ?".to_owned();
    let mut values = vec![Value::Integer(from)];
    if let Some(user) = &evidence.user {
        sql += " AND user = ?";
        values.push(Value::Text(user.clone()));
    }
    if !evidence.sessions.is_empty() {
        let marks = vec!["?"; evidence.sessions.len()].join(", ");
        sql += &format!(" AND session IN ({marks})");
        values.extend(evidence.sessions.iter().cloned().map(Value::Text));
    }
    sql += " ORDER BY idx";
    let mut query = connection.prepare(&sql)?;
    let mut rows = query.query(params_from_iter(values))?;
    let mut batch = Batch::with_capacity(BATCH);
    while let Some(row) = rows.next()? {
        let index: i64 = row.get(0)?;
        batch.push((index.unsigned_abs(), row.get_ref(1)?.as_blob().unwrap_or_default().to_vec()));
        if batch.len() == BATCH {
            bar.set_position((index - from).unsigned_abs());
            // If nobody listens any more, a thread failed, which is told by its join.
            if send.send(std::mem::replace(&mut batch, Batch::with_capacity(BATCH))).is_err() {
                return Ok(());
            }
        }
    }
    let _ = send.send(batch);
    Ok(())
}

/// From the gateway, on a thread with a runtime of its own: the sender waits for the workers.
fn streamed(context: &Context, evidence: &Evidence, send: &mpsc::SyncSender<Batch>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|err| Failure::failed("cannot start").because(&err))?;
    runtime.block_on(async {
        let doing = "reading the log";
        let bar = verify::progress(context, 0);
        let (mut console, _) = context.console().await?;
        let sessions = match evidence.sessions.as_slice() {
            [] => vec![String::new()],
            sessions => sessions.to_vec(),
        };
        for session_id in sessions {
            let request = EventsRequest {
                session_id,
                user: evidence.user.clone().unwrap_or_default(),
                ..EventsRequest::default()
            };
            let answer =
                console.events(request).await.map_err(|status| Failure::from_status(doing, &status))?;
            let mut entries = answer.into_inner();
            let mut batch = Batch::with_capacity(BATCH);
            while let Some(entry) =
                entries.message().await.map_err(|status| Failure::from_status(doing, &status))?
            {
                batch.push((entry.index, entry.record.to_vec()));
                if batch.len() == BATCH {
                    bar.inc(BATCH as u64);
                    if send.send(std::mem::replace(&mut batch, Batch::with_capacity(BATCH))).is_err() {
                        return Ok(());
                    }
                }
            }
            if send.send(batch).is_err() {
                return Ok(());
            }
        }
        bar.finish_and_clear();
        Ok(())
    })
}
