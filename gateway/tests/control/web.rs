//! HTTP/1.1 over TLS, by hand: what a script in a CI job sends.

use crate::rig::Rig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&self.body)))
    }

    /// A problem document of RFC 9457: its type and what it says.
    pub(crate) fn problem(&self) -> (String, String) {
        assert!(self.head.contains("content-type: application/problem+json"), "{}", self.head);
        let value = self.json();
        assert_eq!(value["status"], self.status);
        let text = |name: &str| value[name].as_str().unwrap().to_owned();
        (text("type"), text("detail"))
    }
}

/// One request, with more header lines than host and length.
pub(crate) async fn request(rig: &Rig, request: &str, headers: &[String], body: &[u8]) -> Answer {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rig.gateway.authority.certificate_der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = TcpStream::connect(rig.grpc).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let more: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let length = if more.contains("content-length") {
        String::new()
    } else {
        format!("content-length: {}\r\n", body.len())
    };
    let head = format!("{request} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{length}{more}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server may answer, and close, before it has read everything.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let at = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("an HTTP answer");
    let head = String::from_utf8(answer[..at].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head, body: answer[at + 4..].to_vec() }
}

pub(crate) async fn push(rig: &Rig, token: &str, query: &str, signatures: &[&str], archive: &[u8]) -> Answer {
    use base64::Engine;
    let mut headers = vec![format!("authorization: Bearer {token}")];
    let encode = |note: &&str| base64::prelude::BASE64_STANDARD.encode(note);
    headers.extend(signatures.iter().map(|note| format!("sallyport-signature: {}", encode(note))));
    request(rig, &format!("POST /v1/policy{query}"), &headers, archive).await
}
