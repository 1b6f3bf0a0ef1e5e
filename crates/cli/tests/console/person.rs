//! A person with a home folder who runs the command.

use std::{
    path::PathBuf,
    process::{Output, Stdio},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::Command,
};
use url::Url;

use super::{
    gateway::{Gateway, TOKEN},
    issuer::Issuer,
};

/// A home folder.
pub(crate) struct Person {
    pub(crate) home: tempfile::TempDir,
}

/// What a run of the command gave.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let ran = Self {
            code: output.status.code().expect("it was not killed"),
            stdout: String::from_utf8(output.stdout).expect("text"),
            stderr: String::from_utf8(output.stderr).expect("text"),
        };
        for said in [&ran.stdout, &ran.stderr] {
            assert!(!said.contains(TOKEN), "the token was printed: {ran:?}");
        }
        ran
    }
}

impl Ran {
    /// One JSON document per line.
    pub(crate) fn documents(&self) -> Vec<serde_json::Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

impl Person {
    pub(crate) fn new() -> Self {
        Self { home: tempfile::tempdir().expect("a folder") }
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.home.path().join(below)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sallyport"));
        command
            .args(args)
            .env_clear()
            .env("HOME", self.home.path())
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    pub(crate) async fn run(&self, args: &[&str]) -> Ran {
        self.command(args).output().await.expect("it runs").into()
    }

    /// Signs in; the test is the browser.
    pub(crate) async fn login(&self, gateway: &Gateway, issuer: &Issuer, more: &[&str]) -> Ran {
        let pin = gateway.ca_sha256.clone();
        let mut args = vec!["--json", "--gateway", &gateway.url, "login", "--no-browser"];
        if !more.contains(&"--ca-sha256") {
            args.extend(["--ca-sha256", &pin]);
        }
        args.extend(more);
        let mut child =
            self.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        stdout.read_line(&mut line).await.expect("a line");
        if !line.is_empty() {
            let asked: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            let back = issuer.approve(asked["authorize_url"].as_str().expect("an address"));
            let page = fetch(&back).await;
            assert!(page.starts_with("HTTP/1.1 200"), "{page}");
        }
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).await.expect("text");
        let mut output = child.wait_with_output().await.expect("it ends");
        output.stdout = rest.into_bytes();
        output.into()
    }
}

/// What a browser does.
pub(crate) async fn fetch(address: &str) -> String {
    let url = Url::parse(address).expect("an address");
    let mut stream = TcpStream::connect(("127.0.0.1", url.port().expect("a port"))).await.expect("connected");
    let target = format!("{}?{}", url.path(), url.query().unwrap_or_default());
    let request = format!("GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    answer
}

/// Gateway, provider and a person who is signed in.
pub(crate) async fn signed_in() -> (Gateway, Person) {
    let issuer = Issuer::start().await;
    let gateway = Gateway::start(&issuer.url).await;
    let person = Person::new();
    let ran = person.login(&gateway, &issuer, &[]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    (gateway, person)
}
