//! kill -9: the recorder in a child process, and the whole gateway in the tests' own.

use crate::rig::{Rig, eventually, person, verify};
use crate::sensor::Host;
use sallyport_contract::v1::LiveChannel;
use sallyport_contract::v1::gateway_order::Order;
use sallyport_evidence::record::Kind;
use sallyport_evidence::{Checkpoint, Record};
use sallyport_gateway::recorder::{self, Recorder};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use tokio_util::sync::CancellationToken;

const CHILD: &str = "SALLYPORT_TEST_RECORDER";
const ROUNDS: u64 = 12;

/// Not a test of its own: the child of the next one. Appends until it is killed, and says what was acknowledged and
/// which checkpoints were published.
#[test]
fn recorder_child() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let recorder = Recorder::open(Path::new(&dir), "gateway.test", CancellationToken::new()).unwrap();
        let (said, mut lines) = tokio::sync::mpsc::channel::<String>(64);
        for _ in 0..8 {
            let (recorder, said) = (recorder.clone(), said.clone());
            tokio::spawn(async move {
                loop {
                    let mark = uuid::Uuid::now_v7().to_string();
                    let mut record = recorder::draft(Kind::Access);
                    record.message = Some(mark.clone());
                    let index = recorder.append(record).await.unwrap();
                    said.send(format!("ack {index} {mark}")).await.unwrap();
                }
            });
        }
        let mut stdout = std::io::stdout();
        let mut n = 0;
        while let Some(line) = lines.recv().await {
            writeln!(stdout, "{line}").unwrap();
            n += 1;
            if n % 50 == 0 {
                let note = recorder.reader().checkpoint().await.unwrap().unwrap();
                writeln!(stdout, "note {}", note.replace('\n', "|")).unwrap();
            }
        }
    });
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let (mut acks, mut notes) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::recorder_child", "--nocapture", "--test-threads=1"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Killed after another number of acknowledgements each round: at another point of the commit.
        let mut left = 20 + round * 37;
        let mut take = |line: String| {
            if let Some(ack) = line.split("ack ").nth(1) {
                let (index, mark) = ack.split_once(' ').unwrap();
                acks.push((index.parse::<u64>().unwrap(), mark.to_owned()));
            } else if let Some(note) = line.strip_prefix("note ") {
                notes.push(note.replace('|', "\n"));
            }
        };
        while left > 0 {
            take(lines.next().unwrap().unwrap());
            left -= 1;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it still said before it died counts too; its very last line may be torn.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        for line in rest.iter().take(rest.len().saturating_sub(1)) {
            take(line.clone());
        }
    }
    let key = recorder::verify::own_key(dir.path(), "gateway.test").unwrap();
    let report = recorder::verify::verify(dir.path(), &key, 0).unwrap();
    assert!(report.holds(), "{report}");
    assert!(acks.len() > 500, "{}", acks.len());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let recorder = Recorder::open(dir.path(), "gateway.test", CancellationToken::new()).unwrap();
        let entries =
            recorder.reader().range(&Default::default(), 0, u64::MAX, usize::MAX >> 1).await.unwrap();
        for (index, mark) in &acks {
            let record = Record::from_bytes(&entries[usize::try_from(*index).unwrap()].record).unwrap();
            assert_eq!(record.message.as_ref(), Some(mark), "leaf {index}");
        }
        let mut seen = std::collections::HashSet::new();
        for entry in &entries {
            let source = Record::from_bytes(&entry.record).unwrap().source;
            assert!(seen.insert((source.boot, source.seq)), "doubled");
        }
        // Every checkpoint that anybody ever saw is one of this log's.
        let leaves: Vec<_> =
            entries.iter().map(|e| sallyport_evidence::merkle::leaf_hash(&e.record)).collect();
        assert!(notes.len() > 5);
        for note in &notes {
            let checkpoint = Checkpoint::open(note, &key).unwrap();
            let size = usize::try_from(checkpoint.size).unwrap();
            assert_eq!(sallyport_evidence::merkle::root(&leaves[..size]), checkpoint.root);
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_was_killed_closes_what_it_left_open() {
    let rig = Rig::start().await;
    let joined = rig.join("web-1").await;
    let host = Host::default();
    let link = host.connect(&rig, &joined).await;
    let client = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let session = rig
        .gateway
        .authorizer
        .open_session(&person("alice", "engineers"), "web-1", Some("root"), client)
        .await
        .unwrap();
    let mut channel = session.start_channel(crate::channels::command("sleep")).await.unwrap();
    channel.output.recv().await.unwrap();
    let id = session.id().to_owned();
    // The disk as kill -9 leaves it: a copy while everything runs.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let copy = tempfile::tempdir().unwrap();
    copy_dir(rig.dir.path(), copy.path());
    let (old_dir, _) = {
        drop((channel, session, link));
        rig.stop().await
    };
    drop(old_dir);

    let rig = Rig::start_in(copy, |_| {}).await;
    let records = rig.records().await;
    let closes: Vec<_> =
        records.iter().filter(|r| matches!(r.kind, Kind::SessionClose | Kind::ChannelClose)).collect();
    assert_eq!(closes.len(), 2);
    assert!(closes.iter().all(|r| r.session.as_ref().unwrap().id == id));
    assert!(closes[0].message.as_ref().unwrap().starts_with("lost: gateway restarted; recording of "));
    assert_eq!(closes[1].message.as_deref(), Some("gateway restarted"));
    // The sensor still has it, and is told to end it.
    let alive = LiveChannel { session_id: id.clone(), channel_id: uuid::Uuid::now_v7().to_string() };
    let (reports, outgoing) = tokio::sync::mpsc::channel(1);
    reports.send(crate::sensor::hello(vec![alive])).await.unwrap();
    let mut sensor = rig.as_sensor(&joined).await;
    let mut orders =
        sensor.control(tokio_stream::wrappers::ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    loop {
        if let Some(Order::EndSession(end)) = orders.message().await.unwrap().unwrap().order {
            assert_eq!(end.session_id, id);
            assert!(end.reason.contains("the gateway was restarted"), "{}", end.reason);
            break;
        }
    }
    eventually("verified", async || verify(rig.dir.path()).holds()).await;
    let second = sallyport_gateway::Gateway::start(crate::rig::config(rig.dir.path())).await;
    assert!(second.is_err_and(|err| err.to_string().contains("another sallyport-gateway is running")));
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}
