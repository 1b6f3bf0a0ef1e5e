//! Hostile and broken peers: a clear error for the one, nothing for the others.

use crate::channels::command;
use crate::rig::{Joined, Rig, person};
use crate::sensor::{Host, hello};
use bytes::Bytes;
use sallyport_contract::v1::channel_frame::Body;
use sallyport_contract::v1::sensor_link_client::SensorLinkClient;
use sallyport_contract::v1::*;
use sallyport_gateway::sensors::{Input, Output};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

const CLIENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

/// The control: a session works from end to end.
async fn still_serves(rig: &Rig, host: &Host, joined: &Joined) {
    let link = host.connect(rig, joined).await;
    let session = rig
        .gateway
        .authorizer
        .open_session(&person("alice", "engineers"), "web-1", Some("root"), CLIENT)
        .await
        .unwrap();
    let mut channel = session.start_channel(command("cat")).await.unwrap();
    channel.input.send(Input::Data(Bytes::from_static(b"x"))).await.unwrap();
    assert_eq!(channel.output.recv().await, Some(Output::Stdout(Bytes::from_static(b"x"))));
    drop(channel);
    session.close("done").await;
    drop(link);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_truncation_and_silence_on_the_port() {
    let rig = Rig::start().await;
    let (joined, host) = (rig.join("web-1").await, Host::default());
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(rig.grpc).await.unwrap());
    }
    for junk in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 4096],
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        b"SSH-2.0-x\r\n",
    ] {
        let mut stream = TcpStream::connect(rig.grpc).await.unwrap();
        stream.write_all(junk).await.unwrap();
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut answer))
            .await
            .expect("hung");
    }
    still_serves(&rig, &host, &joined).await;
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_inside_tls() {
    let rig = Rig::start().await;
    let (joined, host) = (rig.join("web-1").await, Host::default());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rig.gateway.authority.certificate_der().clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    let headers_of_junk = b"\x00\x00\x10\x01\x04\x00\x00\x00\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff";
    let truncated = b"\x00\x40\x00\x00\x00\x00\x00\x00\x01abc";
    for junk in [
        [&preface[..], settings, headers_of_junk].concat(),
        [&preface[..], settings, truncated].concat(),
        vec![7; 1 << 16],
    ] {
        let tcp = TcpStream::connect(rig.grpc).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let mut stream = connector.connect(name, tcp).await.unwrap();
        let _ = stream.write_all(&junk).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut answer))
            .await
            .expect("hung");
    }
    still_serves(&rig, &host, &joined).await;
}

fn client_certificate(
    not_after: time::OffsetDateTime,
    issuer: Option<&rcgen::Issuer<'_, rcgen::KeyPair>>,
) -> Joined {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.not_after = not_after;
    params.subject_alt_names = vec![rcgen::SanType::URI("sallyport://sensor/web-1".try_into().unwrap())];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = match issuer {
        Some(issuer) => params.signed_by(&key, issuer).unwrap(),
        None => params.self_signed(&key).unwrap(),
    };
    Joined { certificate: certificate.pem(), key: key.serialize_pem(), policy_key: String::new() }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_others_expired_ones_and_unknown_ones() {
    let rig = Rig::start().await;
    let (joined, host) = (rig.join("web-1").await, Host::default());
    let now = time::OffsetDateTime::now_utc();
    let state = rig.dir.path().join("state");
    let read = |name: &str| std::fs::read_to_string(state.join(name)).unwrap();
    let key = rcgen::KeyPair::from_pem(&read("ca.key")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&read("ca.pem"), key).unwrap();
    let foreign = client_certificate(now + time::Duration::days(1), None);
    let expired = client_certificate(now - time::Duration::days(1), Some(&issuer));
    for refused in [foreign, expired] {
        // TLS 1.3 tells a client of a bad certificate after the handshake: the first call fails.
        let failed = match rig.try_as_sensor(&refused).await {
            Err(_) => true,
            Ok(mut client) => client.control(tokio_stream::iter([hello(Vec::new())])).await.is_err(),
        };
        assert!(failed);
    }
    // Signed by our key, but never issued: as if the CA's key had been used behind the gateway's back.
    let unknown = client_certificate(now + time::Duration::days(1), Some(&issuer));
    let refused =
        rig.as_sensor(&unknown).await.control(tokio_stream::iter([hello(Vec::new())])).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    still_serves(&rig, &host, &joined).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sensor_that_breaks_the_rules() {
    let rig = Rig::start().await;
    let (one, two) = (rig.join("web-1").await, rig.join("web-2").await);
    let host = Host::default();
    let _link = host.connect(&rig, &one).await;
    let session = rig
        .gateway
        .authorizer
        .open_session(&person("alice", "engineers"), "web-1", Some("root"), CLIENT)
        .await
        .unwrap();
    let channel = session.start_channel(command("sleep")).await.unwrap();
    let id = host.ends.lock().unwrap().keys().next().unwrap().clone();

    // Another sensor cannot take the channel over, nor speak for the host.
    let other = Host::default();
    let intruder = other.connect(&rig, &two).await;
    let attach = |channel_id: String| ChannelFrame {
        seq: 0,
        body: Some(Body::Attach(Attach { channel_id, received: 0 })),
    };
    let mut client = intruder.client.clone();
    let refused = client.channel(tokio_stream::iter([attach(id.clone())])).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let record = sallyport_gateway::recorder::draft(sallyport_evidence::record::Kind::Exec);
    let mut record = sallyport_evidence::Record { host: Some("web-1".into()), ..record };
    record.source = sallyport_evidence::record::Source { maker: "web-1".into(), boot: "b".into(), seq: 1 };
    let batch =
        RecordBatch { boot_id: "b".into(), first_seq: 1, records: vec![record.to_bytes().unwrap().into()] };
    let mut acks = client.evidence(tokio_stream::iter([batch])).await.unwrap().into_inner();
    assert_eq!(acks.message().await.unwrap_err().code(), Code::InvalidArgument);

    // No attach first; no hello first; nothing at all; no control stream.
    let chunk = ChannelFrame { seq: 1, body: Some(Body::Chunk(Chunk::default())) };
    assert_eq!(
        client.channel(tokio_stream::iter([chunk])).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    let beat = SensorReport { report: Some(sensor_report::Report::Heartbeat(Heartbeat { newest_seq: 1 })) };
    assert_eq!(
        client.control(tokio_stream::iter([beat])).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    assert_eq!(client.control(tokio_stream::iter([])).await.unwrap_err().code(), Code::Cancelled);

    // A message beyond the limit.
    let huge =
        ChannelFrame { seq: 1, body: Some(Body::Chunk(Chunk { stream: 2, data: vec![0; 9 << 20].into() })) };
    let mut huge_client: SensorLinkClient<_> = client.clone().max_encoding_message_size(64 << 20);
    let refused = huge_client.channel(tokio_stream::iter([huge])).await.unwrap_err();
    assert!(matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted), "{refused}");

    // The right sensor with false numbers: its connection ends, the channel waits for a better one.
    let gap = ChannelFrame { seq: 7, body: Some(Body::Chunk(Chunk::default())) };
    let mut own = _link.client.clone();
    let frames = own.channel(tokio_stream::iter([attach(id.clone()), gap])).await;
    let mut frames = frames.unwrap().into_inner();
    let ended = loop {
        match frames.message().await {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert!(ended.is_err(), "{ended:?}");
    drop(channel);
    drop(session);
    drop(intruder);
    let again = Host::default();
    still_serves(&rig, &again, &one).await;
}
