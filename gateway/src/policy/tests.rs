//! Wherever the gateway dies within a change of policy, its next start finds one state, and the log says which.

use super::*;
use crate::recorder::reader::Filter;
use crate::state::canaries::{self, Plan};
use sallyport_evidence::Record;
use sallyport_evidence::record::{Kind, Outcome};
use tokio_util::sync::CancellationToken;

const RULES: &str = "@id(\"run\") permit (principal, action == Action::\"exec\", resource);";

/// A state folder, opened as a start does, and what is in it.
struct Folder {
    dir: tempfile::TempDir,
}

/// What a start opens.
struct Opened {
    state: State,
    recorder: Recorder,
    store: PolicyStore,
}

fn archive(name: &str) -> Bundle {
    let manifest = "name = \"t\"\nschema = 2\ncontact = \"c\"\n";
    Bundle::from_files([("bundle.toml", manifest), ("t.cedar", &format!("{RULES}\n// {name}\n"))]).unwrap()
}

fn stored(name: &str, how: How) -> Stored {
    let bundle = archive(name);
    Stored { version: bundle.version(), archive: bundle.to_archive().into(), how, ..Stored::default() }
}

impl Folder {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    async fn open(&self) -> Opened {
        let path = self.dir.path();
        let state = State::open(&path.join("state.db")).unwrap();
        let recorder = Recorder::open(&path.join("evidence"), "gw", CancellationToken::new()).unwrap();
        let bundle = path.join("bundle");
        if !bundle.exists() {
            std::fs::create_dir(&bundle).unwrap();
            for file in archive("first").paths() {
                std::fs::write(bundle.join(file), archive("first").file(file).unwrap()).unwrap();
            }
        }
        let store =
            PolicyStore::open(state.clone(), recorder.clone(), path, "gw", Some(&bundle)).await.unwrap();
        Opened { state, recorder, store }
    }
}

impl Opened {
    /// As a killed process leaves it: nothing more is written.
    async fn die(self) {
        self.recorder.stop().await;
    }

    async fn records(&self) -> Vec<(Option<Outcome>, String)> {
        let entries = self.recorder.reader().range(&Filter::default(), 0, u64::MAX, 1000).await.unwrap();
        let records = entries.iter().map(|entry| Record::from_bytes(&entry.record).unwrap());
        let policy = records.filter(|record| record.kind == Kind::Policy);
        policy
            .map(|record| (record.decision.map(|d| d.outcome), record.message.unwrap_or_default()))
            .collect()
    }

    async fn log_from(&self) -> u64 {
        *self.recorder.size().borrow()
    }

    fn loaded(name: &str, how: How, serial: u64) -> InForce {
        let mut loaded = load(stored(name, how)).unwrap();
        loaded.stored.serial = serial;
        loaded
    }
}

#[tokio::test]
async fn killed_before_the_record_it_never_happened() {
    let folder = Folder::new();
    let opened = folder.open().await;
    let from = opened.log_from().await;
    let serial = policies::begin(&opened.state, stored("second", How::Push), None, from).await.unwrap();
    opened.die().await;
    for _ in 0..2 {
        let opened = folder.open().await;
        assert_eq!(opened.store.version(), archive("first").version());
        let records = opened.records().await;
        // Said once, however often it is started.
        let told: Vec<_> = records.iter().filter(|(_, text)| text.contains("was interrupted")).collect();
        assert_eq!(told.len(), 1, "{records:?}");
        assert_eq!(told[0].0, Some(Outcome::Blocked));
        assert!(policies::by_serial(&opened.state, serial).await.unwrap().is_none());
        opened.die().await;
    }
}

#[tokio::test]
async fn killed_after_the_record_it_is_in_force() {
    let folder = Folder::new();
    let opened = folder.open().await;
    let from = opened.log_from().await;
    let serial = policies::begin(&opened.state, stored("second", How::Push), None, from).await.unwrap();
    let record = change::change_record(
        &Opened::loaded("second", How::Push, serial),
        &archive("first").version(),
        None,
        None,
    );
    opened.recorder.append(record).await.unwrap();
    assert_eq!(opened.store.version(), archive("first").version(), "control: not yet");
    opened.die().await;
    let opened = folder.open().await;
    assert_eq!((opened.store.version(), opened.store.serial()), (archive("second").version(), serial));
    assert!(opened.records().await.iter().all(|(outcome, _)| *outcome == Some(Outcome::Allowed)));
    opened.die().await;
    let opened = folder.open().await;
    assert_eq!(opened.store.serial(), serial, "committed once");
}

#[tokio::test]
async fn a_record_of_another_change_does_not_count() {
    let folder = Folder::new();
    let opened = folder.open().await;
    let from = opened.log_from().await;
    // The same version under another number, as from an earlier push of it.
    let record = change::change_record(
        &Opened::loaded("second", How::Push, 77),
        &archive("first").version(),
        None,
        None,
    );
    opened.recorder.append(record).await.unwrap();
    policies::begin(&opened.state, stored("second", How::Push), None, from).await.unwrap();
    opened.die().await;
    assert_eq!(folder.open().await.store.version(), archive("first").version());
}

#[tokio::test]
async fn a_canary_starts_and_ends_whole() {
    let folder = Folder::new();
    let opened = folder.open().await;
    let plan = Plan { hosts: vec!["web-1".into()], share: 1000, until_ms: i64::MAX, ..Plan::default() };
    let from = opened.log_from().await;
    let serial = policies::begin(&opened.state, stored("second", How::Canary), Some(plan.clone()), from)
        .await
        .unwrap();
    assert!(canaries::running(&opened.state).await.unwrap().is_none(), "begun is not running");
    opened.die().await;
    let opened = folder.open().await;
    assert!(opened.store.canary().await.unwrap().is_none(), "killed before its record: there is none");
    // Now with its record.
    let from = opened.log_from().await;
    let again =
        policies::begin(&opened.state, stored("second", How::Canary), Some(plan), from).await.unwrap();
    assert!(again > serial);
    let loaded = Opened::loaded("second", How::Canary, again);
    let record = change::change_record(&loaded, &archive("first").version(), None, None);
    opened.recorder.append(record).await.unwrap();
    opened.die().await;
    let opened = folder.open().await;
    assert_eq!(opened.store.version(), archive("first").version());
    let on = |host: &str| opened.store.for_session(host, "any").unwrap().stored.version.clone();
    assert_eq!((on("web-1"), on("web-2")), (archive("second").version(), archive("first").version()));
    // Its end: on the record, not committed.
    let from = opened.log_from().await;
    let last = policies::begin(&opened.state, stored("second", How::Promotion), None, from).await.unwrap();
    let loaded = Opened::loaded("second", How::Promotion, last);
    let record = change::change_record(&loaded, &archive("first").version(), None, None);
    opened.recorder.append(record).await.unwrap();
    opened.die().await;
    let opened = folder.open().await;
    assert_eq!(opened.store.version(), archive("second").version());
    assert!(canaries::running(&opened.state).await.unwrap().is_none());
    assert_eq!(opened.store.canary().await.unwrap().unwrap().state, "promoted");
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_in_force() {
    let folder = Folder::new();
    let opened = folder.open().await;
    // As with a full disk.
    opened.recorder.stop().await;
    let refused = opened.store.bring(Opened::loaded("second", How::Push, 0), None, None).await;
    assert!(matches!(refused, Err(PolicyError::Unrecorded)));
    assert_eq!(opened.store.version(), archive("first").version());
    assert!(policies::begun(&opened.state).await.unwrap().is_empty(), "it was taken back");
    assert_eq!(folder.open().await.store.version(), archive("first").version());
}
