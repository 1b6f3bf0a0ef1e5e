//! Files: what is denied leaves no trace, by whatever name; in tracepoint mode they are not judged, which is stated.

use sallyport_sensor::kernel::{Cause, Event, File, FileOp, Head, Judgement, Mode, name};
use sallyport_sensor_abi::names::{Inode, NAME_GUARDED, NAME_SECRET, Name};
use sallyport_sensor_abi::policy::{DENY, QUIET, Word, file_op};

use crate::host::Host;
use crate::tables::Tables;

const RULE: Word = DENY | 4;
const DENIED: Judgement = Judgement::Denied { rule: 4, kill: false, end_session: false };

/// Nothing is reported but what a rule says.
fn quiet() -> Tables {
    (0..file_op::COUNT).fold(Tables::allow_all(), |tables, op| tables.other_files(op, QUIET))
}

fn files(events: Vec<Event>) -> Vec<(Head, File)> {
    events
        .into_iter()
        .filter_map(|event| match event {
            Event::File { head, file } => Some((head, file)),
            _ => None,
        })
        .collect()
}

/// A host whose files are judged. Tests that need one are ignored unless asked for, so that they count as skipped where
/// files are not judged.
fn judging() -> Host {
    let host = Host::start();
    assert_eq!(
        host.kernel.mode(),
        Mode::Lsm,
        "tracepoint mode does not judge files (see sensor-ebpf/src/file.rs)"
    );
    host
}

/// An entry for a file that is there.
fn registered(host: &Host, file: &str, flags: u32) -> (Inode, Name) {
    use std::os::unix::fs::MetadataExt as _;
    let path = host.file(file);
    let data = std::fs::metadata(&path).expect("it is there");
    let (major, minor) = (nix::sys::stat::major(data.dev()), nix::sys::stat::minor(data.dev()));
    let inode = Inode { inode: data.ino(), device: (major << 20 | minor) as u32, _pad: 0 };
    (inode, name(path.to_str().expect("UTF-8").as_bytes(), flags).expect("a short name"))
}

#[tokio::test]
async fn tracepoint_mode_does_not_judge_files() {
    let mut host = Host::start();
    let secret = host.file("secret");
    std::fs::write(&secret, "x").expect("write");
    host.session(1, &quiet().file(file_op::READ, secret.to_str().expect("UTF-8"), RULE));
    let ran = host.run(Some(1), "/usr/bin/cat secret >copy; true");
    assert!(ran.ok(), "{ran:?}");
    let copied = std::fs::read_to_string(host.file("copy")).expect("copy");
    assert_eq!(copied.is_empty(), host.kernel.mode() == Mode::Lsm);
    assert_eq!(files(host.drain().await).is_empty(), host.kernel.mode() == Mode::Tracepoint);
}

#[tokio::test]
#[ignore = "needs BPF LSM; `cargo xtask vm --program` runs it"]
async fn each_operation_is_denied_and_leaves_no_trace() {
    let mut host = judging();
    let target = host.file("target");
    let path = target.to_str().expect("UTF-8").to_owned();
    let (other, fresh) = (host.file("other").display().to_string(), host.file("fresh").display().to_string());
    // What, rule on which path, script, and what would show that it was done.
    let cases: [(u32, &str, &str, &str); 16] = [
        (file_op::READ, &path, "cat target >copy", "[ -s copy ]"),
        (file_op::WRITE, &path, "echo new >>target", "grep -q new target"),
        (file_op::WRITE, &path, "echo new >target", "! grep -q old target"),
        (file_op::WRITE, &path, "truncate -s 0 target", "[ ! -s target ]"),
        (file_op::CREATE, &fresh, "touch fresh", "[ -e fresh ]"),
        (file_op::CREATE, &fresh, "mkdir fresh", "[ -e fresh ]"),
        (file_op::CREATE, &fresh, "ln -s target fresh", "[ -L fresh ]"),
        (file_op::CREATE, &fresh, "ln target fresh", "[ -e fresh ]"),
        (file_op::CREATE, &fresh, "mv target fresh", "[ -e fresh ]"),
        (file_op::LINK, &path, "ln target fresh", "[ -e fresh ]"),
        (file_op::DELETE, &path, "rm -f target", "[ ! -e target ]"),
        (file_op::DELETE, &path, "mv -f other target", "grep -q other target"),
        (file_op::RENAME, &path, "mv target fresh", "[ -e fresh ]"),
        (file_op::CHANGE, &path, "chmod 777 target", "[ $(stat -c %a target) = 777 ]"),
        (file_op::READ, &path, "cat </proc/self/cwd/target >copy", "[ -s copy ]"),
        (file_op::CREATE, &fresh, "mv -T other fresh", "[ -e fresh ]"),
    ];
    let _ = &other;
    let again = "rm -rf target other fresh copy; echo old >target; echo other >other; chmod 644 target";
    for (number, (op, path, script, done)) in (1..).zip(cases) {
        host.session(number, &quiet().file(op, path, RULE));
        assert!(host.run(None, again).ok());
        host.run(Some(number), script);
        assert!(!host.run(None, done).ok(), "{script}: it was done");
        let events = files(host.drain().await);
        assert!(
            events.iter().any(|(head, file)| head.judgement == DENIED
                && file.op.name() == file_op::NAMES[op as usize]
                && file.path == path.as_bytes()
                && file.prevented),
            "{script}: {events:?}"
        );
        host.run(None, script);
        assert!(host.run(None, done).ok(), "{script}: the control of an untagged process did nothing");
        assert!(host.run(None, again).ok());
        host.kernel.close_session(number).expect("close");
        host.session(number, &quiet());
        host.run(Some(number), script);
        assert!(host.run(None, done).ok(), "{script}: a permitted session was denied");
        host.kernel.close_session(number).expect("close");
    }
}

#[tokio::test]
#[ignore = "needs BPF LSM; `cargo xtask vm --program` runs it"]
async fn another_name_does_not_help() {
    let mut host = judging();
    std::fs::create_dir_all(host.file("secrets/deep")).expect("folder");
    std::fs::write(host.file("secrets/deep/key"), "key").expect("write");
    std::fs::write(host.file("single"), "key").expect("write");
    std::fs::create_dir(host.file("m")).expect("folder");
    let folder = host.file("secrets").display().to_string();
    let single = host.file("single").display().to_string();
    host.session(
        1,
        &quiet().file(file_op::READ, &format!("{folder}/*"), RULE).file(file_op::READ, &single, RULE),
    );
    let names = [registered(&host, "secrets", 0), registered(&host, "single", 0)];
    host.kernel.set_names(names).expect("names");
    let ways = [
        ("", "single"),
        ("ln single linked", "linked"),
        ("", "secrets/deep/key"),
        ("mount --bind secrets m", "m/deep/key"),
        ("mount --bind secrets/deep m", "m/key"),
        ("touch f; mount --bind secrets/deep/key f", "f"),
        ("umount f m 2>/dev/null; umount m; mv secrets moved", "moved/deep/key"),
    ];
    for (prepare, way) in ways {
        host.run(None, prepare);
        let read = format!("rm -f copy; cat {way} >copy; true");
        host.run(Some(1), &read);
        assert_eq!(std::fs::read_to_string(host.file("copy")).expect("copy"), "", "{way} was read");
        let events = files(host.drain().await);
        assert!(events.iter().any(|(head, _)| head.judgement == DENIED), "{way}: {events:?}");
        host.run(None, &read);
        assert_eq!(std::fs::read_to_string(host.file("copy")).expect("copy"), "key", "{way}: the control");
    }
    let mut linked = false;
    host.run(Some(1), "cat linked");
    for (_, file) in files(host.drain().await) {
        linked |= file.other_name && file.path == single.as_bytes();
    }
    assert!(linked, "the event names what the rule knows");
    // Forgotten, the other name is only another name.
    host.kernel.set_names([]).expect("names");
    host.run(Some(1), "rm -f copy; cat linked >copy");
    assert_eq!(std::fs::read_to_string(host.file("copy")).expect("copy"), "key");
}

#[tokio::test]
#[ignore = "needs BPF LSM; `cargo xtask vm --program` runs it"]
async fn what_belongs_to_the_sensor_is_refused_whatever_policy_says() {
    let mut host = judging();
    std::fs::create_dir_all(host.file("own/keys")).expect("folder");
    std::fs::write(host.file("own/config"), "c").expect("write");
    std::fs::write(host.file("own/keys/key"), "k").expect("write");
    host.session(1, &quiet());
    let names = [registered(&host, "own", NAME_GUARDED), registered(&host, "own/keys", NAME_SECRET)];
    host.kernel.set_names(names).expect("names");
    let script = "cat own/config >config; cat own/keys/key >key; echo x >>own/config; rm -f own/config; touch own/new; mv own elsewhere; true";
    assert!(host.run(Some(1), script).ok());
    assert_eq!(std::fs::read_to_string(host.file("config")).expect("read"), "c", "it may be read");
    assert_eq!(std::fs::read_to_string(host.file("key")).expect("read"), "", "a secret was read");
    assert_eq!(std::fs::read_to_string(host.file("own/config")).expect("there"), "c");
    assert!(!host.file("own/new").exists());
    let causes: Vec<_> =
        files(host.drain().await).into_iter().map(|(head, file)| (file.op, head.judgement)).collect();
    for op in [FileOp::Read, FileOp::Write, FileOp::Delete, FileOp::Create, FileOp::Rename] {
        assert!(causes.contains(&(op, Judgement::Unjudged(Cause::Guarded))), "{op:?}: {causes:?}");
    }
    assert!(host.run(None, "echo x >>own/config && mv own elsewhere").ok(), "others may");
}

#[tokio::test]
#[ignore = "needs BPF LSM; `cargo xtask vm --program` runs it"]
async fn a_copied_library_is_seen_through_the_loader() {
    let host = judging();
    let loader = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
        .expect("a dynamic loader");
    std::fs::copy("/usr/bin/mkdir", host.file("copy")).expect("copy");
    let path = host.file("copy").display().to_string();
    host.session(1, &quiet().file(file_op::MAP, &path, RULE));
    let script = format!("{loader} ./copy made; true");
    host.run(Some(1), &script);
    assert!(!host.file("made").exists(), "a forbidden program ran as an argument of the loader");
    host.run(None, &script);
    assert!(host.file("made").exists(), "the control did not run");
}

#[tokio::test]
#[ignore = "needs BPF LSM; `cargo xtask vm --program` runs it"]
async fn rules_for_one_calling_program() {
    let host = judging();
    std::fs::write(host.file("target"), "x").expect("write");
    let path = host.file("target").display().to_string();
    host.session(1, &quiet().file(file_op::READ, &path, RULE).only_from("/usr/bin/cat"));
    host.run(Some(1), "cat target >by-cat; head -c 9 target >by-head; true");
    assert_eq!(std::fs::read_to_string(host.file("by-cat")).expect("copy"), "");
    assert_eq!(std::fs::read_to_string(host.file("by-head")).expect("copy"), "x");
}
