//! Local processes in the place of hosts: what the door needs of the rest of the gateway, for these tests alone.

use bytes::Bytes;
use sallyport_contract::v1::{Exit, Work, exit, work};
use sallyport_evidence::record::Identity;
use sallyport_gateway::authorize::{EndReason, Refusal, RefusalKind, SignInAttempt, TargetInfo};
use sallyport_gateway::sensors::{ChannelClosed, Input, Output, StartError};
use sallyport_gateway::ssh::hosts::{FromHost, HostSession, Hosts, ToHost};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, Command};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Everything that reached it, as lines.
pub(crate) type Log = Arc<Mutex<Vec<String>>>;

pub(crate) struct LocalHosts {
    pub(crate) log: Log,
    /// Cancelled: policy no longer permits the running sessions.
    pub(crate) over: CancellationToken,
}

struct LocalSession {
    name: String,
    log: Log,
    over: CancellationToken,
}

struct LocalInput {
    stdin: tokio::sync::Mutex<Option<ChildStdin>>,
    pid: u32,
    log: Log,
}

struct LocalOutput {
    outputs: mpsc::Receiver<Output>,
    _killed_with_it: CancellationToken,
    _guard: tokio_util::sync::DropGuard,
}

const TARGETS: [(&str, &[&str]); 2] = [("web-1", &["root"]), ("web-2", &["deploy", "root"])];

#[tonic::async_trait]
impl Hosts for LocalHosts {
    async fn open_session(
        &self,
        identity: &Identity,
        host: &str,
        local_user: Option<&str>,
        _client: SocketAddr,
    ) -> Result<Box<dyn HostSession>, Refusal> {
        let refuse = |kind, message: &str| Refusal { kind, message: message.to_owned() };
        let permitted = TARGETS.iter().find(|(name, _)| *name == host).map(|(_, users)| *users);
        let user = match (permitted, local_user) {
            (Some(users), Some(user)) if users.contains(&user) => user,
            (Some([only]), None) => only,
            (Some(_), None) => return Err(refuse(RefusalKind::Ambiguous, "name one of: deploy, root")),
            _ => {
                return Err(refuse(
                    RefusalKind::Policy,
                    "rule \"default\" does not permit it; ask ops@example.org",
                ));
            }
        };
        let name = format!("{user}@{host}");
        self.log.lock().expect("lock").push(format!("open {} {name} {}", identity.user, identity.method));
        Ok(Box::new(LocalSession { name, log: Arc::clone(&self.log), over: self.over.clone() }))
    }

    fn targets(&self, _identity: &Identity) -> Vec<TargetInfo> {
        TARGETS
            .iter()
            .map(|(host, users)| TargetInfo {
                host: (*host).to_owned(),
                local_users: users.iter().map(|user| (*user).to_owned()).collect(),
                connected: true,
                mode: "lsm".to_owned(),
                kernel: String::new(),
                policy_version: String::new(),
                policy_trouble: String::new(),
            })
            .collect()
    }

    async fn sign_in_record(&self, attempt: SignInAttempt<'_>) -> Result<(), Refusal> {
        let who = attempt.identity.map_or("nobody", |identity| &identity.user);
        let line = format!("sign-in {who} {} {}", attempt.method, attempt.failure.unwrap_or("good"));
        self.log.lock().expect("lock").push(line);
        Ok(())
    }
}

impl Drop for LocalSession {
    fn drop(&mut self) {
        self.log.lock().expect("lock").push(format!("close {}", self.name));
    }
}

#[tonic::async_trait]
impl HostSession for LocalSession {
    async fn start_channel(&self, work: Work) -> Result<(Box<dyn ToHost>, Box<dyn FromHost>), StartError> {
        let mut command = match work.work {
            Some(work::Work::Shell(_)) | None => Command::new("/bin/sh"),
            Some(work::Work::Command(command)) => {
                let line = String::from_utf8(command.line).expect("utf-8 in tests");
                let mut shell = Command::new("/bin/sh");
                shell.arg("-c").arg(line);
                shell
            }
            Some(work::Work::Subsystem(_)) => Command::new("/usr/lib/openssh/sftp-server"),
        };
        if let Some(pty) = &work.pty {
            let size = pty.size.expect("size");
            command.env("PTY", format!("{} {}x{}", pty.term, size.columns, size.rows));
        }
        for variable in &work.env {
            command.env(&variable.name, String::from_utf8_lossy(&variable.value).as_ref());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("spawns");
        let pid = child.id().expect("running");
        let (stdin, mut stdout, mut stderr) =
            (child.stdin.take(), child.stdout.take().expect("pipe"), child.stderr.take().expect("pipe"));
        let (send, outputs) = mpsc::channel(4);
        let hangup = CancellationToken::new();
        let (errors, hung_up) = (send.clone(), hangup.clone());
        let errors = tokio::spawn(async move {
            let mut buffer = vec![0; 32 * 1024];
            while let Ok(n @ 1..) = stderr.read(&mut buffer).await {
                let _ = errors.send(Output::Stderr(Bytes::copy_from_slice(&buffer[..n]))).await;
            }
        });
        tokio::spawn(async move {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                tokio::select! {
                    () = hung_up.cancelled() => break,
                    read = stdout.read(&mut buffer) => match read {
                        Ok(n @ 1..) => {
                            let _ = send.send(Output::Stdout(Bytes::copy_from_slice(&buffer[..n]))).await;
                        }
                        _ => break,
                    },
                }
            }
            if hung_up.is_cancelled() {
                let _ = child.start_kill();
            }
            let _ = errors.await;
            let _ = send.send(Output::Eof).await;
            let status = tokio::select! {
                status = child.wait() => status,
                () = hung_up.cancelled() => { let _ = child.start_kill(); child.wait().await }
            };
            let status = status.expect("waits");
            let status = match (status.code(), status.signal()) {
                (Some(code), _) => exit::Status::Code(u32::try_from(code).expect("code")),
                (None, Some(9)) => exit::Status::Signal("KILL".to_owned()),
                (None, Some(2)) => exit::Status::Signal("INT".to_owned()),
                (None, _) => exit::Status::Signal("TERM".to_owned()),
            };
            let exit = Exit { status: Some(status), core_dumped: false, message: String::new() };
            let _ = send.send(Output::Exit(exit)).await;
        });
        let input = LocalInput { stdin: tokio::sync::Mutex::new(stdin), pid, log: Arc::clone(&self.log) };
        let guard = hangup.clone().drop_guard();
        Ok((Box::new(input), Box::new(LocalOutput { outputs, _killed_with_it: hangup, _guard: guard })))
    }

    async fn ended(&self) -> EndReason {
        self.over.cancelled().await;
        EndReason::PolicyChanged { version: "1a2b3c".to_owned() }
    }
}

#[tonic::async_trait]
impl ToHost for LocalInput {
    async fn send(&self, input: Input) -> Result<(), ChannelClosed> {
        let mut stdin = self.stdin.lock().await;
        match input {
            Input::Data(data) => match stdin.as_mut() {
                Some(pipe) => pipe.write_all(&data).await.map_err(|_| ChannelClosed)?,
                None => return Err(ChannelClosed),
            },
            Input::Eof => *stdin = None,
            Input::Resize(size) => {
                self.log.lock().expect("lock").push(format!("resize {}x{}", size.columns, size.rows));
            }
            Input::Signal(name) => {
                let killed = std::process::Command::new("kill")
                    .arg(format!("-{name}"))
                    .arg(self.pid.to_string())
                    .status();
                assert!(killed.expect("kill runs").success());
            }
            Input::Hangup => self.log.lock().expect("lock").push("hangup".to_owned()),
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl FromHost for LocalOutput {
    async fn recv(&mut self) -> Option<Output> {
        self.outputs.recv().await
    }
    fn lost(&self) -> Option<String> {
        None
    }
}
