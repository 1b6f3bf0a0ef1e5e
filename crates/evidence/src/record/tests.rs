//! Tests of the record's form: what was written once is read for ever, and what is longest still fits.

use super::*;

/// As the first version wrote it.
const OLD: &str = r#"{"schema":1,"source":{"maker":"web-1","boot":"b","seq":7},"kind":"exec","time_ns":1,"boot_ns":2,
"host":"web-1","identity":{"user":"alice","kind":"human"},"session":{"id":"s"},
"decision":{"action":"exec","outcome":"blocked","policy":"p","rule":"r","point":"kernel-lsm"},
"process":{"exec_id":"b/1/2","pid":2,"path":"/usr/bin/id","args":["id"],"uid":0,"gid":0,"inode":"8:1/3"}}"#;

#[test]
fn old_records_are_read_as_they_were_meant() {
    let record = Record::from_bytes(OLD.as_bytes()).expect("an old record");
    let process = record.process.expect("a process");
    assert_eq!(
        (process.path.as_str(), process.sha256.as_str(), process.login_uid),
        ("/usr/bin/id", "", None)
    );
    assert!(record.file.is_none() && record.system.is_none());
}

#[test]
fn what_is_not_known_is_not_written() {
    let record = Record { process: Some(Process::default()), ..Record::empty(Kind::Exec) };
    let text = String::from_utf8(record.to_bytes().expect("small")).expect("text");
    assert!(text.ends_with(r#""process":{"exec_id":"","pid":0,"uid":0,"gid":0}}"#), "{text}");
}

#[test]
fn new_fields_come_back() {
    let record = Record {
        file: Some(FileAction {
            op: "write_file".into(),
            path: "/etc/passwd".into(),
            other_name: true,
            ..FileAction::default()
        }),
        system: Some(SystemAction {
            operation: "trace".into(),
            outside: true,
            target_pid: Some(1),
            ..SystemAction::default()
        }),
        process: Some(Process {
            ancestors: vec!["b/1/1".into()],
            sha256: "ab".into(),
            login_uid: Some(1000),
            mount_namespace: Some(4_026_531_841),
            ..Process::default()
        }),
        ..Record::empty(Kind::File)
    };
    let bytes = record.to_bytes().expect("small");
    assert_eq!(Record::from_bytes(&bytes).expect("a record"), record);
}

#[test]
fn the_longest_record_fits_however_it_is_escaped() {
    let long = |n: usize| "\u{1}".repeat(n);
    let ids = vec![format!("{}/{}/{}", "f".repeat(36), u64::MAX, u32::MAX); limits::ANCESTORS];
    let process = |path, args| Process {
        exec_id: ids[0].clone(),
        parent_exec_id: ids[0].clone(),
        ancestors: ids.clone(),
        path: long(path),
        args: vec![long(args)],
        cwd: long(limits::PATH_ELSEWHERE),
        cgroup: long(limits::CGROUP),
        container: "f".repeat(64),
        sha256: "f".repeat(64),
        ..Process::default()
    };
    let exec = Record { process: Some(process(limits::PATH, limits::ARGS)), ..Record::empty(Kind::Exec) };
    let room = MAX_BYTES - exec.to_bytes().expect("an exec record fits").len();
    // Identity, session and decision are the gateway's and the policy's own texts, with limits of their own.
    assert!(room > 2_000, "{room}");
    let file = Record {
        process: Some(process(limits::PATH_ELSEWHERE, limits::ARGS_ELSEWHERE)),
        file: Some(FileAction { path: long(limits::PATH), ..FileAction::default() }),
        ..Record::empty(Kind::File)
    };
    assert!(MAX_BYTES - file.to_bytes().expect("a file record fits").len() > room);
}
