//! Starting a channel: recording first, then the record, then the order; and its end on the record.

use super::channel;
use super::registry::{ChannelEntry, Sensors, clean};
use super::{HostChannel, StartError};
use crate::authorize::EndReason;
use crate::policy::short;
use crate::recorder::cast::Header;
use crate::recorder::recording::{self, RecordingOpen};
use crate::recorder::{draft, verify_casts};
use crate::sessions::{LiveSession, principal_message};
use crate::state::{now_ms, sessions as session_table, to_ms};
use sallyport_contract::v1::{EndSession, StartChannel, Work, exit, gateway_order::Order, work};
use sallyport_evidence::record::{Kind, Record};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

impl Sensors {
    /// See [`crate::authorize::AuthorizedSession::start_channel`].
    pub(crate) async fn start_channel(
        &self,
        session: Arc<LiveSession>,
        work: Work,
    ) -> Result<HostChannel, StartError> {
        if let Some(reason) = session.end_reason() {
            return Err(StartError::Ended(reason));
        }
        let host = session.host.clone();
        if !self.is_connected(&host) {
            return Err(StartError::Offline { host });
        }
        let id = uuid::Uuid::now_v7().to_string();
        let what = describe(&work);
        let unrecorded = |err: &dyn std::error::Error| StartError::Unrecorded(crate::chain(err));
        let path = recording::path(self.inner.recorder.recordings(), &session.id, &id);
        let path = path.ok_or_else(|| StartError::Unrecorded("its id is not one".to_owned()))?;
        let recording = RecordingOpen::create(path, &header(&session, &work, &what))
            .await
            .map_err(|err| unrecorded(&err))?;
        let row = session_table::ChannelRow {
            id: id.clone(),
            session: session.id.clone(),
            what: what.clone(),
            started_ms: now_ms(),
            ended_ms: None,
        };
        session_table::open_channel(&self.inner.state, row).await.map_err(|err| unrecorded(&err))?;
        let record = channel_record(&session, &id, Kind::ChannelOpen, what);
        self.inner.recorder.append(record).await.map_err(|err| unrecorded(&err))?;

        let (task, channel, notes, started) = channel::new(&id, session.clone(), recording, self.inner.grace);
        let entry = ChannelEntry { host: host.clone(), session: session.id.clone(), notes };
        self.tables().channels.insert(id.clone(), entry);
        let run = self.clone().run(task, id.clone(), session.clone());
        self.inner.tasks.spawn(run);
        let order = StartChannel {
            session_id: session.id.clone(),
            channel_id: id.clone(),
            principal: Some(principal_message(&session.identity)),
            local_user: session.local_user.clone(),
            policy_version: session.policy_version(),
            expires_at_ms: to_ms(session.expires_at),
            client_address: session.client.to_string(),
            announcement: announcement(&session, &work),
            work: Some(work),
        };
        if !self.order(&host, Order::Start(order)) {
            self.forgotten(&host, &id).await;
            return Err(StartError::Offline { host });
        }
        match started.await {
            Ok(Ok(())) => Ok(channel),
            Ok(Err(err)) => Err(err),
            Err(_) => Err(match session.end_reason() {
                Some(reason) => StartError::Ended(reason),
                None => StartError::Offline { host },
            }),
        }
    }

    async fn run(self, task: channel::Channel, id: String, session: Arc<LiveSession>) {
        let ended = task.run().await;
        if ended.lost.is_some()
            && let Some(reason) = session.end_reason()
        {
            // Its end was not seen: what still runs there must not go on.
            let (session_id, reason) = (session.id.clone(), reason.to_string());
            self.order(&session.host, Order::EndSession(EndSession { session_id, reason }));
        }
        let how = match (&ended.exit, &ended.lost) {
            (Some(exit), _) => match &exit.status {
                Some(exit::Status::Code(code)) => format!("exit status {code}"),
                Some(exit::Status::Signal(name)) => format!("ended by signal {}", clean(name)),
                None => "ended without a status".to_owned(),
            },
            (None, Some(why)) => format!("lost: {why}"),
            (None, None) => "ended".to_owned(),
        };
        let recording = match &ended.recording {
            Ok(done) => verify_casts::statement(done),
            Err(err) => format!("its recording failed: {}", crate::chain(err)),
        };
        if ended.recording.is_err() {
            session.end(EndReason::Unrecorded);
        }
        let record = channel_record(&session, &id, Kind::ChannelClose, format!("{how}; {recording}"));
        if let Err(err) = self.inner.recorder.append(record).await {
            tracing::error!(channel = id, %err, "the channel's end is not on the record");
        }
        if let Err(err) = session_table::close_channel(&self.inner.state, &id).await {
            tracing::warn!(channel = id, %err, "cannot note the channel's end");
        }
        self.tables().channels.remove(&id);
        self.tell_news();
    }
}

/// What runs, for people.
fn describe(work: &Work) -> String {
    match &work.work {
        Some(work::Work::Command(command)) => {
            let line = String::from_utf8_lossy(&command.line);
            format!("command: {}", line.chars().take(4096).collect::<String>())
        }
        Some(work::Work::Subsystem(subsystem)) => format!("subsystem: {}", clean(&subsystem.name)),
        Some(work::Work::Shell(_)) | None => "shell".to_owned(),
    }
}

fn header(session: &LiveSession, work: &Work, what: &str) -> Header {
    let size = work.pty.as_ref().and_then(|pty| pty.size).map_or((80, 24), |size| (size.columns, size.rows));
    Header {
        size,
        term: work.pty.as_ref().map(|pty| clean(&pty.term)),
        timestamp: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        title: format!("{} as {} on {}", session.identity.user, session.local_user, session.host),
        command: what.strip_prefix("command: ").map(str::to_owned),
    }
}

/// The line on entry; the sensor adds how its kernel enforces, and the grant's end.
fn announcement(session: &LiveSession, work: &Work) -> String {
    if work.pty.is_none() {
        return String::new();
    }
    let version = session.policy_version();
    let version = short(&version);
    let LiveSession { identity, local_user, host, .. } = session;
    format!("sallyport: recorded; {} as {local_user} on {host}; policy {version}", identity.user)
}

fn channel_record(session: &LiveSession, channel: &str, kind: Kind, message: String) -> Record {
    let mut record = draft(kind);
    record.host = Some(session.host.clone());
    record.identity = Some(session.identity.clone());
    record.session = Some(session.record_part(channel));
    record.message = Some(message);
    record
}
