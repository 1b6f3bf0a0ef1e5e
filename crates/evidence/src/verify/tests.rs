//! The tamper battery: every alteration is found, and named as closely as the log allows.

use super::*;
use crate::note::Signer;
use crate::record::{Kind, Record};

fn record(maker: &str, seq: u64) -> Record {
    Record {
        schema: 1,
        source: Source { maker: maker.into(), boot: "b1".into(), seq },
        kind: Kind::Exec,
        time_ns: 1_750_000_000_000_000_000 + seq,
        boot_ns: seq,
        host: Some(maker.into()),
        identity: None,
        session: None,
        decision: None,
        process: None,
        endpoint: None,
        file: None,
        system: None,
        loss: None,
        message: None,
    }
}

/// Two makers, interleaved.
fn leaves(n: u64) -> Vec<Vec<u8>> {
    (0..n)
        .map(|i| record(if i % 2 == 0 { "web-1" } else { "gateway" }, i / 2 + 1).to_bytes().unwrap())
        .collect()
}

fn signer() -> Signer {
    Signer::new("gateway.test", &[5; 32]).unwrap()
}

fn checkpoints(leaves: &[Vec<u8>], sizes: &[u64], signer: &Signer) -> Vec<String> {
    let hashes: Vec<Hash> = leaves.iter().map(|l| leaf_hash(l)).collect();
    let sign = |&size: &u64| {
        let root = crate::merkle::root(&hashes[..usize::try_from(size).unwrap()]);
        Checkpoint { origin: signer.verifier().name().into(), size, root }.sign(signer).unwrap()
    };
    sizes.iter().map(sign).collect()
}

fn check(leaves: &[Vec<u8>], notes: &[String]) -> Report {
    let mut check = LogCheck::new(signer().verifier(), notes.iter().map(String::as_str));
    for (i, record) in leaves.iter().enumerate() {
        check.leaf(Leaf { index: i as u64, hash: None, record });
    }
    check.finish()
}

/// A log of 20 with checkpoints at 0, 8, 16 and 20.
fn sound() -> (Vec<Vec<u8>>, Vec<String>) {
    let leaves = leaves(20);
    let notes = checkpoints(&leaves, &[0, 8, 16, 20], &signer());
    (leaves, notes)
}

#[test]
fn a_sound_log_holds_and_says_what_is_proved() {
    let (leaves, notes) = sound();
    let report = check(&leaves, &notes);
    assert!(report.holds(), "{report}");
    assert_eq!(
        report.to_string(),
        "log `gateway.test` of 20 leaves; checkpoint at 20 leaves, newest record 2025-06-15 15:06:40 UTC; \
         4 checkpoints fit; not anchored elsewhere"
    );
    let report = check(&leaves, &notes[..3]);
    assert!(report.holds() && report.unproved() == 4);
}

#[test]
fn every_flipped_bit_is_found_between_the_right_checkpoints() {
    let (leaves, notes) = sound();
    for at in 0..leaves.len() {
        let range = if at < 8 {
            (0, 7)
        } else if at < 16 {
            (8, 15)
        } else {
            (16, 19)
        };
        for bit in 0..leaves[at].len() * 8 {
            let mut altered = leaves.clone();
            altered[at][bit / 8] ^= 1 << (bit % 8);
            let report = check(&altered, &notes);
            let named = report.faults.contains(&Fault::Root { from: range.0, to: range.1 });
            assert!(named, "leaf {at} bit {bit}: {report}");
        }
    }
}

#[test]
fn with_stored_hashes_the_leaf_itself_is_named() {
    let (mut leaves, notes) = sound();
    let hashes: Vec<Hash> = leaves.iter().map(|l| leaf_hash(l)).collect();
    let text = String::from_utf8(leaves[11].clone()).unwrap().replace("exec", "exit");
    leaves[11] = text.into_bytes();
    let mut check = LogCheck::new(signer().verifier(), notes.iter().map(String::as_str));
    for (i, record) in leaves.iter().enumerate() {
        check.leaf(Leaf { index: i as u64, hash: Some(hashes[i]), record });
    }
    assert_eq!(check.finish().faults[0], Fault::Altered { index: 11 });
}

#[test]
fn deleting_inserting_swapping_is_found() {
    let (leaves, notes) = sound();
    for at in 0..19 {
        let mut deleted = leaves.clone();
        deleted.remove(at);
        let report = check(&deleted, &notes);
        assert!(report.faults.contains(&Fault::Truncated { size: 20, leaves: 19 }), "{report}");
        // The maker's own numbers name the place; the very last of a maker has no successor to tell.
        if at < 18 {
            let maker = if at % 2 == 0 { "web-1" } else { "gateway" };
            let missing = Fault::Missing {
                index: at as u64 + 1,
                maker: maker.into(),
                from: at as u64 / 2 + 1,
                count: 1,
            };
            assert!(report.faults.contains(&missing), "{at}: {report}");
        }
        let mut inserted = leaves.clone();
        inserted.insert(at, record("other", 1).to_bytes().unwrap());
        assert!(matches!(check(&inserted, &notes).faults[0], Fault::Root { .. }));
        let mut swapped = leaves.clone();
        swapped.swap(at, at + 1);
        assert!(matches!(check(&swapped, &notes).faults[0], Fault::Root { .. }));
        let mut doubled = leaves.clone();
        doubled.insert(at, leaves[at].clone());
        let report = check(&doubled, &notes);
        assert!(report.faults.iter().any(|f| matches!(f, Fault::Repeated { .. })), "{report}");
    }
}

#[test]
fn cutting_and_rolling_back_is_found() {
    let (leaves, notes) = sound();
    assert!(check(&leaves[..17], &notes).faults.contains(&Fault::Truncated { size: 20, leaves: 17 }));
    // Cut to an old signed checkpoint with the newer ones removed: only somebody who knows better can tell.
    let cut = |expected| {
        let mut check = LogCheck::new(signer().verifier(), notes[..3].iter().map(String::as_str));
        check.expect_at_least(expected);
        for (i, record) in leaves[..16].iter().enumerate() {
            check.leaf(Leaf { index: i as u64, hash: None, record });
        }
        check.finish()
    };
    assert_eq!(cut(20).faults, [Fault::RolledBack { expected: 20, size: 16 }]);
    assert!(cut(16).holds());
    assert_eq!(check(&leaves, &[]).faults, [Fault::Unsigned]);
    assert!(check(&[], &[]).holds());
}

#[test]
fn wrong_keys_and_forked_histories_are_found() {
    let (leaves, notes) = sound();
    let other = Signer::new("gateway.test", &[6; 32]).unwrap();
    let forged = checkpoints(&leaves, &[20], &other);
    let report = check(&leaves, &forged);
    assert!(matches!(report.faults[0], Fault::Checkpoint { number: 1, .. }), "{report}");
    assert!(report.faults.contains(&Fault::Unsigned));
    let mut fork = self::leaves(20);
    fork[19] = record("gateway", 99).to_bytes().unwrap();
    let both = [notes, checkpoints(&fork, &[20], &signer())].concat();
    assert!(check(&leaves, &both).faults.contains(&Fault::Forked { size: 20 }));
}

#[test]
fn a_hole_that_the_log_owns_up_to_is_counted() {
    let mut first = record("gateway", 1);
    first.host = Some("web-1".into());
    first.loss = Some(Loss { what: "record".into(), why: MISSING.into(), count: 4, seen: 5 });
    let mut log = vec![record("web-1", 1), first, record("web-1", 6)];
    let run = |log: &[Record]| {
        let bytes: Vec<Vec<u8>> = log.iter().map(|r| r.to_bytes().unwrap()).collect();
        let notes = checkpoints(&bytes, &[bytes.len() as u64], &signer());
        check(&bytes, &notes)
    };
    let report = run(&log);
    assert!(report.holds() && report.owned_up == 4, "{report}");
    log[2].source.seq = 7;
    assert_eq!(run(&log).faults, [Fault::Missing { index: 2, maker: "web-1".into(), from: 2, count: 5 }]);
}

#[test]
fn indices_must_follow() {
    let (leaves, notes) = sound();
    let mut check = LogCheck::new(signer().verifier(), notes.iter().map(String::as_str));
    check.leaf(Leaf { index: 0, hash: None, record: &leaves[0] });
    check.leaf(Leaf { index: 2, hash: None, record: &leaves[2] });
    let report = check.finish();
    assert_eq!(report.faults[0], Fault::Gap { expected: 1, found: 2 });
}
