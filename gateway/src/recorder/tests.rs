//! The log: durable, in order, exactly once, with its losses counted, and refusing what is not sound.

use super::*;
use reader::Filter;
use sallyport_evidence::record::{Decision, Outcome, Session, Source};

fn open(dir: &Path) -> Recorder {
    Recorder::open(dir, "gateway.test", CancellationToken::new()).unwrap()
}

fn sensor_record(seq: u64) -> Record {
    let mut record = draft(Kind::Exec);
    record.source = Source { maker: "web-1".into(), boot: "b1".into(), seq };
    record.host = Some("web-1".into());
    record.session = Some(Session { id: "s1".into(), ..Session::default() });
    record.decision = Some(Decision {
        action: "exec".into(),
        outcome: if seq.is_multiple_of(2) { Outcome::Blocked } else { Outcome::Allowed },
        policy: "p".into(),
        rule: "no-scanners".into(),
        reason: String::new(),
        point: "kernel-lsm".into(),
    });
    record
}

fn batch(seqs: std::ops::RangeInclusive<u64>) -> Vec<Bytes> {
    seqs.map(|seq| Bytes::from(sensor_record(seq).to_bytes().unwrap())).collect()
}

fn verified(dir: &Path) -> sallyport_evidence::verify::Report {
    verify::verify(dir, &verify::own_key(dir, "gateway.test").unwrap(), 0).unwrap()
}

#[tokio::test]
async fn acknowledged_once_in_order_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    assert_eq!(recorder.append(draft(Kind::Sensor)).await.unwrap(), 0);
    let (durable, noted) = recorder.ingest("web-1", "b1".into(), 1, batch(1..=5)).await.unwrap();
    assert_eq!((durable, noted.len()), (5, 5));
    assert_eq!(noted[1].head.marker().unwrap(), "blocked exec (rule no-scanners)");
    assert!(noted[0].head.marker().is_none());
    // Sent again in part, as after a lost acknowledgement.
    let (durable, noted) = recorder.ingest("web-1", "b1".into(), 3, batch(3..=7)).await.unwrap();
    assert_eq!((durable, noted.len()), (7, 2));
    let (durable, noted) = recorder.ingest("web-1", "b1".into(), 1, batch(1..=2)).await.unwrap();
    assert_eq!((durable, noted.len()), (7, 0));
    assert_eq!(*recorder.size().borrow(), 8);
    let blocked = Filter { outcome: "blocked".into(), session: "s1".into(), ..Filter::default() };
    let newest = recorder.reader().newest(&blocked, u64::MAX, 2).await.unwrap();
    assert_eq!(newest.iter().map(|e| e.index).collect::<Vec<_>>(), [4, 6]);
    assert_eq!(recorder.reader().denials("s1".into()).await.unwrap(), 3);
    recorder.stop().await;
    assert!(recorder.append(draft(Kind::Sensor)).await.is_err());
    let report = verified(dir.path());
    assert!(report.holds() && report.leaves == 8 && report.unproved() == 0, "{report}");
}

#[tokio::test]
async fn a_gap_is_owned_up_to_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    recorder.ingest("web-1", "b1".into(), 1, batch(1..=2)).await.unwrap();
    let (durable, noted) = recorder.ingest("web-1", "b1".into(), 6, batch(6..=6)).await.unwrap();
    assert_eq!((durable, noted[0].index), (6, 3));
    recorder.stop().await;
    let report = verified(dir.path());
    assert!(report.holds() && report.owned_up == 3, "{report}");
    let entry = &recorder.reader().range(&Filter::default(), 2, 3, 1).await.unwrap()[0];
    let loss = Record::from_bytes(&entry.record).unwrap().loss.unwrap();
    assert_eq!((loss.count, loss.why.as_str()), (3, "missing"));
}

#[tokio::test]
async fn what_a_sensor_may_not_say_is_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    let refused = async |maker: &str, boot: &str, first, records| {
        let result = recorder.ingest(maker, boot.into(), first, records).await;
        assert!(matches!(result, Err(IngestError::Unacceptable { .. })), "{result:?}");
    };
    refused("db-1", "b1", 1, batch(1..=2)).await;
    refused("web-1", "b2", 1, batch(1..=2)).await;
    refused("web-1", "b1", 2, batch(1..=2)).await;
    refused("web-1", "b1", 0, batch(0..=2)).await;
    refused("web-1", "b1", u64::MAX, batch(1..=2)).await;
    refused("gateway", "b1", 1, batch(1..=2)).await;
    refused("web-1", "b1", 1, vec![Bytes::from_static(b"{}")]).await;
    refused("web-1", "b1", 1, vec![Bytes::from(vec![b' '; 70_000])]).await;
    let mut other = sensor_record(1);
    other.host = Some("db-1".into());
    refused("web-1", "b1", 1, vec![Bytes::from(other.to_bytes().unwrap())]).await;
    assert_eq!(*recorder.size().borrow(), 0);
    recorder.ingest("web-1", "b1".into(), 1, batch(1..=2)).await.unwrap();
}

#[tokio::test]
async fn a_restart_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3u64 {
        let recorder = open(dir.path());
        recorder.append(draft(Kind::Sensor)).await.unwrap();
        recorder.ingest("web-1", "b1".into(), 1, batch(1..=round + 1)).await.unwrap();
        recorder.stop().await;
    }
    let report = verified(dir.path());
    assert!(report.holds() && report.leaves == 6, "{report}");
}

#[tokio::test]
async fn a_tampered_log_is_not_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    recorder.ingest("web-1", "b1".into(), 1, batch(1..=9)).await.unwrap();
    recorder.stop().await;
    drop(recorder);
    let database = rusqlite::Connection::open(dir.path().join(store::FILE)).unwrap();
    let sql = "UPDATE leaves SET record = CAST(replace(CAST(record AS TEXT), 'exec', 'exit') AS BLOB) WHERE idx = 4";
    assert_eq!(database.execute(sql, []).unwrap(), 1);
    let report = verified(dir.path());
    assert_eq!(
        report.faults[0].to_string(),
        "leaf 4 was altered: its bytes no longer have the hash they were stored with"
    );
    database.execute("DELETE FROM leaves WHERE idx = 8", []).unwrap();
    let result = Recorder::open(dir.path(), "gateway.test", CancellationToken::new());
    assert!(matches!(result, Err(OpenError::Inconsistent { .. })));
}

#[tokio::test]
async fn followers_skip_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    let follower = {
        let recorder = recorder.clone();
        tokio::spawn(async move {
            let (mut size, mut next) = (recorder.size(), 0);
            while next < 200 {
                let to = *size.borrow_and_update();
                for entry in recorder.reader().range(&Filter::default(), next, to, 7).await.unwrap() {
                    assert_eq!(entry.index, next);
                    next += 1;
                }
                if next == to && next < 200 {
                    size.changed().await.unwrap();
                }
            }
        })
    };
    let writers = (0..20).map(|_| {
        let recorder = recorder.clone();
        tokio::spawn(async move {
            for _ in 0..10 {
                recorder.append(draft(Kind::Access)).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    tokio::time::timeout(std::time::Duration::from_secs(20), follower).await.unwrap().unwrap();
    let note = recorder.reader().checkpoint().await.unwrap().unwrap();
    assert!(note.starts_with("gateway.test\n"));
}

#[tokio::test]
async fn a_log_that_cannot_be_written_stops_the_gateway_and_acknowledges_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let fatal = CancellationToken::new();
    let recorder = Recorder::open(dir.path(), "gateway.test", fatal.clone()).unwrap();
    recorder.append(draft(Kind::Access)).await.unwrap();
    let database = rusqlite::Connection::open(dir.path().join(store::FILE)).unwrap();
    database
        .execute_batch(
            "CREATE TRIGGER full BEFORE INSERT ON leaves BEGIN SELECT RAISE(FAIL, 'disk full'); END",
        )
        .unwrap();
    assert!(matches!(recorder.append(draft(Kind::Access)).await, Err(AppendError::Failed)));
    tokio::time::timeout(std::time::Duration::from_secs(5), fatal.cancelled()).await.unwrap();
    database.execute_batch("DROP TRIGGER full").unwrap();
    // It may work again: only a restart, which looks at the disk, may say so.
    assert!(matches!(recorder.append(draft(Kind::Access)).await, Err(AppendError::Failed)));
    let again = open(dir.path());
    assert_eq!(again.append(draft(Kind::Access)).await.unwrap(), 1);
}

proptest::proptest! {
    #[test]
    fn any_bytes_of_a_sensor_are_survived(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        fuzz_batch(&bytes);
        crate::authority::x509::fuzz_peer(&bytes);
    }
}
