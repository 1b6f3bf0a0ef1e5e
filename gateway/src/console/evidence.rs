//! Reading evidence: search, follow, replay, the whole log. Each reading is itself on the record.

use super::{Down, Service, denied, internal};
use crate::authorize::GatewayAction;
use crate::recorder::reader::{Filter, Reader};
use crate::recorder::recording;
use crate::state::sessions::{self, Wanted};
use bytes::Bytes;
use sallyport_contract::v1::*;
use sallyport_evidence::record::Identity;
use std::collections::HashMap;
use tokio::io::AsyncReadExt as _;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Entries read at once.
const PAGE: usize = 512;
/// Entries waiting for a slow reader.
const WAITING: usize = 64;
/// Bytes of a recording per message.
const PIECE: usize = 64 << 10;
/// Sessions listed if the caller names no number.
const SESSIONS: u32 = 100;
/// The most entries that "the newest N" can be: they are held in memory.
const NEWEST: u32 = 10_000;

impl Service {
    pub(super) async fn sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        let (identity, _) = self.caller(&request).await?;
        let ListSessionsRequest { active_only, mut user, host, limit } = request.into_inner();
        if user != identity.user {
            match self.authorizer.gateway_action(&identity, GatewayAction::ReadEvidence) {
                Ok(()) => {}
                // Without the right, one's own are listed.
                Err(_) if user.is_empty() => user.clone_from(&identity.user),
                Err(refusal) => return Err(denied(refusal)),
            }
        }
        if user != identity.user {
            self.note(&identity, None, &format!("listed sessions of {}", any(&user))).await?;
        }
        let limit = if limit == 0 { SESSIONS } else { limit.min(10_000) };
        let wanted = Wanted { active_only, user, host, id: String::new(), limit };
        let mut listed = Vec::new();
        for (row, channels) in sessions::list(&self.state, wanted).await.map_err(internal)? {
            let denials =
                self.authorizer.recorder().reader().denials(row.id.clone()).await.map_err(internal)?;
            let channels = channels.into_iter().map(|c| {
                let path = recording::path(self.authorizer.recorder().recordings(), &row.id, &c.id);
                ChannelInfo {
                    has_recording: path.is_some_and(|path| path.exists()),
                    channel_id: c.id,
                    what: c.what,
                    started_at_ms: c.started_ms,
                    ended_at_ms: c.ended_ms.unwrap_or(0),
                }
            });
            let channels = channels.collect();
            listed.push(SessionInfo {
                session_id: row.id,
                user: row.identity.user,
                host: row.host,
                local_user: row.local_user,
                started_at_ms: row.started_ms,
                ended_at_ms: row.ended_ms.unwrap_or(0),
                client_address: row.client,
                policy_version: row.policy_version,
                end_reason: row.end_reason,
                denials,
                channels,
            });
        }
        Ok(Response::new(ListSessionsResponse { sessions: listed }))
    }

    pub(super) async fn search(
        &self,
        request: Request<EventsRequest>,
    ) -> Result<Response<Down<LogEntry>>, Status> {
        let (identity, _) = self.caller(&request).await?;
        let EventsRequest { follow, session_id, user, host, kind, outcome, from_index, limit } =
            request.into_inner();
        let own = self.owns(&identity, &session_id).await?;
        let filter = Filter { session: session_id, user, host, kind, outcome };
        if !own {
            self.may_read(&identity).await?;
            self.note(&identity, None, &format!("read events: {}", describe(&filter, follow))).await?;
        }
        let size = self.authorizer.recorder().size();
        let reader = self.authorizer.recorder().reader().clone();
        Ok(send(move |out| tail(reader, size, filter, from_index, limit, follow, out), &self.shutdown))
    }

    pub(super) async fn whole_log(
        &self,
        request: Request<LogRequest>,
    ) -> Result<Response<Down<LogEntry>>, Status> {
        let identity = self.caller_for(&request, GatewayAction::ReadEvidence).await?;
        let LogRequest { from_index, to_index } = request.into_inner();
        let reader = self.authorizer.recorder().reader().clone();
        let size = *self.authorizer.recorder().size().borrow();
        let to = if to_index == 0 { size } else { to_index.min(size) };
        self.note(&identity, None, &format!("exported the log, leaves {from_index} to {to}")).await?;
        let export =
            move |out| async move { page(&reader, &Filter::default(), from_index, to, &out).await.map(drop) };
        Ok(send(export, &self.shutdown))
    }

    pub(super) async fn replay(
        &self,
        request: Request<RecordingRequest>,
    ) -> Result<Response<Down<RecordingChunk>>, Status> {
        let (identity, _) = self.caller(&request).await?;
        let RecordingRequest { session_id, channel_id } = request.into_inner();
        let own = self.owns(&identity, &session_id).await?;
        if !own {
            self.may_read(&identity).await?;
        }
        let wanted = Wanted { id: session_id.clone(), limit: 1, ..Wanted::default() };
        let found = sessions::list(&self.state, wanted).await.map_err(internal)?;
        let (_, channels) =
            found.first().ok_or_else(|| Status::not_found(format!("there is no session {session_id}")))?;
        let folder = self.authorizer.recorder().recordings();
        let path = channels
            .iter()
            .filter(|channel| channel_id.is_empty() || channel.id == channel_id)
            .filter_map(|channel| recording::path(folder, &session_id, &channel.id))
            .find(|path| path.exists());
        let path = path.ok_or_else(|| Status::not_found("there is no such recording"))?;
        if !own {
            self.note(&identity, None, &format!("replayed session {session_id}")).await?;
        }
        let mut file = tokio::fs::File::open(path).await.map_err(internal)?;
        let read = move |out: mpsc::Sender<Result<RecordingChunk, Status>>| async move {
            loop {
                let mut piece = Vec::with_capacity(PIECE);
                let n = (&mut file).take(PIECE as u64).read_to_end(&mut piece).await.map_err(internal)?;
                if n == 0 || out.send(Ok(RecordingChunk { data: Bytes::from(piece) })).await.is_err() {
                    return Ok(());
                }
            }
        };
        Ok(send(read, &self.shutdown))
    }

    async fn may_read(&self, identity: &Identity) -> Result<(), Status> {
        if let Err(refusal) = self.authorizer.gateway_action(identity, GatewayAction::ReadEvidence) {
            self.note(identity, None, &format!("refused: {refusal}")).await?;
            return Err(denied(refusal));
        }
        Ok(())
    }

    /// Whether a session is the caller's own.
    async fn owns(&self, identity: &Identity, session: &str) -> Result<bool, Status> {
        if session.is_empty() {
            return Ok(false);
        }
        let wanted = Wanted { id: session.to_owned(), limit: 1, ..Wanted::default() };
        let found = sessions::list(&self.state, wanted).await.map_err(internal)?;
        Ok(found.first().is_some_and(|(row, _)| {
            row.identity.user == identity.user && row.identity.issuer == identity.issuer
        }))
    }
}

type Out<T> = mpsc::Sender<Result<T, Status>>;

/// Runs `work`, whose sender feeds the stream; an error ends the stream with it.
fn send<T, F, W>(work: W, shutdown: &CancellationToken) -> Response<Down<T>>
where
    T: Send + 'static,
    W: FnOnce(Out<T>) -> F,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (out, stream) = mpsc::channel(WAITING);
    let (work, shutdown) = (work(out.clone()), shutdown.clone());
    tokio::spawn(async move {
        let failed = tokio::select! {
            done = work => done.err(),
            () = out.closed() => None,
            () = shutdown.cancelled() => Some(Status::unavailable("the gateway is shutting down")),
        };
        if let Some(status) = failed {
            let _ = out.send(Err(status)).await;
        }
    });
    Response::new(Box::pin(ReceiverStream::new(stream)))
}

/// Sends what is there and, when following, what comes: a cursor over durable leaves, which skips none.
async fn tail(
    reader: Reader,
    mut size: watch::Receiver<u64>,
    filter: Filter,
    from: u64,
    limit: u32,
    follow: bool,
    out: Out<LogEntry>,
) -> Result<(), Status> {
    let mut next = from;
    let mut to = *size.borrow_and_update();
    if limit > 0 {
        let newest = reader.newest(&filter, to, limit.min(NEWEST) as usize).await.map_err(internal)?;
        for entry in newest.into_iter().filter(|entry| entry.index >= from) {
            if out.send(Ok(LogEntry { index: entry.index, record: entry.record })).await.is_err() {
                return Ok(());
            }
        }
        next = to;
    }
    loop {
        next = page(&reader, &filter, next, to, &out).await?;
        if !follow || out.is_closed() || size.changed().await.is_err() {
            return Ok(());
        }
        to = *size.borrow_and_update();
    }
}

/// Sends all that match in `from..to`; gives where to go on.
async fn page(
    reader: &Reader,
    filter: &Filter,
    from: u64,
    to: u64,
    out: &Out<LogEntry>,
) -> Result<u64, Status> {
    let mut next = from;
    while next < to {
        let entries = reader.range(filter, next, to, PAGE).await.map_err(internal)?;
        let full = entries.len() == PAGE;
        for entry in entries {
            next = entry.index + 1;
            if out.send(Ok(LogEntry { index: entry.index, record: entry.record })).await.is_err() {
                return Ok(to);
            }
        }
        if !full {
            break;
        }
    }
    Ok(to.max(from))
}

fn describe(filter: &Filter, follow: bool) -> String {
    let Filter { session, user, host, kind, outcome } = filter;
    let parts = HashMap::from([
        ("session", session),
        ("user", user),
        ("host", host),
        ("kind", kind),
        ("outcome", outcome),
    ]);
    let mut parts: Vec<String> = parts
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    parts.sort_unstable();
    if follow {
        parts.push("following".to_owned());
    }
    if parts.is_empty() { "all".to_owned() } else { parts.join(", ") }
}

fn any(user: &str) -> &str {
    if user.is_empty() { "everybody" } else { user }
}
