//! What a channel carries, for people to look at: `cargo test --release -p sallyport-gateway --test control -- --ignored
//! --nocapture throughput`. No thresholds: the machine is shared.

use crate::channels::command;
use crate::rig::{Rig, person};
use crate::sensor::Host;
use bytes::Bytes;
use sallyport_evidence::record::Kind;
use sallyport_gateway::recorder::{self, Recorder};
use sallyport_gateway::sensors::{Input, Output};
use std::time::Instant;
use tokio_util::sync::CancellationToken;

const CLIENT: std::net::SocketAddr =
    std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn throughput_of_a_channel() {
    let rig = Rig::start().await;
    let (joined, host) = (rig.join("web-1").await, Host::default());
    let _link = host.connect(&rig, &joined).await;
    let session = rig
        .gateway
        .authorizer
        .open_session(&person("alice", "engineers"), "web-1", Some("root"), CLIENT)
        .await
        .unwrap();
    for kind in ["binary", "text"] {
        let mut down = session.start_channel(command(&format!("{kind} 512"))).await.unwrap();
        let start = Instant::now();
        while let Some(Output::Stdout(_)) = down.output.recv().await {}
        println!("down, {kind}: {:.0} MiB/s", 512.0 / start.elapsed().as_secs_f64());
    }

    let mut up = session.start_channel(command("cat")).await.unwrap();
    let piece = Bytes::from(vec![b'a'; 32 << 10]);
    let start = Instant::now();
    let input = up.input.clone();
    tokio::spawn(async move {
        for _ in 0..(128 << 20) / piece.len() {
            input.send(Input::Data(piece.clone())).await.unwrap();
        }
        input.send(Input::Eof).await.unwrap();
    });
    while !matches!(up.output.recv().await, Some(Output::Exit(_)) | None) {}
    println!("up and down again: {:.0} MiB/s each way", 128.0 / start.elapsed().as_secs_f64());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn throughput_of_the_recorder() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(dir.path(), "gateway.test", CancellationToken::new()).unwrap();
    let mut record = recorder::draft(Kind::Exec);
    record.message = Some("x".repeat(550));
    record.host = Some("web-1".into());
    let (batches, size) = (400u64, 256u64);
    let make = |first: u64| -> Vec<Bytes> {
        let mut record = record.clone();
        let one = |seq| {
            record.source =
                sallyport_evidence::record::Source { maker: "web-1".into(), boot: "b".into(), seq };
            record.to_bytes().unwrap().into()
        };
        (first..first + size).map(one).collect()
    };
    let all: Vec<(u64, Vec<Bytes>)> = (0..batches).map(|n| (n * size + 1, make(n * size + 1))).collect();
    let start = Instant::now();
    for (first, batch) in all {
        recorder.ingest("web-1", "b".into(), first, batch).await.unwrap();
    }
    let rate = (batches * size) as f64 / start.elapsed().as_secs_f64();
    println!(
        "recorder, one sensor, batches of {size}, each acknowledged before the next: {rate:.0} records/s"
    );
    let start = Instant::now();
    let key = recorder::verify::own_key(dir.path(), "gateway.test").unwrap();
    let report = recorder::verify::verify(dir.path(), &key, 0).unwrap();
    assert!(report.holds(), "{report}");
    println!("verify: {:.0} leaves/s", report.leaves as f64 / start.elapsed().as_secs_f64());
}
