//! One session channel from its start request to its exit status.

use super::address::Address;
use super::caller::{Caller, Pending};
use super::hosts::{FromHost, HostSession, ToHost};
use super::inbox::{Arrival, Aside};
use super::listing;
use super::shared::Shared;
use super::terminal::{End, Gone, Terminal};
use crate::authorize::{RefusalKind, TargetInfo};
use crate::sensors::{Input, Output};
use sallyport_contract::v1::{Exit, Work, exit, work};
use sallyport_evidence::record::Identity;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

/// `ssh` itself exits with this when the connection is the problem.
const NO_CONNECTION: u32 = 255;
/// Shells say this for "found, but not permitted to run".
const NOT_PERMITTED: u32 = 126;
/// What a shell says after Ctrl-C: 128 and the number of SIGINT.
const INTERRUPTED: u32 = 130;
/// A host that takes no input is not waited for when the client is gone: dropping the output half hangs up too.
const HANGUP_PATIENCE: Duration = Duration::from_secs(2);

/// After a session's end was announced, for the last output and the exit.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// Runs a channel to its end.
pub async fn run(shared: Arc<Shared>, terminal: Terminal, work: Work) {
    let ended = serve(&shared, &terminal, work).await;
    let end = ended.unwrap_or(End::Gone);
    tracing::debug!(client = %shared.client, channel = %terminal.id(), ?end, "channel ended");
    terminal.finish(&end).await;
}

async fn serve(shared: &Arc<Shared>, terminal: &Terminal, work: Work) -> Result<End, Gone> {
    let identity = match &shared.caller {
        Caller::Known(identity) => Arc::clone(identity),
        Caller::Pending(pending) => match hold(shared, terminal, pending).await? {
            Held::SignedIn(identity) => identity,
            Held::Over(end) => return Ok(end),
        },
    };
    let session = match open(shared, terminal, &identity, &work).await? {
        Opened::Session(session) => session,
        Opened::Over(end) => return Ok(end),
    };
    match session.start_channel(work).await {
        Ok((to_host, from_host)) => bridge(shared, terminal, session.as_ref(), to_host, from_host).await,
        Err(err) => {
            terminal.say(&err.to_string()).await?;
            Ok(End::Code(NO_CONNECTION))
        }
    }
}

enum Held {
    SignedIn(Arc<Identity>),
    Over(End),
}

/// Shows the link where every client shows it, and waits.
async fn hold(shared: &Shared, terminal: &Terminal, pending: &Pending) -> Result<Held, Gone> {
    let Pending { link, code, .. } = pending;
    let stop = if terminal.is_raw { " Ctrl-C gives up." } else { "" };
    terminal
        .say(&format!(
            "sign in at {link}\ncheck that it shows the code {code}. This goes on by itself.{stop}"
        ))
        .await?;
    let (why, end) = tokio::select! {
        outcome = pending.outcome() => match outcome {
            Ok(identity) => {
                terminal.say(&format!("signed in as {}", identity.user)).await?;
                return Ok(Held::SignedIn(identity));
            }
            Err(why) => (why.to_string(), NO_CONNECTION),
        },
        () = terminal.inbox.interrupted(), if terminal.is_raw => ("sign-in given up".to_owned(), INTERRUPTED),
        () = shared.door.shutdown.cancelled() => ("the gateway is shutting down; connect again soon".to_owned(), NO_CONNECTION),
        () = terminal.inbox.gone().cancelled() => return Err(Gone),
    };
    terminal.say(&why).await?;
    shared.disconnect(&why);
    Ok(Held::Over(End::Code(end)))
}

enum Opened {
    Session(Arc<dyn HostSession>),
    Over(End),
}

/// From the address to an authorised session, or to what the person should read instead.
async fn open(
    shared: &Shared,
    terminal: &Terminal,
    identity: &Identity,
    work: &Work,
) -> Result<Opened, Gone> {
    let hosts = &shared.door.hosts;
    let targets = hosts.targets(identity);
    let is_known = |host: &str| targets.iter().any(|target| target.host == host);
    let (host, user) = match &shared.address {
        Address::Full { host, user } => (host, Some(user.as_str())),
        Address::Bare(host) if is_known(host) => (host, None),
        Address::Bare(name) if wants_shell(work) => {
            // `ssh gateway` sends the person's local name, which is no host.
            terminal.say(&format!("`{name}` is not a host that you may reach; here is what is")).await?;
            return list(shared, terminal, identity, &targets, 0).await;
        }
        Address::Bare(name) => {
            terminal.say(&format!("there is no host `{name}` that you may reach")).await?;
            return list(shared, terminal, identity, &targets, NOT_PERMITTED).await;
        }
        Address::Invalid => {
            terminal.say("the name before the @ is not a host; write HOST+USER@gateway").await?;
            return list(shared, terminal, identity, &targets, NOT_PERMITTED).await;
        }
    };
    match shared.session(identity, host, user).await {
        Ok(session) => Ok(Opened::Session(session)),
        Err(refusal) => {
            terminal.say(&refusal.to_string()).await?;
            match refusal.kind {
                RefusalKind::Policy | RefusalKind::Ambiguous if is_known(host) => {
                    Ok(Opened::Over(End::Code(NOT_PERMITTED)))
                }
                RefusalKind::Policy | RefusalKind::Ambiguous => {
                    list(shared, terminal, identity, &targets, NOT_PERMITTED).await
                }
                RefusalKind::Offline | RefusalKind::Unrecorded => Ok(Opened::Over(End::Code(NO_CONNECTION))),
            }
        }
    }
}

fn wants_shell(work: &Work) -> bool {
    matches!(work.work, Some(work::Work::Shell(_)))
}

/// The list on stdout, where it was asked for; on stderr beside an error.
async fn list(
    shared: &Shared,
    terminal: &Terminal,
    identity: &Identity,
    targets: &[TargetInfo],
    code: u32,
) -> Result<Opened, Gone> {
    let door = &shared.door;
    let text = listing::table(&identity.user, targets, &door.host, door.config.port);
    if code == 0 {
        terminal.print(&text).await?;
    } else {
        terminal.say(&text).await?;
    }
    Ok(Opened::Over(End::Code(code)))
}

/// Moves bytes both ways until the host is done, the client is gone, or the session must end. The two directions
/// wait for each other nowhere.
async fn bridge(
    shared: &Shared,
    terminal: &Terminal,
    session: &dyn HostSession,
    to_host: Box<dyn ToHost>,
    mut from_host: Box<dyn FromHost>,
) -> Result<End, Gone> {
    let mut down = pin!(downwards(terminal, from_host.as_mut()));
    let mut up = pin!(upwards(terminal, to_host.as_ref()));
    let mut ended = pin!(session.ended());
    let mut up_is_done = false;
    let why = loop {
        tokio::select! {
            end = &mut down => {
                if end.is_err() {
                    // Only hanging up is left.
                    let _ = tokio::time::timeout(HANGUP_PATIENCE, to_host.send(Input::Hangup)).await;
                }
                return end;
            }
            () = &mut up, if !up_is_done => up_is_done = true,
            reason = &mut ended => break reason.to_string(),
            () = shared.door.shutdown.cancelled() => break "the gateway is shutting down".to_owned(),
        }
    };
    terminal.say_briefly(&why).await;
    let _ = tokio::time::timeout(HANGUP_PATIENCE, to_host.send(Input::Hangup)).await;
    // What the program and the host still have to say.
    let last = tokio::time::timeout(LAST_OUTPUT, &mut down).await;
    shared.disconnect(&why);
    if let Ok(Err(Gone)) = last { Err(Gone) } else { Ok(End::Code(NO_CONNECTION)) }
}

/// Client to host. Ends when nothing more can go.
async fn upwards(terminal: &Terminal, to_host: &dyn ToHost) {
    let bytes = async {
        loop {
            let input = match terminal.inbox.next().await {
                Arrival::Data(data) => Input::Data(data),
                Arrival::Eof => Input::Eof,
                Arrival::Gone => return,
            };
            if to_host.send(input).await.is_err() {
                return;
            }
        }
    };
    let asides = async {
        loop {
            let input = match terminal.inbox.next_aside().await {
                Aside::Resize(size) => Input::Resize(size),
                Aside::Signal(name) => Input::Signal(name),
            };
            if to_host.send(input).await.is_err() {
                return;
            }
        }
    };
    // A program that reads nothing gets its signals all the same.
    tokio::select! {
        () = bytes => {}
        () = asides => {}
    }
}

/// Host to client, up to the exit. The end of the output is told together with the exit status, never before: a
/// client that has nothing more to send closes the channel on it, russh answers with a close of its own, and the exit
/// status could not be told any more.
async fn downwards(terminal: &Terminal, from_host: &mut dyn FromHost) -> Result<End, Gone> {
    loop {
        let output = tokio::select! {
            output = from_host.recv() => output,
            () = terminal.inbox.gone().cancelled() => return Err(Gone),
        };
        match output {
            Some(Output::Stdout(data)) => terminal.stdout(data).await?,
            Some(Output::Stderr(data)) => terminal.stderr(data).await?,
            Some(Output::Eof) => {}
            Some(Output::Exit(exit)) => return Ok(end_of(exit)),
            None => {
                let why = from_host.lost().unwrap_or_else(|| "the host was lost".to_owned());
                terminal.say_briefly(&why).await;
                return Ok(End::Code(NO_CONNECTION));
            }
        }
    }
}

fn end_of(exit: Exit) -> End {
    match exit.status {
        Some(exit::Status::Code(code)) => End::Code(code),
        Some(exit::Status::Signal(name)) => {
            End::Signal { name, core_dumped: exit.core_dumped, message: exit.message }
        }
        None => End::Code(NO_CONNECTION),
    }
}
