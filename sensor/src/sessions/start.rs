//! Starting a channel: checks, kernel session, shepherd, tag, go. In that order, and whatever fails, nothing of the user ran.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use sallyport_contract::v1::{StartChannel, work};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command as Process};

use super::{ChannelFile, Live, SessionFile, Sessions, Tables, identity, principal};
use crate::clock;
use crate::files;
use crate::kernel::{KernelError, Mode};
use crate::policies::PolicyError;
use crate::refusals::{self, Means};
use crate::shepherd::protocol::{Pty, Ready, Spec, Work};

/// So long a shepherd may take until its leader waits.
const READY_WITHIN: Duration = Duration::from_secs(15);
/// Longest ready line in bytes.
const READY_LINE: u64 = 64 << 10;

/// Why a channel was not started; the person reads it.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The gateway's order makes no sense.
    #[error("the gateway's order is not usable: {0}")]
    Order(&'static str),
    /// There is no policy.
    #[error("this host has no policy yet; its sensor waits for one from the gateway")]
    NoPolicy,
    /// It was authorised under a policy that never came into force here.
    #[error("it was authorised under policy {asked:.12}, but this host enforces {ours:.12}")]
    OtherPolicy {
        /// The gateway's.
        asked: String,
        /// Ours.
        ours: String,
    },
    /// Too many.
    #[error("{0} at once is the most that this host allows")]
    TooMany(String),
    /// The session is over.
    #[error("this session has ended")]
    Ended,
    /// The grant is over.
    #[error("the grant has ended")]
    Expired,
    /// The channel exists.
    #[error("this channel was started before")]
    Repeated,
    /// The policy cannot be enforced for this person.
    #[error("its policy cannot be enforced here: {0}")]
    Policy(#[from] PolicyError),
    /// The kernel does not take the session.
    #[error("the kernel does not take the session: {0}")]
    Kernel(#[from] KernelError),
    /// The shepherd refused.
    #[error("{0}")]
    Shepherd(String),
    /// The file system or process table is in the way.
    #[error("it cannot be set up on this host: {0}")]
    Io(#[from] std::io::Error),
}

impl Sessions {
    /// Starts a channel.
    ///
    /// # Errors
    /// Nothing of it ran, and why.
    pub async fn start(self: &Arc<Self>, order: StartChannel) -> Result<(), Refusal> {
        let _policy_stays = self.gate.read().await;
        let file = self.admit(&order).await?;
        let result = self.launch(&order, file).await;
        let mut tables = self.tables();
        if let Some(live) = tables.live.get_mut(&order.session_id) {
            live.starting = live.starting.saturating_sub(1);
        }
        result
    }

    /// Checks the order and opens its session in the kernel, if this is its first channel.
    async fn admit(self: &Arc<Self>, order: &StartChannel) -> Result<SessionFile, Refusal> {
        if !is_id(&order.session_id) || !is_id(&order.channel_id) {
            return Err(Refusal::Order("ids must be 1 to 64 letters, digits and hyphens"));
        }
        let Some(person) = &order.principal else { return Err(Refusal::Order("it names nobody")) };
        if order.expires_at_ms > 0 && order.expires_at_ms <= clock::wall_ms() {
            return Err(Refusal::Expired);
        }
        let current = self.policies.for_session(&order.session_id).ok_or(Refusal::NoPolicy)?;
        if !self.policies.has_known(&order.policy_version) {
            let (asked, ours) = (order.policy_version.clone(), current.version);
            return Err(Refusal::OtherPolicy { asked, ours });
        }
        let (who, local_user) = (principal(person), order.local_user.clone());
        let (this, compiled_for) = (self.clone(), who.clone());
        let slot =
            tokio::task::spawn_blocking(move || this.policies.compiled(&current, &compiled_for, &local_user))
                .await
                .map_err(std::io::Error::other)??;

        let mut tables = self.tables();
        let Tables { live: sessions, known } = &mut *tables;
        let n_sessions = sessions.len();
        if let Some(live) = sessions.get_mut(&order.session_id) {
            if live.ending {
                return Err(Refusal::Ended);
            }
            if live.channels.contains_key(&order.channel_id) {
                return Err(Refusal::Repeated);
            }
            if live.channels.len() + live.starting >= self.settings.max_channels {
                return Err(Refusal::TooMany(format!(
                    "{} channels in a session",
                    self.settings.max_channels
                )));
            }
            let file = known.get(&live.number).map(|(file, _)| file.clone()).ok_or(Refusal::Ended)?;
            if file.principal != who || file.local_user != order.local_user {
                return Err(Refusal::Order("its session belongs to somebody else"));
            }
            live.starting += 1;
            live.idle_since = None;
            return Ok(file);
        }
        if n_sessions >= self.settings.max_sessions {
            return Err(Refusal::TooMany(format!("{} sessions", self.settings.max_sessions)));
        }
        // Time since boot is unique on this boot, and the kernel's maps do not outlive it.
        let mut number = clock::boot_ns();
        while known.contains_key(&number) {
            number += 1;
        }
        self.kernel.open_session(number, slot, self.settings.max_processes)?;
        let file = SessionFile {
            id: order.session_id.clone(),
            number,
            identity: identity(person),
            principal: who,
            local_user: order.local_user.clone(),
            client: order.client_address.clone(),
            expires_at_ms: order.expires_at_ms,
            channels: Vec::new(),
        };
        let live = Live {
            number,
            channels: std::collections::HashMap::new(),
            starting: 1,
            ending: false,
            idle_since: None,
        };
        sessions.insert(order.session_id.clone(), live);
        known.insert(number, (file.clone(), None));
        Ok(file)
    }

    async fn launch(self: &Arc<Self>, order: &StartChannel, file: SessionFile) -> Result<(), Refusal> {
        let directory = self.channel_dir(&order.channel_id);
        if directory.exists() {
            return Err(Refusal::Repeated);
        }
        files::private_dir(&directory)?;
        let result = self.launch_in(order, &file, &directory).await;
        if result.is_err() {
            let _ = std::fs::remove_dir_all(&directory);
        }
        result
    }

    async fn launch_in(
        self: &Arc<Self>,
        order: &StartChannel,
        file: &SessionFile,
        directory: &Path,
    ) -> Result<(), Refusal> {
        let spec = self.spec(order, file, directory)?;
        let (mut shepherd, leader) = self.shepherd(&spec).await?;
        let number = rand::random_range(1..=u32::MAX);
        // Before anything of the session runs, so that nothing of it can ever lay hands on its shepherd.
        let keeper = shepherd.id();
        let ready = self.guard(keeper).and_then(|()| self.tag(order, file.number, number, leader));
        let control = match ready {
            Ok(()) => crate::sessions::attend::connect(directory).await.map_err(Refusal::Io),
            Err(error) => Err(error),
        };
        let control = match control {
            Ok(control) => control,
            Err(error) => {
                // With its shepherd gone the leader finds its gate closed and ends without having run anything.
                let _ = shepherd.start_kill();
                let _ = shepherd.wait().await;
                self.unguard(keeper);
                return Err(error);
            }
        };
        // It is our child as long as we live: take note of its end. Not reaped before, it keeps its number until then.
        let this = self.clone();
        tokio::spawn(async move {
            let _ = shepherd.wait().await;
            this.unguard(keeper);
        });
        self.attend(&order.session_id, &order.channel_id, number, control, true);
        Ok(())
    }

    fn guard(&self, shepherd: Option<u32>) -> Result<(), Refusal> {
        // Without a number it has ended already.
        let shepherd = shepherd.ok_or(KernelError::NoProcess(0))?;
        Ok(self.kernel.guard(shepherd)?)
    }

    fn unguard(&self, shepherd: Option<u32>) {
        if let Some(shepherd) = shepherd {
            self.kernel.unguard(shepherd);
        }
    }

    /// From here on the leader and all its descendants are judged, and a restarted sensor knows of them.
    fn tag(&self, order: &StartChannel, session: u64, number: u32, leader: u32) -> Result<(), Refusal> {
        let file = {
            let mut tables = self.tables();
            let (file, _) = tables.known.get_mut(&session).ok_or(Refusal::Ended)?;
            file.channels.push(ChannelFile { id: order.channel_id.clone(), number });
            file.clone()
        };
        files::write_json(&self.session_path(session), &file)?;
        self.kernel.tag(leader, session, number)?;
        Ok(())
    }

    /// Starts a shepherd and waits until its leader waits.
    async fn shepherd(&self, spec: &Spec) -> Result<(Child, u32), Refusal> {
        let mut shepherd = Process::new(&self.settings.program)
            .arg("shepherd")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut text = serde_json::to_vec(spec).map_err(std::io::Error::other)?;
        let talk = async {
            if let Some(mut stdin) = shepherd.stdin.take() {
                stdin.write_all(&text).await?;
            }
            text.clear();
            let stdout = shepherd.stdout.take().ok_or_else(|| std::io::Error::other("no pipe"))?;
            let mut line = String::new();
            BufReader::new(stdout.take(READY_LINE)).read_line(&mut line).await?;
            Ok::<String, std::io::Error>(line)
        };
        let line = tokio::time::timeout(READY_WITHIN, talk).await;
        let refused = match line.map(|line| line.map(|line| serde_json::from_str(&line))) {
            Ok(Ok(Ok(Ready::Leader { pid, .. }))) => return Ok((shepherd, pid)),
            Ok(Ok(Ok(Ready::Refused(reason)))) => reason,
            Ok(Ok(Err(_))) => "the session's process on this host ended at once".into(),
            Ok(Err(error)) => format!("the session's process on this host cannot be spoken to: {error}"),
            Err(_) => "the session's process on this host did not start in time".into(),
        };
        let _ = shepherd.start_kill();
        let _ = shepherd.wait().await;
        Err(Refusal::Shepherd(refused))
    }

    fn spec(&self, order: &StartChannel, file: &SessionFile, directory: &Path) -> Result<Spec, Refusal> {
        // The policy in force now, which need not be the one that the session began with.
        let current = self.policies.for_session(&order.session_id).ok_or(Refusal::NoPolicy)?;
        let denials = self.policies.system_denials(&current, &file.principal, &file.local_user);
        let mode = self.kernel.mode();
        let plan = refusals::plan(&denials.ok_or(Refusal::NoPolicy)?, &Means::of(mode));
        let work = order.work.as_ref().ok_or(Refusal::Order("it says nothing to do"))?;
        let what = match work.work.as_ref().ok_or(Refusal::Order("it says nothing to do"))? {
            work::Work::Shell(_) => Work::Shell,
            work::Work::Command(command) => Work::Command(command.line.clone()),
            work::Work::Subsystem(subsystem) => Work::Subsystem(subsystem.name.clone()),
        };
        let settings = &self.settings;
        let env = work.env.iter().filter(|var| is_accepted(&settings.accept_env, &var.name));
        let client = order.client_address.parse::<std::net::SocketAddr>();
        let short = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        Ok(Spec {
            channel_id: order.channel_id.clone(),
            local_user: order.local_user.clone(),
            work: what,
            pty: work.pty.as_ref().map(|pty| {
                let size = pty.size.unwrap_or_default();
                Pty {
                    term: pty.term.chars().filter(char::is_ascii_graphic).take(64).collect(),
                    size: [
                        short(size.columns),
                        short(size.rows),
                        short(size.width_px),
                        short(size.height_px),
                    ],
                    modes: pty.modes.clone(),
                }
            }),
            env: env.map(|var| (var.name.clone(), var.value.clone())).collect(),
            client: client
                .map_or_else(|_| String::new(), |at| format!("{} {}", at.ip().to_canonical(), at.port())),
            server: settings.server.clone(),
            directory: directory.into(),
            sftp_server: settings.sftp_server.clone(),
            reattach_grace_ms: millis(settings.reattach_grace),
            hangup_grace_ms: millis(settings.hangup_grace),
            refusals: plan.refusals,
            announcement: announcement(order, mode, &plan.text()),
        })
    }
}

/// The gateway's line, and how this host enforces. `refused`: what the session gives up, and what is left open.
fn announcement(order: &StartChannel, mode: Mode, refused: &str) -> String {
    if order.announcement.is_empty() {
        return String::new();
    }
    let how = match mode {
        Mode::Lsm => "kernel: lsm (denied before it runs)",
        Mode::Tracepoint => "kernel: tracepoint (killed before its first instruction)",
    };
    let end = time::OffsetDateTime::from_unix_timestamp(order.expires_at_ms / 1_000).ok();
    let end = end.filter(|_| order.expires_at_ms > 0).map_or_else(String::new, |end| {
        let far = order.expires_at_ms - clock::wall_ms() > 20 * 3_600_000;
        let date = if far { format!("{} ", end.date()) } else { String::new() };
        format!("; grant ends {date}{:02}:{:02} UTC", end.hour(), end.minute())
    });
    format!("{}; {how}{refused}{end}", order.announcement)
}

/// Ids become names of folders.
fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn is_accepted(patterns: &[String], name: &str) -> bool {
    let good = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    good && patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_harmless_as_names() {
        assert!(is_id("0199a7c2-7c4f-7d6e-8f00-0123456789ab"));
        for bad in ["", "..", "a/b", "a b", "é", &"x".repeat(65)] {
            assert!(!is_id(bad), "{bad}");
        }
    }

    #[test]
    fn variables_are_taken_by_pattern_only() {
        let patterns = ["LANG".to_owned(), "LC_*".to_owned()];
        for (name, expected) in [
            ("LANG", true),
            ("LC_ALL", true),
            ("LANGUAGE", false),
            ("LD_PRELOAD", false),
            ("LC_A=B", false),
            ("", false),
        ] {
            assert_eq!(is_accepted(&patterns, name), expected, "{name}");
        }
    }

    #[test]
    fn the_announcement_says_mode_and_end() {
        let in_an_hour = clock::wall_ms() + 3_600_000;
        let order = StartChannel {
            announcement: "sallyport: recorded; a as b on c; policy 1".into(),
            expires_at_ms: in_an_hour,
            ..StartChannel::default()
        };
        let text = announcement(&order, Mode::Lsm, "; refused: mount");
        assert!(text.starts_with(
            "sallyport: recorded; a as b on c; policy 1; kernel: lsm (denied before it runs); refused: mount; grant ends "
        ));
        assert!(text.ends_with(" UTC"), "{text}");
        assert_eq!(announcement(&StartChannel::default(), Mode::Lsm, ""), "");
    }
}
