//! `replay`: a session as it was seen, with what the kernel saw between the lines.

use std::{
    io::{self, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rand::Rng;
use sallyport_contract::v1::{EventsRequest, RecordingRequest};
use sallyport_evidence::record::{Kind, Record};
use serde_json::json;
use tonic::Status;

use crate::{
    args::Replay,
    cast::{Event, Header, Parser, What},
    clock,
    failure::Failure,
    gateway::{Console, Context},
    out::Look,
    replay::{
        player::{Effect, Player},
        render::Render,
        timeline::{self, Item, Note, Timed},
        tty,
    },
    text::safe,
};

/// Output that is kept in memory for playing; a longer recording can still be saved.
const MOST_OUTPUT: usize = 256 << 20;
/// Notes that are kept in memory.
const MOST_NOTES: usize = 200_000;

/// What the log says about the session.
#[derive(Default)]
struct FromLog {
    notes: Vec<Note>,
    left_out: u64,
    channels: Vec<(String, u64)>,
    channel: String,
}

impl FromLog {
    fn opened_ns(&self) -> Option<u64> {
        self.channels.iter().find(|(id, _)| *id == self.channel).map(|(_, opened)| *opened)
    }
}

/// Runs it.
///
/// # Errors
/// The gateway refuses or cannot be asked, or the recording is damaged.
pub async fn run(context: &Context, args: Replay) -> Result<(), Failure> {
    let (mut console, _) = context.console().await?;
    let channel = args.channel.clone().unwrap_or_default();
    if let Some(path) = &args.save {
        return save(context, &mut console, &args.session, channel, path).await;
    }
    let from_log = if args.no_events {
        FromLog { channel, ..FromLog::default() }
    } else {
        log(&mut console, &args.session, channel).await?
    };
    let (header, events) = recording(&mut console, &args.session, &from_log.channel).await?;
    let start_ns = timeline::start_ns(&header, from_log.opened_ns());
    announce(context, &header, &from_log, &args)?;
    let items = timeline::merge(events, from_log.notes, start_ns);
    if context.out.json {
        return documents(context, &items);
    }
    play(context, &args, items)
}

fn play(context: &Context, args: &Replay, items: Vec<Timed>) -> Result<(), Failure> {
    let is_terminal = io::stdout().is_terminal();
    let mark = mark();
    let mut render = Render::new(!is_terminal, context.out.colour, &mark);
    let mut player = Player::new(items, args.speed, args.idle_limit);
    let has_notes = player.items().iter().any(|timed| matches!(timed.item, Item::Kernel(_)));
    if has_notes {
        let explained = format!(
            "Lines that begin with {mark} were not printed by the session: they are what the kernel saw."
        );
        context.out.line(context.out.look(Look::Dim, &explained))?;
    }
    if is_terminal && io::stdin().is_terminal() {
        let keys = "Keys: space pauses, arrows seek, + and - change the speed, q quits.";
        context.out.line(context.out.look(Look::Dim, keys))?;
        let played = tty::play(&mut player, &mut render, args.from);
        played.map_err(Failure::from)?;
        let (position, length) = (clock::position(player.position()), clock::position(player.length()));
        let end = if player.is_over() {
            "the end".to_owned()
        } else {
            format!("stopped at {position} of {length}")
        };
        context.out.line(context.out.look(Look::Dim, &format!("— {end} —")))?;
        return Ok(());
    }
    // Nobody watches: all of it at once.
    let first = match args.from.map(|from| player.seek(from)) {
        Some(Effect::Skip { to, .. }) => to,
        _ => 0,
    };
    let mut stdout = io::stdout().lock();
    let mut out = String::new();
    for timed in &player.items()[first..] {
        render.item(timed, &mut out);
        stdout.write_all(out.as_bytes())?;
        out.clear();
    }
    render.finish(&mut out);
    stdout.write_all(out.as_bytes())?;
    stdout.flush().map_err(Into::into)
}

/// New each time: nothing that was recorded can have guessed it.
fn mark() -> String {
    const SIGNS: &[u8] = b"bcdfghjkmnpqrstvwxz23456789";
    let mut lot = rand::rng();
    let signs: String = (0..4).map(|_| char::from(SIGNS[lot.random_range(0..SIGNS.len())])).collect();
    format!("┊{signs}┊")
}

fn announce(context: &Context, header: &Header, from_log: &FromLog, args: &Replay) -> Result<(), Failure> {
    let title = if header.title.is_empty() { &args.session } else { &header.title };
    let command =
        if header.command.is_empty() { String::new() } else { format!(": {}", safe(&header.command, 200)) };
    context.out.remark(context.out.look(Look::Bold, &format!("{}{command}", safe(title, 200))))?;
    if from_log.channels.len() > 1 && args.channel.is_none() {
        let others: Vec<String> = from_log
            .channels
            .iter()
            .map(|(id, _)| id)
            .filter(|id| **id != from_log.channel)
            .map(|id| safe(id, 60))
            .collect();
        eprintln!(
            "This is the first of {} channels; the others with --channel: {}",
            from_log.channels.len(),
            others.join(", ")
        );
    }
    if from_log.left_out > 0 {
        eprintln!(
            "{} records more than fit are left out; `sallyport events --session` has them all.",
            from_log.left_out
        );
    }
    Ok(())
}

fn documents(context: &Context, items: &[Timed]) -> Result<(), Failure> {
    for Timed { at, item } in items {
        let at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        let document = match item {
            Item::Output(data) => json!({ "at_ms": at_ms, "type": "output", "data": data }),
            Item::Resize(columns, rows) => {
                json!({ "at_ms": at_ms, "type": "resize", "columns": columns, "rows": rows })
            }
            Item::Remark(text) => json!({ "at_ms": at_ms, "type": "remark", "text": text }),
            Item::Kernel(note) => json!({
                "at_ms": at_ms, "type": "event", "index": note.index, "time_ns": note.time_ns, "text": note.text,
                "denied": note.is_bad,
            }),
            Item::Exit(status) => json!({ "at_ms": at_ms, "type": "exit", "status": status }),
        };
        context.out.json(&document)?;
    }
    Ok(())
}

fn failure(status: &Status) -> Failure {
    let failure = Failure::from_status("reading the session", status);
    if status.code() == tonic::Code::NotFound {
        return failure.next("`sallyport sessions` lists the sessions and their channels");
    }
    failure
}

/// The session's records: what the kernel saw, and which channels there are.
async fn log(console: &mut Console, session: &str, channel: String) -> Result<FromLog, Failure> {
    let request = EventsRequest { session_id: session.to_owned(), ..EventsRequest::default() };
    let mut entries = console.events(request).await.map_err(|status| failure(&status))?.into_inner();
    let mut found = FromLog { channel, ..FromLog::default() };
    while let Some(entry) = entries.message().await.map_err(|status| failure(&status))? {
        // A record of a newer version is not for this player.
        let Ok(record) = Record::from_bytes(&entry.record) else { continue };
        if record.kind == Kind::ChannelOpen
            && let Some(of) = record.session.as_ref().map(|session| session.channel.clone())
        {
            if found.channel.is_empty() {
                found.channel.clone_from(&of);
            }
            if found.channels.len() < 1000 {
                found.channels.push((of, record.time_ns));
            }
        }
        if let Some(note) = timeline::note(entry.index, &record, &found.channel) {
            if found.notes.len() < MOST_NOTES {
                found.notes.push(note);
            } else {
                found.left_out += 1;
            }
        }
    }
    Ok(found)
}

async fn recording(
    console: &mut Console,
    session: &str,
    channel: &str,
) -> Result<(Header, Vec<Event>), Failure> {
    let request = RecordingRequest { session_id: session.to_owned(), channel_id: channel.to_owned() };
    let mut chunks = console.recording(request).await.map_err(|status| failure(&status))?.into_inner();
    let damaged =
        |err: &crate::cast::CastError| Failure::failed("the recording cannot be played").because(err);
    let mut parser = Parser::default();
    let mut events = Vec::new();
    let mut output = 0;
    while let Some(chunk) = chunks.message().await.map_err(|status| failure(&status))? {
        for event in parser.push(&chunk.data).map_err(|err| damaged(&err))? {
            // An event costs some memory even when it is empty.
            output += 64;
            if let What::Output(text) | What::Marker(text) | What::Input(text) = &event.what {
                output += text.len();
            }
            events.push(event);
        }
        if output > MOST_OUTPUT {
            return Err(Failure::failed("the recording is too long to be played here")
                .next("save it with --save FILE and play it with a player for asciicast v3"));
        }
    }
    let (header, last) = parser.finish().map_err(|err| damaged(&err))?;
    events.extend(last);
    Ok((header, events))
}

/// As it is, to a new file that only its owner reads.
async fn save(
    context: &Context,
    console: &mut Console,
    session: &str,
    channel: String,
    path: &Path,
) -> Result<(), Failure> {
    let request = RecordingRequest { session_id: session.to_owned(), channel_id: channel };
    let mut chunks = console.recording(request).await.map_err(|status| failure(&status))?.into_inner();
    let cannot = |err: io::Error| Failure::failed(format!("cannot write `{}`", path.display())).because(&err);
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(cannot)?;
    let mut bytes = 0u64;
    while let Some(chunk) = chunks.message().await.map_err(|status| failure(&status))? {
        file.write_all(&chunk.data).map_err(cannot)?;
        bytes += chunk.data.len() as u64;
    }
    file.sync_all().map_err(cannot)?;
    if context.out.json {
        context.out.json(&json!({ "path": path, "bytes": bytes }))?;
    } else {
        context.out.line(format!("Saved {bytes} bytes to {}.", path.display()))?;
    }
    Ok(())
}
