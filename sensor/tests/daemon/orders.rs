//! Orders of policy: forged and old ones change nothing and are told of, a canary judges its sessions alone, and a
//! connection that is cut in the middle of an order leaves the last good policy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sallyport_contract::v1::gateway_order::Order;
use sallyport_contract::v1::{Chunk, PolicyBundle, Stream, channel_frame::Body};
use sallyport_evidence::order::{Scope, in_share};
use sallyport_evidence::record::Kind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::gateway::{Gateway, TOKEN};
use crate::host::{Host, can_enforce};
use crate::{BASE, NO_ID, bundle, connected, install, output, record, send, start};

/// Asks for the user's id for each line it reads.
const ASKS: &str = "while read x; do /usr/bin/id -u; echo $x=$?; done";

/// Whether a running session of [`ASKS`] may run `id` now. Each question has a name of its own.
async fn may_ask(gateway: &Gateway, channel: &str, n: &str) -> bool {
    gateway.until("the channel attaches", |heard| heard.channels.contains_key(channel).then_some(())).await;
    let data = format!("{n}\n").into();
    gateway.send(channel, Body::Chunk(Chunk { stream: Stream::Stdin as i32, data }));
    output(gateway, channel, &format!("{n}=")).await;
    let heard = gateway.heard.lock().expect("lock");
    String::from_utf8_lossy(&heard.channels[channel].stdout).contains(&format!("0\n{n}=0"))
}

/// Whether `doctor` names a finding, as soon as the status says so.
async fn doctor_says(host: &Host, finding: &str, expected: bool) {
    for _ in 0..100 {
        let output = host.call(&["doctor", "--json"], None);
        let says = String::from_utf8_lossy(&output.stdout).contains(&format!("\"id\": \"{finding}\""));
        if says == expected {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("doctor: `{finding}` should be {expected}");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_and_forged_orders_are_refused_recorded_and_told() {
    if !can_enforce() {
        return;
    }
    let gateway = Gateway::start().await;
    let mut host = Host::connected(&gateway).await;
    let first = gateway.signed(&bundle(BASE), Scope::All);
    assert_eq!(send(&gateway, first.clone()).await, "");
    gateway.order(Order::Start(start("s1", "c1", &first.version, ASKS)));
    assert!(may_ask(&gateway, "c1", "before").await, "control: the first policy permits it");
    let strict = bundle(&format!("{BASE}{NO_ID}"));
    assert_eq!(install(&gateway, &strict).await, "");
    assert!(!may_ask(&gateway, "c1", "strict").await);

    // Replayed: it was good once.
    let error = send(&gateway, first.clone()).await;
    assert!(error.contains("not newer than 2"), "{error}");
    record(&gateway, "the replay is on the record", |record| {
        record.kind == Kind::Policy && record.message.as_ref().is_some_and(|m| m.contains("not newer than 2"))
    })
    .await;
    assert!(!may_ask(&gateway, "c1", "replayed").await, "an old order was followed");
    doctor_says(&host, "policy-refused", true).await;

    // A new number that nobody signed, and no signature at all.
    for forged in [
        PolicyBundle { serial: 9, ..first.clone() },
        PolicyBundle {
            serial: 9,
            statement: first.statement.replace("serial 1", "serial 9"),
            ..first.clone()
        },
        PolicyBundle { statement: String::new(), ..first.clone() },
        gateway.signed(&bundle(BASE), Scope::Canary { host: "web-2".into(), share: 1000 }),
    ] {
        assert_ne!(send(&gateway, forged).await, "");
    }
    assert!(!may_ask(&gateway, "c1", "forged").await, "a forged order was followed");

    // The sensor remembers over a restart.
    host.kill();
    host.start();
    connected(&gateway, 2).await;
    let error = send(&gateway, first.clone()).await;
    assert!(error.contains("not newer than 2"), "{error}");
    assert!(!may_ask(&gateway, "c1", "restarted").await);

    // The same content as a new order is a new order.
    assert_eq!(install(&gateway, &first).await, "");
    assert!(may_ask(&gateway, "c1", "again").await);
    doctor_says(&host, "policy-refused", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_judges_its_share_of_sessions_and_ends() {
    if !can_enforce() {
        return;
    }
    let gateway = Gateway::start().await;
    let mut host = Host::connected(&gateway).await;
    let (free, strict) = (bundle(BASE), bundle(&format!("{BASE}{NO_ID}")));
    let within =
        |wanted| (0..).map(|n| format!("s{n}")).find(|id| in_share(500, &strict.version, id) == wanted);
    let (inside, outside) = (within(true).expect("one"), within(false).expect("one"));
    assert_eq!(install(&gateway, &free).await, "");
    gateway.order(Order::Start(start(&inside, "in", &free.version, ASKS)));
    gateway.order(Order::Start(start(&outside, "out", &free.version, ASKS)));
    assert!(may_ask(&gateway, "in", "free").await && may_ask(&gateway, "out", "free").await);

    let half = Scope::Canary { host: "web-1".into(), share: 500 };
    assert_eq!(send(&gateway, gateway.signed(&strict, half)).await, "");
    assert!(!may_ask(&gateway, "in", "tried").await, "the canary's session is judged by it");
    assert!(may_ask(&gateway, "out", "tried").await, "the other is not");
    let denied = record(&gateway, "the denial names the canary's version", |record| {
        record.decision.as_ref().is_some_and(|d| d.rule == "no-id")
    })
    .await;
    assert_eq!(denied.decision.map(|d| d.policy), Some(strict.version.clone()));
    // Sessions that begin now are judged by theirs, too; and a restart changes nothing.
    host.kill();
    host.start();
    connected(&gateway, 2).await;
    assert!(!may_ask(&gateway, "in", "restarted").await && may_ask(&gateway, "out", "restarted").await);
    gateway.order(Order::Start(start(&inside, "in-2", &strict.version, ASKS)));
    assert!(!may_ask(&gateway, "in-2", "new").await);

    assert_eq!(install(&gateway, &free).await, "");
    assert!(may_ask(&gateway, "in", "over").await && may_ask(&gateway, "in-2", "over").await);
    let second = gateway.signed(&strict, Scope::Canary { host: "web-1".into(), share: 500 });
    assert_eq!(send(&gateway, second).await, "");
    assert!(!may_ask(&gateway, "in", "second").await);
    assert_eq!(install(&gateway, &strict).await, "");
    assert!(!may_ask(&gateway, "out", "promoted").await, "promoted: it is for everybody");
}

/// A way to the gateway that is cut once so many bytes went towards the host in a connection. 0: never.
async fn cuttable(gateway: &Gateway) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("https://{}", listener.local_addr().expect("an address"));
    let (limit, to) = (Arc::new(AtomicU64::new(0)), gateway.address);
    let cut = limit.clone();
    tokio::spawn(async move {
        while let Ok((mut host, _)) = listener.accept().await {
            let cut = cut.clone();
            tokio::spawn(async move {
                let mut gateway = TcpStream::connect(to).await?;
                let (mut from_host, mut to_host) = host.split();
                let (mut from_gateway, mut to_gateway) = gateway.split();
                let up = tokio::io::copy(&mut from_host, &mut to_gateway);
                let down = async {
                    let mut buffer = [0; 4096];
                    loop {
                        let n = from_gateway.read(&mut buffer).await?;
                        let left = cut.load(Ordering::Relaxed);
                        if n == 0 || left == 1 {
                            return std::io::Result::Ok(());
                        }
                        to_host.write_all(&buffer[..n]).await?;
                        if left > 1 {
                            cut.store(left.saturating_sub(n as u64).max(1), Ordering::Relaxed);
                        }
                    }
                };
                // Whichever ends first: both halves are dropped, and with them the connection.
                tokio::select! {
                    done = up => done.map(drop),
                    done = down => done,
                }
            });
        }
    });
    (url, limit)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_in_mid_push_leaves_the_last_good_policy() {
    if !can_enforce() {
        return;
    }
    let gateway = Gateway::start().await;
    let (url, limit) = cuttable(&gateway).await;
    let mut host = Host::new();
    let joined = host.call(&["join", "--gateway", &url, "--ca-sha256", &gateway.ca_sha256()], Some(TOKEN));
    assert!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
    host.start();
    connected(&gateway, 1).await;
    let free = bundle(BASE);
    assert_eq!(install(&gateway, &free).await, "");
    gateway.order(Order::Start(start("s1", "c1", &free.version, ASKS)));
    assert!(may_ask(&gateway, "c1", "before").await);

    // A megabyte of it, of which a quarter arrives.
    let padding = "// padding that makes the bundle long\n".repeat(28_000);
    let strict = gateway.signed(&bundle(&format!("{BASE}{NO_ID}{padding}")), Scope::All);
    assert!(strict.archive.len() > 1 << 20);
    limit.store(256 << 10, Ordering::Relaxed);
    gateway.order(Order::Bundle(strict.clone()));
    for _ in 0..200 {
        if limit.load(Ordering::Relaxed) == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(
        limit.load(Ordering::Relaxed),
        1,
        "control: the connection was cut in the middle of the order"
    );
    limit.store(0, Ordering::Relaxed);
    connected(&gateway, 2).await;
    assert!(may_ask(&gateway, "c1", "cut").await, "half an order was followed");
    assert_eq!(send(&gateway, strict).await, "", "the whole order is taken");
    assert!(!may_ask(&gateway, "c1", "after").await);
}
