//! Tests of the spool: numbering, reading, forgetting, restarts, what happens when it is full.

use sallyport_evidence::record::Decision;

use super::*;

fn record(kind: Kind, outcome: Option<Outcome>) -> Record {
    let mut record = crate::records::blank(kind, "web-1", 1, 1);
    record.decision = outcome.map(|outcome| Decision {
        action: "exec".into(),
        outcome,
        policy: "v".into(),
        rule: String::new(),
        reason: String::new(),
        point: "kernel-lsm".into(),
    });
    record.message = Some("x".repeat(100));
    record
}

fn parse(bytes: &Bytes) -> Record {
    Record::from_bytes(bytes).expect("a record")
}

#[tokio::test]
async fn numbers_have_no_gaps_and_survive_a_restart() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("spool.db");
    let spool = Spool::open(&path, "web-1", "boot-a", 1 << 20).expect("spool");
    spool.append_durably(vec![record(Kind::Exec, None), record(Kind::Exit, None)]).await.expect("append");
    assert_eq!(*spool.newest().borrow(), 2);
    let batch = spool.read(0, 1 << 20).await.expect("read").expect("a batch");
    assert_eq!((batch.first_seq, batch.records.len(), batch.boot.as_str()), (1, 2, "boot-a"));
    assert_eq!(
        parse(&batch.records[1]).source,
        Source { maker: "web-1".into(), boot: "boot-a".into(), seq: 2 }
    );
    assert_eq!(spool.read(batch.place, 1 << 20).await.expect("read"), None);
    spool.forget("boot-a".into(), 2).await.expect("forget");
    assert_eq!(spool.read(0, 1 << 20).await.expect("read"), None);
    // A reader that stands after what was forgotten sees what comes next: places are not used twice.
    spool.append_durably(vec![record(Kind::Exit, None)]).await.expect("append");
    let next = spool.read(batch.place, 1 << 20).await.expect("read").expect("a batch");
    assert_eq!(next.first_seq, 3);
    spool.forget("boot-a".into(), 3).await.expect("forget");
    assert_eq!(spool.note("n", Some(7)).await.expect("note"), 7);
    drop(spool);

    // Everything was forgotten, and still the numbers go on.
    let spool = Spool::open(&path, "web-1", "boot-a", 1 << 20).expect("spool");
    assert_eq!(spool.note("n", None).await.expect("note"), 7);
    spool.append_durably(vec![record(Kind::Exec, None)]).await.expect("append");
    drop(spool);
    // Another boot begins at 1, and the old one's records go first.
    let spool = Spool::open(&path, "web-1", "boot-b", 1 << 20).expect("spool");
    spool.append_durably(vec![record(Kind::Exec, None)]).await.expect("append");
    let first = spool.read(0, 1 << 20).await.expect("read").expect("a batch");
    assert_eq!((first.boot.as_str(), first.first_seq, first.records.len()), ("boot-a", 4, 1));
    let second = spool.read(first.place, 1 << 20).await.expect("read").expect("a batch");
    assert_eq!((second.boot.as_str(), second.first_seq), ("boot-b", 1));
}

#[tokio::test]
async fn a_full_spool_keeps_decisions_longest_and_counts_the_rest() {
    let dir = tempfile::tempdir().expect("dir");
    let spool = Spool::open(&dir.path().join("s.db"), "web-1", "b", 20_000).expect("spool");
    let allowed = |n| (0..n).map(|_| record(Kind::Exec, Some(Outcome::Allowed))).collect::<Vec<_>>();
    spool.append_durably(allowed(200)).await.expect("append");
    let kept = *spool.newest().borrow();
    assert!(kept > 5 && kept < 100, "{kept}");
    // Room is still there for what was blocked, and for the loss.
    spool.append_durably(vec![record(Kind::Exec, Some(Outcome::Blocked))]).await.expect("append");
    let batch = spool.read(0, 1 << 20).await.expect("read").expect("a batch");
    let records: Vec<Record> = batch.records.iter().map(parse).collect();
    let loss = records.iter().find_map(|record| record.loss.clone()).expect("a loss record");
    assert_eq!(loss, Loss { what: "exec".into(), why: "spool_evicted".into(), count: 200 - kept, seen: 0 });
    assert!(records.last().and_then(|r| r.decision.as_ref()).is_some_and(|d| d.outcome == Outcome::Blocked));
    let seqs: Vec<u64> = records.iter().map(|record| record.source.seq).collect();
    assert_eq!(seqs, (1..=records.len() as u64).collect::<Vec<_>>());
    // With room again, allowed events are kept again.
    spool.forget("b".into(), batch.first_seq + batch.records.len() as u64).await.expect("forget");
    let before = *spool.newest().borrow();
    spool.append_durably(allowed(1)).await.expect("append");
    assert_eq!(*spool.newest().borrow(), before + 1);
}

#[tokio::test]
async fn batches_are_cut_by_bytes() {
    let dir = tempfile::tempdir().expect("dir");
    let spool = Spool::open(&dir.path().join("s.db"), "web-1", "b", 1 << 20).expect("spool");
    spool.append_durably((0..50).map(|_| record(Kind::Exit, None)).collect()).await.expect("append");
    let (mut place, mut next) = (0, 1);
    while let Some(batch) = spool.read(place, 2_000).await.expect("read") {
        assert_eq!(batch.first_seq, next);
        assert!(batch.records.iter().map(Bytes::len).sum::<usize>() <= 2_000);
        next += batch.records.len() as u64;
        place = batch.place;
    }
    assert_eq!(next, 51);
}

#[test]
fn a_record_beyond_the_limit_loses_its_arguments_not_itself() {
    let mut record = record(Kind::Exec, None);
    let args = vec!["a".repeat(40_000), "b".repeat(40_000)];
    record.process = Some(sallyport_evidence::record::Process { args, ..Default::default() });
    let bytes = bytes_of(&mut record);
    let process = Record::from_bytes(&bytes).expect("a record").process.expect("a process");
    assert_eq!((process.args.len(), process.args_cut_from), (0, Some(80_002)));
}
