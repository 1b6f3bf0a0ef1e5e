//! What runs, where, and that it is exactly as against `sshd`.

use crate::rig::{Rig, finish, text};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_address_reaches_the_same() {
    let rig = Rig::start().await;
    let key = rig.bound_key().await;
    for user in ["web-1+root", "root%web-1", "root:web-1", "root@web-1", "web-1"] {
        let out = rig.ssh(&key, &["-l", user, "127.0.0.1", "echo in"]).await;
        assert_eq!(text(&out.stdout), "in\n", "{user}: {}", text(&out.stderr));
    }
    assert_eq!(
        rig.log().iter().filter(|line| line.starts_with("open alice@example.org root@web-1")).count(),
        5
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_reached_is_explained() {
    let rig = Rig::start().await;
    let key = rig.bound_key().await;
    for (user, command, code, stdout, stderr) in [
        ("bob", None, 0, "ssh -p PORT web-2+deploy@gw.test", "`bob` is not a host"),
        ("bob", Some("id"), 126, "", "there is no host `bob`"),
        ("web-9+root", None, 126, "", "ask ops@example.org"),
        ("web-1+mallory", Some("id"), 126, "", "ask ops@example.org"),
        ("web-2", Some("id"), 126, "", "name one of"),
        ("a b", Some("id"), 126, "", "not a host; write HOST+USER"),
    ] {
        let mut args = vec!["-l", user, "127.0.0.1"];
        args.extend(command);
        let out = rig.ssh(&key, &args).await;
        assert_eq!(out.status.code(), Some(code), "{user}: {}", text(&out.stderr));
        let listed = stdout.replace("PORT", &rig.port.to_string());
        assert!(text(&out.stdout).contains(&listed), "{user}: {}", text(&out.stdout));
        assert!(text(&out.stderr).contains(stderr), "{user}: {}", text(&out.stderr));
        assert!(!text(&out.stdout).contains("uid="));
    }
    assert!(!rig.log().iter().any(|line| line.starts_with("open")), "{:?}", rig.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_codes_and_signals_are_exact() {
    let rig = Rig::start().await;
    let key = rig.bound_key().await;
    let out = rig.ssh(&key, &["web-1@127.0.0.1", "echo out; echo err >&2; exit 7"]).await;
    assert_eq!(
        (out.status.code(), text(&out.stdout).as_str(), text(&out.stderr).as_str()),
        (Some(7), "out\n", "err\n")
    );
    for code in [0, 1, 126, 127, 254, 255] {
        let out = rig.ssh(&key, &["web-1@127.0.0.1", &format!("exit {code}")]).await;
        assert_eq!(out.status.code(), Some(code));
    }
    let out = rig.ssh(&key, &["web-1@127.0.0.1", "exec >&- 2>&-; sleep 1; exit 3"]).await;
    assert_eq!(out.status.code(), Some(3), "output that ends early takes the status with it");
    let out = rig.ssh(&key, &["-v", "web-1@127.0.0.1", "kill -KILL $$"]).await;
    assert_eq!(out.status.code(), Some(255));
    assert!(text(&out.stderr).contains("exit-signal"), "{}", text(&out.stderr));
    let out = rig
        .ssh(
            &key,
            &[
                "-o",
                "SendEnv=LC_TEST LD_PRELOAD",
                "-o",
                "SetEnv=LC_X=1 LD_X=2",
                "web-1@127.0.0.1",
                "echo $LC_X-$LD_X",
            ],
        )
        .await;
    assert_eq!(text(&out.stdout), "1-\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_and_half_close_survive_both_ways() {
    let rig = Rig::start().await;
    let key = rig.bound_key().await;
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut child = rig
        .command(Some(&key))
        .args(["web-1@127.0.0.1", "cat; echo after the end"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("starts");
    let (mut stdin, mut stdout) = (child.stdin.take().expect("pipe"), child.stdout.take().expect("pipe"));
    let sent = bytes.clone();
    let writer = tokio::spawn(async move {
        stdin.write_all(&sent).await.expect("writes");
        drop(stdin);
    });
    let mut got = Vec::new();
    tokio::time::timeout(Duration::from_secs(30), stdout.read_to_end(&mut got))
        .await
        .expect("ends")
        .expect("reads");
    writer.await.expect("writes");
    assert_eq!(got.len(), bytes.len() + "after the end\n".len());
    assert!(got.starts_with(&bytes) && got.ends_with(b"after the end\n"));
    assert!(child.wait().await.expect("ends").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_prints_before_it_reads_does_not_deadlock() {
    let rig = Rig::start().await;
    let key = rig.bound_key().await;
    let input = rig.path("input");
    std::fs::write(&input, vec![7; 40_000_000]).expect("writes");
    let mut command = rig.command(Some(&key));
    command
        .args(["web-1@127.0.0.1", "sleep 1; head -c 30000000 /dev/zero; wc -c"])
        .stdin(std::fs::File::open(&input).expect("opens"));
    let out = finish(&mut command).await;
    assert_eq!(out.stdout.len(), 30_000_000 + "40000000\n".len(), "{}", text(&out.stderr));
    assert!(out.stdout.ends_with(b"40000000\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_and_its_sizes_arrive() {
    let rig = Rig::start().await;
    let key = rig.bound_key().await;
    let mut command = rig.command(Some(&key));
    command.args(["-tt", "web-1@127.0.0.1", "echo $PTY"]).env("TERM", "xterm-test");
    let out = finish(&mut command).await;
    assert!(text(&out.stdout).starts_with("xterm-test "), "{}", text(&out.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_carries_many_channels_and_one_session() {
    let rig = Rig::with("max_channels = 3\n").await;
    let key = rig.bound_key().await;
    let socket = rig.path("mux");
    let control = format!("ControlPath={}", socket.display());
    let mut master = rig
        .command(Some(&key))
        .args(["-M", "-N", "-o", &control, "web-1@127.0.0.1"])
        .spawn()
        .expect("starts");
    for _ in 0..100 {
        if socket.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let shared = |line: &str| {
        let mut command = rig.command(Some(&key));
        command.args(["-o", &control, "web-1@127.0.0.1", line]);
        command
    };
    let mut first = shared("sleep 3; exit 3").spawn().expect("starts");
    let mut second = shared("sleep 3; exit 4").spawn().expect("starts");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let out = finish(&mut shared("echo third")).await;
    assert_eq!(text(&out.stdout), "third\n");
    let _blocks = shared("sleep 3").spawn().expect("starts");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let out = finish(&mut shared("echo fourth")).await;
    // The client then makes a connection of its own, with a session of its own.
    assert!(text(&out.stderr).contains("Session open refused by peer"), "{}", text(&out.stderr));
    assert_eq!(text(&out.stdout), "fourth\n");
    assert_eq!(first.wait().await.expect("ends").code(), Some(3));
    assert_eq!(second.wait().await.expect("ends").code(), Some(4));
    let count = |what: &str| rig.log().iter().filter(|line| line.starts_with(what)).count();
    assert_eq!((count("open"), count("close")), (2, 1), "{:?}", rig.log());
    master.kill().await.expect("kills");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(count("close"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_travel_by_scp_and_sftp() {
    let rig = Rig::start().await;
    let key = rig.bound_key().await;
    let (source, target) = (rig.path("source"), rig.path("target"));
    let bytes: Vec<u8> = (0..20_000_000_u32).map(|n| (n.wrapping_mul(40_503) >> 7) as u8).collect();
    std::fs::write(&source, &bytes).expect("writes");
    for legacy in [false, true] {
        for upload in [true, false] {
            let _ = std::fs::remove_file(&target);
            let mut command = Command::new("scp");
            command.args(rig.options(Some(&key))).args(["-q", "-P", &rig.port.to_string()]);
            if legacy {
                command.arg("-O");
            }
            command.args(["-o", "User=web-1+root"]);
            let remote = |path: &std::path::Path| format!("127.0.0.1:{}", path.display());
            if upload {
                command.arg(&source).arg(remote(&target));
            } else {
                command.arg(remote(&source)).arg(&target);
            }
            let out = finish(&mut command).await;
            assert!(out.status.success(), "legacy {legacy}, upload {upload}: {}", text(&out.stderr));
            assert!(std::fs::read(&target).expect("reads") == bytes);
        }
    }
    // Many requests under way: more than a window of them.
    let _ = std::fs::remove_file(&target);
    let mut sftp = Command::new("sftp");
    sftp.args(rig.options(Some(&key))).args([
        "-q",
        "-P",
        &rig.port.to_string(),
        "-R",
        "256",
        "-B",
        "262144",
        "-o",
        "User=web-1+root",
    ]);
    sftp.arg(format!("127.0.0.1:{}", source.display())).arg(&target);
    let out = finish(&mut sftp).await;
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(std::fs::read(&target).expect("reads") == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jump_ends_at_the_gateway_under_a_certificate_for_the_host() {
    let rig = Rig::start().await;
    let key = rig.bound_key().await;
    let outer = format!("ssh {} -p {} -W %h:%p any@127.0.0.1", rig.options(Some(&key)).join(" "), rig.port);
    let inner = |target: &'static str, line: &'static str| {
        let mut command = Command::new("ssh");
        let options = rig.options(None).into_iter().map(|option| {
            option.replace("HostKeyAlias=gw.test", "HostKeyAlgorithms=ssh-ed25519-cert-v01@openssh.com")
        });
        command.args(options).args(["-o", &format!("ProxyCommand={outer}"), target, line]);
        command
    };
    let out = finish(&mut inner("root@web-1", "echo in; exit 5")).await;
    assert_eq!((text(&out.stdout).as_str(), out.status.code()), ("in\n", Some(5)), "{}", text(&out.stderr));
    assert!(rig.log().contains(&"open alice@example.org root@web-1 key".to_owned()), "{:?}", rig.log());
    let out = finish(&mut inner("mallory@web-1", "echo no")).await;
    assert_eq!((text(&out.stdout).as_str(), out.status.code()), ("", Some(126)), "{}", text(&out.stderr));
    let out = finish(&mut inner("root@web-9", "echo no")).await;
    assert!(
        text(&out.stderr).contains("there is no host web-9 that you may reach; there are: web-1, web-2"),
        "{}",
        text(&out.stderr)
    );
    // Bulk through both connections.
    let mut command = inner("root@web-1", "cat");
    let input = rig.path("input");
    std::fs::write(&input, vec![9; 30_000_000]).expect("writes");
    command.stdin(std::fs::File::open(&input).expect("opens"));
    let out = finish(&mut command).await;
    assert_eq!(out.stdout.len(), 30_000_000, "{}", text(&out.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarding_is_refused_and_harms_nothing() {
    let rig = Rig::start().await;
    let key = rig.bound_key().await;
    let out = rig.ssh(&key, &["-A", "-X", "-R", "0:127.0.0.1:1", "web-1@127.0.0.1", "echo lives"]).await;
    assert_eq!(text(&out.stdout), "lives\n", "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("remote port forwarding failed"), "{}", text(&out.stderr));
    let out = rig.ssh(&key, &["-W", "127.0.0.1:80", "web-1@127.0.0.1"]).await;
    assert!(text(&out.stderr).contains("the gateway forwards to no port"), "{}", text(&out.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_must_end_says_why() {
    let rig = Rig::start().await;
    let key = rig.bound_key().await;
    let child =
        rig.command(Some(&key)).args(["web-1@127.0.0.1", "echo in; sleep 30"]).spawn().expect("starts");
    tokio::time::sleep(Duration::from_secs(1)).await;
    rig.over.cancel();
    let out = tokio::time::timeout(Duration::from_secs(10), child.wait_with_output())
        .await
        .expect("ends")
        .expect("runs");
    assert_eq!((text(&out.stdout).as_str(), out.status.code()), ("in\n", Some(255)));
    assert!(
        text(&out.stderr).contains("sallyport: policy 1a2b3c no longer permits this session"),
        "{}",
        text(&out.stderr)
    );
    assert!(rig.log().contains(&"hangup".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_is_announced() {
    let rig = Rig::start().await;
    let key = rig.bound_key().await;
    let child =
        rig.command(Some(&key)).args(["web-1@127.0.0.1", "echo in; sleep 30"]).spawn().expect("starts");
    tokio::time::sleep(Duration::from_secs(1)).await;
    rig.door.shutdown.cancel();
    let out = tokio::time::timeout(Duration::from_secs(10), child.wait_with_output())
        .await
        .expect("ends")
        .expect("runs");
    assert_eq!((text(&out.stdout).as_str(), out.status.code()), ("in\n", Some(255)));
    assert!(text(&out.stderr).contains("the gateway is shutting down"), "{}", text(&out.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_that_ended_make_room_for_others() {
    let rig = Rig::with("max_channels = 2\n").await;
    let key = rig.bound_key().await;
    let socket = rig.path("mux");
    let control = format!("ControlPath={}", socket.display());
    let mut master = rig
        .command(Some(&key))
        .args(["-M", "-N", "-o", &control, "web-1@127.0.0.1"])
        .spawn()
        .expect("starts");
    while !socket.exists() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for n in 0..20 {
        let mut command = rig.command(Some(&key));
        let out = finish(command.args(["-o", &control, "web-1@127.0.0.1", &format!("exit {n}")])).await;
        assert_eq!((out.status.code(), text(&out.stderr).as_str()), (Some(n), ""));
    }
    assert_eq!(rig.log().iter().filter(|line| line.starts_with("open")).count(), 1);
    // A session that ends takes an idle connection with it.
    rig.over.cancel();
    let ended =
        tokio::time::timeout(Duration::from_secs(10), master.wait()).await.expect("ends").expect("runs");
    assert_eq!(ended.code(), Some(255));
}
