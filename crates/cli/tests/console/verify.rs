//! `verify` finds what was changed, and only that.

use sallyport_evidence::{
    Checkpoint,
    merkle::{Frontier, leaf_hash},
    note::Signer,
};

use super::{
    person::{Person, Ran, signed_in},
    records::{denial, record},
};

async fn verify(person: &Person) -> Ran {
    person.run(&["--json", "verify"]).await
}

fn log(n: u64) -> Vec<Vec<u8>> {
    (1..=n).map(|seq| record(seq, "exec", serde_json::json!({}))).collect()
}

#[tokio::test]
async fn a_sound_log_and_what_is_new() {
    let (gateway, person) = signed_in().await;
    (gateway.state().records, gateway.state().signed) = (log(10), 10);
    let ran = verify(&person).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let said = &ran.documents()[0];
    assert_eq!((said["proved_records"].as_u64(), said["first_time"].as_bool()), (Some(10), Some(true)));

    (gateway.state().records, gateway.state().signed) = (log(15), 15);
    let ran = verify(&person).await;
    let said = &ran.documents()[0];
    assert_eq!((ran.code, said["new_since_last"].as_u64()), (0, Some(5)), "{ran:?}");
    let ran = person.run(&["verify"]).await;
    assert!(
        ran.stdout.contains("Verified: 15 records") && ran.stdout.contains("not anchored elsewhere"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn history_that_was_rewritten_and_signed_again() {
    let (gateway, person) = signed_in().await;
    (gateway.state().records, gateway.state().signed) = (log(10), 10);
    assert_eq!(verify(&person).await.code, 0);
    // The gateway's own key signs the changed log: only the checkpoint kept here gives it away.
    gateway.state().records[3] = denial(4, "/bin/true");
    let ran = verify(&person).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_eq!(ran.documents()[0]["holds"], false);

    // The same, longer than before.
    (gateway.state().records, gateway.state().signed) = (log(20), 20);
    gateway.state().records[3] = denial(4, "/bin/true");
    let ran = verify(&person).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let ran = person.run(&["verify"]).await;
    assert!(ran.stdout.contains("does NOT verify") && ran.stdout.contains("leaves 0 to 9"), "{ran:?}");
    // And the checkpoint that proves it is still there.
    (gateway.state().records, gateway.state().signed) = (log(20), 20);
    assert_eq!(verify(&person).await.code, 0, "the true log still verifies");
}

#[tokio::test]
async fn a_record_that_was_changed_cut_off_or_rolled_back() {
    let (gateway, person) = signed_in().await;
    (gateway.state().records, gateway.state().signed) = (log(10), 10);
    let kept = person.path("kept");
    let ran = person.run(&["verify", "--save-checkpoint", kept.to_str().expect("utf-8")]).await;
    assert_eq!(ran.code, 0, "{ran:?}");

    (gateway.state().records, gateway.state().signed) = (log(5), 5);
    let ran = person.run(&["verify"]).await;
    assert!(ran.code == 1 && ran.stdout.contains("10 leaves were signed, 5 are there"), "{ran:?}");

    // On another computer, with the checkpoint that was kept.
    let (gateway, other) = signed_in().await;
    (gateway.state().records, gateway.state().signed) = (log(5), 5);
    assert_eq!(verify(&other).await.code, 0, "nothing is known here");
    let ran = other.run(&["verify", "--from-checkpoint", kept.to_str().expect("utf-8")]).await;
    assert!(ran.code == 1 && ran.stdout.contains("10 leaves were signed, 5 are there"), "{ran:?}");
}

#[tokio::test]
async fn another_key_is_not_accepted() {
    let (gateway, person) = signed_in().await;
    (gateway.state().records, gateway.state().signed) = (log(3), 3);
    gateway.state().signer_seed = [9; 32];
    let ran = person.run(&["verify"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("checkpoint is not acceptable"), "{ran:?}");
}

/// A copy of a state folder, as the gateway lays it out.
fn copy(person: &Person, records: &[Vec<u8>]) -> (String, String) {
    let dir = person.path("copy/evidence");
    std::fs::create_dir_all(&dir).expect("made");
    let database = rusqlite::Connection::open(dir.join("evidence.db")).expect("opened");
    database
        .execute_batch(
            "CREATE TABLE leaves (idx INTEGER PRIMARY KEY, hash BLOB NOT NULL, record BLOB NOT NULL) STRICT;
             CREATE TABLE checkpoints (size INTEGER PRIMARY KEY, note TEXT NOT NULL) STRICT;",
        )
        .expect("tables");
    let signer = Signer::new("gateway.test", &[5; 32]).expect("a signer");
    let mut frontier = Frontier::new();
    for record in records {
        let hash = leaf_hash(record);
        let row = rusqlite::params![i64::try_from(frontier.size()).expect("fits"), hash.as_slice(), record];
        database.execute("INSERT INTO leaves VALUES (?,?,?)", row).expect("inserted");
        frontier.push(hash);
    }
    let checkpoint =
        Checkpoint { origin: "gateway.test".to_owned(), size: frontier.size(), root: frontier.root() };
    let note = checkpoint.sign(&signer).expect("signed");
    let size = i64::try_from(frontier.size()).expect("fits");
    database
        .execute("INSERT INTO checkpoints VALUES (?,?)", rusqlite::params![size, note])
        .expect("inserted");
    let dir = person.path("copy").to_str().expect("utf-8").to_owned();
    (dir, signer.verifier().to_string())
}

#[tokio::test]
async fn a_copy_of_the_state_folder_without_a_gateway() {
    let person = Person::new();
    let (dir, key) = copy(&person, &log(5));
    let args = ["--json", "verify", "--state-dir", &dir, "--log-key", &key];
    let ran = person.run(&args).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.documents()[0]["proved_records"], 5);
    let ran = person.run(&["verify", "--state-dir", &dir]).await;
    assert!(ran.code == 1 && ran.stderr.contains("--log-key"), "no key, no verdict: {ran:?}");

    let database = rusqlite::Connection::open(person.path("copy/evidence/evidence.db")).expect("opened");
    let changed = rusqlite::params![denial(3, "/bin/true")];
    database.execute("UPDATE leaves SET record = ? WHERE idx = 2", changed).expect("changed");
    let ran = person.run(&args[1..]).await;
    assert!(ran.code == 1 && ran.stdout.contains("leaf 2 was altered"), "{ran:?}");
    let ran = person.run(&["verify", "--log-key", &key, "--state-dir", "/nonexistent"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
}

#[tokio::test]
async fn a_copy_is_held_against_what_this_computer_saw() {
    let (gateway, person) = signed_in().await;
    (gateway.state().records, gateway.state().signed) = (log(10), 10);
    assert_eq!(verify(&person).await.code, 0);
    let (dir, _) = copy(&person, &log(5));
    let ran = person.run(&["verify", "--state-dir", &dir]).await;
    assert!(ran.code == 1 && ran.stdout.contains("10 leaves were signed, 5 are there"), "{ran:?}");
}
