//! Peers that stop reading: memory stays bounded, and nothing else of the connection stops.

use crate::rig::{Rig, finish, text};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What a stalled transfer may cost in all: an inbox and a half of 4 MiB, pieces in flight, the allocator's slack. The
/// child processes are not counted.
const BOUND_MIB: usize = 48;

fn rss_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("reads");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("line");
    line.split_whitespace().nth(1).expect("number").parse::<usize>().expect("number") / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_nobody_takes_is_bounded_and_stops_nothing_else() {
    let rig = Rig::start().await;
    let key = rig.bound_key().await;
    let before = rss_mib();
    // 2 GiB towards a program that reads nothing for a while, and answers all the same.
    let go = rig.path("go");
    let line = format!("while ! test -e {}; do echo tick; sleep 0.1; done; wc -c", go.display());
    let mut child = rig
        .command(Some(&key))
        .args(["web-1@127.0.0.1", &line])
        .stdin(Stdio::piped())
        .spawn()
        .expect("starts");
    let (mut stdin, mut stdout) = (child.stdin.take().expect("pipe"), child.stdout.take().expect("pipe"));
    let writer = tokio::spawn(async move {
        let chunk = vec![1; 1 << 20];
        for _ in 0..2048 {
            stdin.write_all(&chunk).await.expect("writes");
        }
    });
    let mut ticks = vec![0; 64 * 1024];
    let (stalled, mut most, mut last) = (Instant::now(), 0, Instant::now());
    while stalled.elapsed() < Duration::from_secs(6) {
        let n = tokio::time::timeout(Duration::from_secs(2), stdout.read(&mut ticks))
            .await
            .expect("output goes on")
            .expect("reads");
        assert!(n > 0);
        assert!(last.elapsed() < Duration::from_secs(2));
        last = Instant::now();
        most = most.max(rss_mib());
    }
    assert!(!writer.is_finished());
    assert!(most < before + BOUND_MIB, "{before} MiB, then {most} MiB");
    // It goes on where it was, and nothing is missing.
    std::fs::write(&go, "").expect("writes");
    let mut rest = String::new();
    tokio::time::timeout(Duration::from_secs(120), stdout.read_to_string(&mut rest))
        .await
        .expect("ends")
        .expect("reads");
    assert!(rest.ends_with(&format!("{}\n", 2048_u64 << 20)), "{rest}");
    writer.await.expect("writes");
    let after = rss_mib();
    assert!(after < before + BOUND_MIB, "{before} MiB, then {after} MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_nobody_takes_is_bounded_and_stops_no_other_channel() {
    let rig = Rig::start().await;
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
    let before = rss_mib();
    let mut stuck = rig.command(Some(&key));
    stuck.args(["-o", &control, "web-1@127.0.0.1", "head -c 2147483648 /dev/zero"]);
    let mut stuck = stuck.spawn().expect("starts");
    let mut output = stuck.stdout.take().expect("pipe");
    tokio::time::sleep(Duration::from_secs(2)).await;
    for _ in 0..5 {
        let mut other = rig.command(Some(&key));
        let out =
            finish(other.args(["-o", &control, "web-1@127.0.0.1", "head -c 3000000 /dev/zero | wc -c"]))
                .await;
        assert_eq!(text(&out.stdout), "3000000\n", "{}", text(&out.stderr));
        assert!(rss_mib() < before + BOUND_MIB);
    }
    let mut n_bytes = 0_u64;
    let mut chunk = vec![0; 1 << 20];
    let started = Instant::now();
    while let Ok(n @ 1..) = output.read(&mut chunk).await {
        n_bytes += n as u64;
    }
    println!("download: {:.0} MiB/s", n_bytes as f64 / started.elapsed().as_secs_f64() / (1 << 20) as f64);
    assert_eq!(n_bytes, 2 << 30);
    assert!(rss_mib() < before + BOUND_MIB);
    master.kill().await.expect("kills");
}
