//! Replaying to a pipe and to a terminal.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::Stdio,
    time::Duration,
};

use nix::{
    pty::{Winsize, openpty},
    sys::termios::{LocalFlags, tcgetattr},
};
use serde_json::json;

use super::{
    person::signed_in,
    records::{denial, record},
};

/// Started at the second that the records are of.
fn cast() -> Vec<u8> {
    let lines = [
        json!({ "version": 3, "term": { "cols": 80, "rows": 24, "type": "xterm" }, "timestamp": 1_795_352_934u64,
                "title": "alice as root on web-1" }),
        json!([0.001, "o", "$ nmap -sS"]),
        json!([0.002, "o", "\r\n\u{1b}]52;c;ZXZpbA==\u{7}EPERM\r\n$ "]),
        json!([60.0, "o", "exit\r\n"]),
        json!([0.0, "x", "0"]),
    ];
    lines.iter().map(|line| format!("{line}\n")).collect::<String>().into_bytes()
}

#[tokio::test]
async fn to_a_pipe_without_waiting() {
    let (gateway, person) = signed_in().await;
    gateway.state().recording = cast();
    gateway.state().records = vec![record(0, "channel_open", json!({})), denial(2, "/usr/bin/nmap\u{1b}[2J")];
    let ran = person.run(&["replay", "s1"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(!ran.stdout.contains('\x1b'), "{ran:?}");
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines[0], "alice as root on web-1");
    let typed = lines.iter().position(|line| *line == "$ nmap -sS").expect("what was typed");
    assert!(lines[typed + 1].contains("BLOCKED by rule \"no-scanners\""), "{ran:?}");
    assert_eq!(lines[typed + 2], "EPERM");

    let ran = person.run(&["replay", "s1", "--no-events"]).await;
    assert!(!ran.stdout.contains("BLOCKED"), "{ran:?}");
    let ran = person.run(&["--json", "replay", "s1"]).await;
    let kinds: Vec<String> =
        ran.documents().iter().map(|item| item["type"].as_str().expect("a type").to_owned()).collect();
    assert_eq!(kinds, ["output", "event", "output", "output", "exit"]);

    let saved = person.path("x.cast");
    let ran = person.run(&["replay", "s1", "--save", saved.to_str().expect("utf-8")]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(std::fs::read(&saved).expect("there"), cast(), "byte for byte");
    let ran = person.run(&["replay", "s1", "--save", saved.to_str().expect("utf-8")]).await;
    assert_eq!(ran.code, 1, "nothing is overwritten: {ran:?}");
}

#[tokio::test]
async fn damage_is_named() {
    let (gateway, person) = signed_in().await;
    gateway.state().recording = [cast(), b"junk\n".to_vec()].concat();
    let ran = person.run(&["replay", "s1"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("line 6 is not an event"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_with_keys() {
    let (gateway, person) = signed_in().await;
    gateway.state().recording = cast();
    gateway.state().records = vec![denial(2, "/usr/bin/nmap")];
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None).expect("a terminal");
    let before = tcgetattr(&pty.slave).expect("settings");
    let end = || -> Stdio { pty.slave.try_clone().map(OwnedFd::into).expect("a copy") };
    // An idle limit above the silence: without the keys this would take a minute.
    let mut child = person
        .command(&["replay", "s1", "--idle-limit", "2m"])
        .env("TERM", "xterm")
        .stdin(end())
        .stdout(end())
        .stderr(end())
        .spawn()
        .expect("it starts");
    let mut terminal = File::from(pty.master.try_clone().expect("a copy"));
    let (seen, mut pieces) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(n) = terminal.read(&mut bytes) {
            if n == 0 || seen.send(bytes[..n].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut shown = String::new();
    let mut until = async |what: &str| {
        while !shown.contains(what) {
            let piece = tokio::time::timeout(Duration::from_secs(20), pieces.recv()).await;
            let piece = piece.unwrap_or_else(|_| panic!("{what} did not come: {shown:?}"));
            shown.push_str(&String::from_utf8_lossy(&piece.expect("the terminal is there")));
        }
        shown.clone()
    };
    let shown_so_far = until("EPERM").await;
    assert!(shown_so_far.contains("\u{1b}[0;1;31m┊"), "the refusal stands out: {shown_so_far:?}");
    assert!(!shown_so_far.contains("]52;"), "the clipboard is out of reach: {shown_so_far:?}");
    let during = tcgetattr(&pty.slave).expect("settings");
    assert!(!during.local_flags.contains(LocalFlags::ICANON), "keys come one by one");
    let mut keyboard = File::from(pty.master.try_clone().expect("a copy"));
    // A leap forward, over the minute of silence.
    keyboard.write_all(b"\x1b[A\x1b[A").expect("typed");
    until("the end").await;
    assert!(child.wait().await.expect("it ends").success());
    let after = tcgetattr(&pty.slave).expect("settings");
    assert_eq!(after.local_flags, before.local_flags, "the terminal is as it was");
}
