//! The shepherd alone: a real process with real programs, driven over its socket as a gateway would.

mod calls;
mod gateway;
mod refusals;

use std::time::{Duration, Instant};

use gateway::{Gateway, Setup, Waiting, command, shell};
use sallyport_contract::v1::exit::Status;
use sallyport_contract::v1::{Hangup, WindowSize, channel_frame::Body};
use sallyport_sensor::shepherd::protocol::{Command, Pty, Report, Work};
use sha2::{Digest, Sha256};

fn code(n: u32) -> Option<Status> {
    Some(Status::Code(n))
}

fn signal(name: &str) -> Option<Status> {
    Some(Status::Signal(name.into()))
}

#[test]
fn exit_codes_are_exact() {
    for n in [0, 1, 7, 126, 255] {
        let mut gateway = Gateway::run(command(&format!("exit {n}")));
        assert_eq!(gateway.finish().status, code(n));
    }
}

#[test]
fn signals_are_named() {
    for name in ["TERM", "KILL", "USR1", "SEGV"] {
        let mut gateway = Gateway::run(command(&format!("ulimit -c 0; kill -{name} $$; sleep 9")));
        let exit = gateway.finish();
        assert_eq!(exit.status, signal(name));
        assert!(!exit.core_dumped);
    }
}

#[test]
fn output_and_error_are_apart_and_whole() {
    let mut gateway = Gateway::run(command("echo out; echo err >&2; echo out2"));
    assert_eq!(gateway.finish().status, code(0));
    assert_eq!(gateway.stdout, b"out\nout2\n");
    assert_eq!(gateway.stderr, b"err\n");
}

#[test]
fn half_close_reaches_the_program_and_it_can_still_answer() {
    let mut gateway = Gateway::run(command("n=$(wc -c); sleep 0.2; echo $n; exit 3"));
    gateway.input(&[b'x'; 100_000]);
    gateway.input_end();
    assert_eq!(gateway.finish().status, code(3));
    assert_eq!(gateway.stdout, b"100000\n");
}

#[test]
fn closing_its_output_does_not_end_the_program() {
    let mut gateway = Gateway::run(command("exec >&-; sleep 0.3; echo late >&2; exit 5"));
    assert_eq!(gateway.finish().status, code(5));
    assert_eq!(gateway.stderr, b"late\n");
}

#[test]
fn a_background_process_keeps_the_pipes_open_as_with_sshd() {
    let started = Instant::now();
    let mut gateway = Gateway::run(command("(sleep 1; echo later) & echo now"));
    assert_eq!(gateway.finish().status, code(0));
    assert_eq!(gateway.stdout, b"now\nlater\n");
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[test]
fn binary_round_trip_of_64_mib_is_exact() {
    let mut gateway = Gateway::run(command("cat"));
    let block: Vec<u8> = (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut hash = Sha256::new();
    for n in 0..64u8 {
        let mut block = block.clone();
        block.iter_mut().for_each(|byte| *byte = byte.wrapping_add(n));
        hash.update(&block);
        gateway.input(&block);
    }
    gateway.input_end();
    assert_eq!(gateway.finish().status, code(0));
    assert_eq!(gateway.stdout.len(), 64 << 20);
    assert_eq!(Sha256::digest(&gateway.stdout), hash.finalize());
}

#[test]
fn a_terminal_is_a_terminal() {
    let mut setup =
        command("tty -s && echo tty; stty size; echo $TERM; test -e $SSH_TTY && echo there; exit 4");
    setup.pty = Some(Pty { term: "xterm-256color".into(), size: [132, 43, 0, 0], modes: vec![] });
    let mut gateway = Gateway::run(setup);
    assert_eq!(gateway.finish().status, code(4));
    assert_eq!(String::from_utf8_lossy(&gateway.stdout), "tty\r\n43 132\r\nxterm-256color\r\nthere\r\n");
    assert_eq!(gateway.stderr, b"");
}

#[test]
fn a_terminal_is_drained_after_the_exit() {
    let mut setup = command("head -c 300000 /dev/zero | tr '\\0' x; echo end");
    setup.pty = Some(Pty::default());
    let mut gateway = Gateway::run(setup);
    assert_eq!(gateway.finish().status, code(0));
    assert!(gateway.stdout.ends_with(b"xend\r\n"), "{} bytes", gateway.stdout.len());
    assert_eq!(gateway.stdout.len(), 300_005);
}

#[test]
fn the_window_size_follows() {
    let mut setup = command("trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done");
    setup.pty = Some(Pty { size: [80, 24, 0, 0], ..Pty::default() });
    let mut gateway = Gateway::run(setup);
    gateway.until(|gateway| gateway.stdout.starts_with(b"ready"));
    gateway.send(Body::Resize(WindowSize { columns: 101, rows: 33, width_px: 0, height_px: 0 }));
    assert_eq!(gateway.finish().status, code(0));
    assert_eq!(String::from_utf8_lossy(&gateway.stdout), "ready\r\n33 101\r\n");
}

#[test]
fn a_login_shell_takes_typing_and_ctrl_c() {
    let mut setup = shell();
    setup.pty = Some(Pty { term: "dumb".into(), size: [80, 24, 0, 0], modes: vec![] });
    let mut gateway = Gateway::run(setup);
    gateway.input(b"echo arg0=$0 home=$HOME\r");
    gateway.until(|gateway| gateway.stdout_has("arg0=-"));
    gateway.input(b"sleep 60\r");
    std::thread::sleep(Duration::from_millis(300));
    gateway.input(b"\x03");
    gateway.input(b"exit 9\r");
    assert_eq!(gateway.finish().status, code(9));
}

#[test]
fn signals_from_the_client_reach_the_group() {
    let mut gateway = Gateway::run(command("echo ready; exec sleep 60"));
    gateway.until(|gateway| gateway.stdout == b"ready\n");
    gateway.send(Body::Signal("INT".into()));
    assert_eq!(gateway.finish().status, signal("INT"));
    let mut gateway = Gateway::run(command("echo ready; sleep 0.3; exit 0"));
    gateway.until(|gateway| gateway.stdout == b"ready\n");
    gateway.send(Body::Signal("NONSENSE".into()));
    assert_eq!(gateway.finish().status, code(0));
}

#[test]
fn hang_up_passes_unread_input_and_ends_in_a_kill() {
    let mut gateway = Gateway::run(command("trap '' HUP TERM; echo ready; sleep 60; sleep 60"));
    gateway.until(|gateway| gateway.stdout == b"ready\n");
    gateway.fill_window();
    let started = Instant::now();
    gateway.send(Body::Hangup(Hangup { reason: "the client is gone".into() }));
    assert_eq!(gateway.finish().status, signal("KILL"));
    assert!(started.elapsed() >= Duration::from_millis(450), "{:?}", started.elapsed());
}

#[test]
fn a_link_that_breaks_again_and_again_loses_and_repeats_nothing() {
    let mut gateway = Gateway::run(command("cat; echo err >&2; exit 6"));
    let mut expected = Vec::new();
    for n in 0..400u32 {
        let block = vec![n as u8; 1 + (n as usize * 7_919) % 50_000];
        expected.extend_from_slice(&block);
        gateway.input(&block);
        if n % 9 == 0 {
            // With frames of both directions under way.
            gateway.cut_and_reattach();
        }
    }
    gateway.cut_and_reattach();
    gateway.input_end();
    assert_eq!(gateway.finish().status, code(6));
    assert!(gateway.stdout == expected, "{} of {} bytes", gateway.stdout.len(), expected.len());
    assert_eq!(gateway.stderr, b"err\n");
}

#[test]
fn output_made_while_nobody_is_attached_is_kept() {
    let mut gateway = Gateway::run(command("echo one; sleep 0.3; echo two; exit 8"));
    gateway.until(|gateway| gateway.stdout == b"one\n");
    gateway.cut();
    std::thread::sleep(Duration::from_millis(700));
    gateway.attach();
    assert_eq!(gateway.finish().status, code(8));
    assert_eq!(gateway.stdout, b"one\ntwo\n");
}

#[test]
fn nobody_comes_back_so_the_channel_ends_by_itself() {
    let mut setup = command("echo ready; exec sleep 600");
    setup.reattach_grace = Duration::from_millis(400);
    let mut gateway = Gateway::run(setup);
    gateway.until(|gateway| gateway.stdout == b"ready\n");
    gateway.cut();
    let done = gateway.done();
    assert_eq!(done, Report::Done { exit: "SIGHUP".into(), delivered: false });
    assert!(!gateway.directory().join("sock").exists());
    assert!(gateway.directory().join("done").exists());
    assert!(gateway.shepherd_ends());
}

#[test]
fn a_stalled_gateway_costs_bounded_memory() {
    let mut gateway = Gateway::run(command("head -c 200000000 /dev/zero"));
    gateway.stall(Duration::from_secs(2));
    let kib = gateway.shepherd_memory();
    assert!(kib < 40 << 10, "{kib} KiB resident");
    // And the program was held back, not its output thrown away.
    assert_eq!(gateway.finish().status, code(0));
    assert_eq!(gateway.stdout.len(), 200_000_000);
    assert!(gateway.stdout.iter().all(|byte| *byte == 0));
}

#[test]
fn notices_come_in_order_on_error_or_terminal() {
    let mut gateway = Gateway::run(command("printf part >&2; sleep 0.4; echo end"));
    gateway.until(|gateway| gateway.stderr == b"part");
    gateway.order(&Command::Notice("sallyport: blocked /usr/bin/x".into()));
    assert_eq!(gateway.finish().status, code(0));
    assert_eq!(String::from_utf8_lossy(&gateway.stderr), "part\nsallyport: blocked /usr/bin/x\n");
    assert_eq!(gateway.stdout, b"end\n");

    let mut setup = command("echo one; sleep 0.4; echo two");
    setup.pty = Some(Pty::default());
    setup.announcement = "sallyport: recorded".into();
    let mut gateway = Gateway::run(setup);
    gateway.until(|gateway| gateway.stdout_has("one\r\n"));
    gateway.order(&Command::Notice("sallyport: no".into()));
    assert_eq!(gateway.finish().status, code(0));
    let text = String::from_utf8_lossy(&gateway.stdout).into_owned();
    assert_eq!(text, "sallyport: recorded\r\none\r\nsallyport: no\r\ntwo\r\n");
}

#[test]
fn the_end_of_a_session_is_said_and_done() {
    let mut gateway = Gateway::run(command("echo ready; exec sleep 600"));
    gateway.until(|gateway| gateway.stdout == b"ready\n");
    gateway.order(&Command::End("the grant has ended".into()));
    assert_eq!(gateway.finish().status, signal("HUP"));
    assert_eq!(gateway.stderr, b"sallyport: the grant has ended\n");
}

#[test]
fn nothing_runs_before_go() {
    let (gateway, marker) = Gateway::prepare_marked();
    std::thread::sleep(Duration::from_millis(300));
    assert!(!marker.exists(), "the command ran before it was tagged");
    let mut gateway = gateway.go();
    assert_eq!(gateway.finish().status, code(0));
    assert!(marker.exists(), "control: after go it runs");
}

/// What the leader does before it can be tagged is nobody's act: tagged on its way to the gate, it would be judged for it.
#[test]
fn a_leader_is_at_the_gate_when_it_is_announced() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: only root gives a process a smaller score");
        return;
    }
    // The leader takes this off itself, last.
    std::fs::write("/proc/self/oom_score_adj", "100").expect("a greater score");
    for round in 0..10 {
        let waiting = Waiting::prepare(command("true"));
        let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", waiting.leader)).expect("read");
        assert_eq!(score.trim(), "0", "round {round}");
        assert_eq!(waiting.go().finish().status, code(0));
    }
}

#[test]
fn what_cannot_be_started_is_refused_with_the_reason() {
    let refused = |setup: Setup| Gateway::refused(setup);
    let mut setup = command("true");
    setup.local_user = Some("no-such-user-here".into());
    assert!(refused(setup).contains("no local user `no-such-user-here`"));
    let mut setup = command("true");
    setup.work = Work::Subsystem("netconf".into());
    assert!(refused(setup).contains("no subsystem `netconf`"));
}

#[test]
fn the_program_has_a_clean_process() {
    let mut gateway = Gateway::run(command(
        "ls -l /proc/self/fd | tail -n +2 | wc -l; grep -E 'Sig(Blk|Ign)' /proc/self/status; pwd; ps -o sid= -p $$ | tr -d ' '; echo $$; echo $LANG:$SSH_CLIENT:$SSH_CONNECTION",
    ));
    assert_eq!(gateway.finish().status, code(0));
    let text = String::from_utf8_lossy(&gateway.stdout).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    // 0, 1, 2 and the listing's own.
    assert_eq!(lines[0], "4", "{text}");
    assert_eq!(lines[1], "SigBlk:\t0000000000000000");
    let ignored = lines[2].trim_start_matches("SigIgn:\t");
    // 32 and 33 belong to the C library, which lets nobody change them.
    assert_eq!(u64::from_str_radix(ignored, 16).map(|mask| mask & !0x1_8000_0000), Ok(0), "{text}");
    assert_eq!(lines[4], lines[5], "the leader leads its own session");
    assert_eq!(lines[6], "C.UTF-8:192.0.2.7 50000 22:192.0.2.7 50000 198.51.100.1 22");
}

/// A host with an account `ann`, made of files that only her shepherd sees.
fn as_ann(line: &str) -> Setup {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut setup = command(line);
    setup.local_user = Some("ann".into());
    setup.files = vec![
        ("/etc/passwd", format!("{}ann:x:61234:61234:Ann:/tmp:/bin/bash\n", read("/etc/passwd"))),
        ("/etc/group", format!("{}ann:x:61234:\nops:x:61235:ann\n", read("/etc/group"))),
        ("/etc/shadow", "ann:!:19000:0:99999:7:::\n".into()),
        ("/etc/security/limits.conf", "@ops hard nofile 777\nann soft nofile 555\n* - core 0\n".into()),
    ];
    setup
}

#[test]
fn another_user_is_become_for_good() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can become somebody else");
        return;
    }
    let line = "id -u; id -g; id -G; grep -E '^(Uid|Gid|CapEff)' /proc/self/status; umask; pwd; \
        echo $USER:$LOGNAME:$HOME:$SHELL:$MAIL; ulimit -Sn; ulimit -Hn; echo back > /dev/stdout; \
        setpriv --reuid=0 true 2>/dev/null && echo ROOT; cat /proc/1/environ 2>/dev/null && echo READ; exit 0";
    let mut gateway = Gateway::run(as_ann(line));
    assert_eq!(gateway.finish().status, code(0));
    let text = String::from_utf8_lossy(&gateway.stdout).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let expected = [
        "61234",
        "61234",
        "61234 61235",
        "Uid:\t61234\t61234\t61234\t61234",
        "Gid:\t61234\t61234\t61234\t61234",
        "CapEff:\t0000000000000000",
        "0022",
        "/tmp",
        "ann:ann:/tmp:/bin/bash:/var/mail/ann",
        "555",
        "777",
        "back",
    ];
    assert_eq!(lines, expected, "{text}{}", String::from_utf8_lossy(&gateway.stderr));

    let mut setup = as_ann("stat -c '%U %G %a' $SSH_TTY; echo hello > $SSH_TTY");
    setup.pty = Some(Pty::default());
    let mut gateway = Gateway::run(setup);
    assert_eq!(gateway.finish().status, code(0));
    assert_eq!(String::from_utf8_lossy(&gateway.stdout), "ann tty 620\r\nhello\r\n");
}

#[test]
fn accounts_that_may_not_log_in_are_refused() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can become somebody else");
        return;
    }
    let mut expired = as_ann("true");
    expired.files[2].1 = "ann:!:19000:0:99999:7::19001:\n".into();
    assert!(Gateway::refused(expired).contains("has expired"));
    let mut closed = as_ann("true");
    closed.files[0].1 = closed.files[0].1.replace("/tmp:/bin/bash", "/tmp:/usr/sbin/nologin");
    assert!(Gateway::refused(closed).contains("is closed"));
    let mut control = Gateway::run(as_ann("true"));
    assert_eq!(control.finish().status, code(0), "control");
}

#[test]
fn signals_go_out_as_the_user() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can become somebody else");
        return;
    }
    let mut gateway = Gateway::run(as_ann("echo ready; exec sleep 60"));
    gateway.until(|gateway| gateway.stdout == b"ready\n");
    gateway.send(Body::Signal("TERM".into()));
    assert_eq!(gateway.finish().status, signal("TERM"));
}

#[test]
fn sftp_server_speaks() {
    let mut setup = command("");
    setup.work = Work::Subsystem("sftp".into());
    let mut gateway = Gateway::run(setup);
    // SSH_FXP_INIT, version 3.
    gateway.input(&[0, 0, 0, 5, 1, 0, 0, 0, 3]);
    gateway.until(|gateway| gateway.stdout.len() >= 9);
    assert_eq!(gateway.stdout[4], 2, "SSH_FXP_VERSION");
    gateway.input_end();
    assert_eq!(gateway.finish().status, code(0));
}

/// Not a promise but a figure: `cargo test --release -p sallyport-sensor --test shepherd -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, for release builds"]
fn throughput() {
    const BYTES: u64 = 2 << 30;
    let started = Instant::now();
    let mut gateway = Gateway::run(command(&format!("head -c {BYTES} /dev/zero")));
    gateway.keep = false;
    gateway.until(|gateway| gateway.n_stdout == BYTES);
    let rate = (BYTES >> 20) as f64 / started.elapsed().as_secs_f64();
    let cpu = (BYTES >> 20) as f64 / gateway.shepherd_time();
    println!("output through the shepherd: {rate:.0} MiB/s; {cpu:.0} MiB per second of its processor time");
    gateway.finish();

    let mut gateway = Gateway::run(command("cat > /dev/null"));
    let started = Instant::now();
    let block = vec![7; 1 << 20];
    for _ in 0..BYTES >> 20 {
        gateway.input(&block);
    }
    gateway.input_end();
    gateway.finish();
    let rate = (BYTES >> 20) as f64 / started.elapsed().as_secs_f64();
    println!("input through the shepherd: {rate:.0} MiB/s");
}

#[test]
fn hostile_connections_are_turned_away() {
    use std::io::{Read, Write};
    let mut gateway = Gateway::run(command("cat"));
    for bytes in [&b"X"[..], b"C{\"nonsense\":1}\n", b"L\xff\xff\xff\xff\xff\xff", &[b'C'; 100]] {
        let mut stream = gateway.connect();
        stream.write_all(bytes).expect("write");
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
    // The link was taken from us by the third; the channel goes on.
    gateway.cut_and_reattach();
    gateway.input(b"still here");
    gateway.input_end();
    assert_eq!(gateway.finish().status, code(0));
    assert_eq!(gateway.stdout, b"still here");
}
