//! A gateway's end of a channel, for tests: starts a shepherd, lets it go, moves frames, breaks links.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use sallyport_contract::resume::{Incoming, Resumable};
use sallyport_contract::v1::{ChannelFrame, Chunk, Eof, Exit, Stream, channel_frame::Body};
use sallyport_sensor::frames;
use sallyport_sensor::shepherd::filter::Refusals;
use sallyport_sensor::shepherd::protocol::{
    CONTROL, Command, LINK, Pty, Ready, Report, Spec, Work, line, socket_path,
};

/// Longest any test waits for one thing.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to start.
pub(crate) struct Setup {
    pub(crate) work: Work,
    pub(crate) pty: Option<Pty>,
    pub(crate) local_user: Option<String>,
    pub(crate) announcement: String,
    pub(crate) refusals: Refusals,
    /// Start the shepherd without `CAP_SYS_ADMIN` (needs root).
    pub(crate) without_admin: bool,
    pub(crate) reattach_grace: Duration,
    /// Files to put over the host's, seen by this shepherd alone (in a mount namespace; needs root).
    pub(crate) files: Vec<(&'static str, String)>,
}

/// `shell -c line`, with pipes.
pub(crate) fn command(line: &str) -> Setup {
    Setup {
        work: Work::Command(line.as_bytes().to_vec()),
        pty: None,
        local_user: None,
        announcement: String::new(),
        refusals: Refusals::default(),
        without_admin: false,
        reattach_grace: Duration::from_secs(30),
        files: Vec::new(),
    }
}

/// The login shell.
pub(crate) fn shell() -> Setup {
    Setup { work: Work::Shell, ..command("") }
}

/// A started shepherd whose leader waits.
pub(crate) struct Waiting {
    /// Process id.
    pub(crate) leader: u32,
    shepherd: Child,
    directory: tempfile::TempDir,
}

/// A gateway attached to a running channel.
pub(crate) struct Gateway {
    shepherd: Child,
    directory: tempfile::TempDir,
    control: BufReader<UnixStream>,
    link: Option<UnixStream>,
    incoming: BytesMut,
    channel: Resumable,
    exit: Option<Exit>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Whether standard output is kept or only counted.
    pub(crate) keep: bool,
    pub(crate) n_stdout: u64,
}

fn start(setup: Setup) -> (Child, tempfile::TempDir, Ready) {
    let directory = tempfile::tempdir().expect("a directory");
    let me = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).expect("users").expect("me");
    let spec = Spec {
        channel_id: "test".into(),
        local_user: setup.local_user.unwrap_or(me.name),
        work: setup.work,
        pty: setup.pty,
        env: vec![("LANG".into(), b"C.UTF-8".to_vec())],
        client: "192.0.2.7 50000".into(),
        server: "198.51.100.1 22".into(),
        directory: directory.path().into(),
        sftp_server: vec!["/usr/lib/openssh/sftp-server".into(), "/usr/libexec/openssh/sftp-server".into()],
        reattach_grace_ms: setup.reattach_grace.as_millis() as u64,
        hangup_grace_ms: 500,
        refusals: setup.refusals,
        announcement: setup.announcement,
    };
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_sallyport-sensor"));
    if !setup.files.is_empty() {
        let mut script = String::from("set -e; ");
        for (index, (over, content)) in setup.files.iter().enumerate() {
            let file = directory.path().join(format!("file{index}"));
            std::fs::write(&file, content).expect("a file");
            script.push_str(&format!("mount --bind {} {over}; ", file.display()));
        }
        script.push_str("exec \"$0\" shepherd");
        let shepherd = std::mem::replace(&mut program, std::process::Command::new("unshare"));
        program.args(["--mount", "sh", "-c", &script]).arg(shepherd.get_program());
    }
    if setup.without_admin {
        let shepherd = std::mem::replace(&mut program, std::process::Command::new("setpriv"));
        program.arg("--bounding-set=-sys_admin").arg(shepherd.get_program());
    }
    let mut shepherd = program
        .arg("shepherd")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the shepherd starts");
    let mut stdin = shepherd.stdin.take().expect("its input");
    stdin.write_all(&serde_json::to_vec(&spec).expect("spec")).expect("spec is written");
    drop(stdin);
    let mut ready = String::new();
    BufReader::new(shepherd.stdout.take().expect("its output")).read_line(&mut ready).expect("a line");
    let ready = serde_json::from_str(&ready).expect("a ready line");
    (shepherd, directory, ready)
}

impl Waiting {
    pub(crate) fn prepare(setup: Setup) -> Self {
        let (shepherd, directory, ready) = start(setup);
        let Ready::Leader { pid, .. } = ready else { panic!("{ready:?}") };
        Self { leader: pid, shepherd, directory }
    }

    pub(crate) fn go(self) -> Gateway {
        let control = connect(self.directory.path(), CONTROL);
        let mut gateway = Gateway {
            shepherd: self.shepherd,
            directory: self.directory,
            control: BufReader::new(control),
            link: None,
            incoming: BytesMut::new(),
            channel: Resumable::new("test"),
            exit: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
            keep: true,
            n_stdout: 0,
        };
        gateway.order(&Command::Go);
        gateway.attach();
        gateway
    }
}

impl Gateway {
    pub(crate) fn run(setup: Setup) -> Gateway {
        Waiting::prepare(setup).go()
    }

    pub(crate) fn refused(setup: Setup) -> String {
        let (mut shepherd, _directory, ready) = start(setup);
        assert_eq!(shepherd.wait().expect("it ends").code(), Some(1));
        match ready {
            Ready::Refused(reason) => reason,
            Ready::Leader { .. } => panic!("it was started"),
        }
    }

    /// A command that makes a file, waiting.
    pub(crate) fn prepare_marked() -> (Waiting, PathBuf) {
        let marks = std::env::temp_dir().join(format!("sallyport-mark-{}", std::process::id()));
        let _ = std::fs::remove_file(&marks);
        (Waiting::prepare(command(&format!("touch {}", marks.display()))), marks)
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(socket_path(self.directory.path())).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
        stream
    }

    pub(crate) fn order(&mut self, command: &Command) {
        self.control.get_mut().write_all(&line(command)).expect("the order is written");
    }

    /// The last report.
    pub(crate) fn done(&mut self) -> Report {
        loop {
            let mut text = String::new();
            self.control.read_line(&mut text).expect("a report");
            match serde_json::from_str(&text).expect("a report") {
                done @ Report::Done { .. } => return done,
                Report::State { .. } => {}
            }
        }
    }

    pub(crate) fn attach(&mut self) {
        let link = connect(self.directory.path(), LINK);
        link.set_nonblocking(true).expect("nonblocking");
        self.incoming.clear();
        self.link = Some(link);
        let attach = self.channel.attach_frame();
        self.write(&attach);
        self.until(|gateway| gateway.channel.is_attached());
    }

    pub(crate) fn cut(&mut self) {
        self.link = None;
        self.channel.on_detach();
    }

    pub(crate) fn cut_and_reattach(&mut self) {
        self.cut();
        self.attach();
    }

    pub(crate) fn input(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(100_000) {
            self.send(Body::Chunk(Chunk {
                stream: Stream::Stdin as i32,
                data: Bytes::copy_from_slice(part),
            }));
        }
    }

    pub(crate) fn input_end(&mut self) {
        self.send(Body::Eof(Eof { stream: Stream::Stdin as i32 }));
    }

    /// Input until nothing more is taken.
    pub(crate) fn fill_window(&mut self) {
        let data = Bytes::from(vec![b'x'; 100_000]);
        loop {
            let body = Body::Chunk(Chunk { stream: Stream::Stdin as i32, data: data.clone() });
            match self.channel.send(body) {
                Ok(frame) => frame.iter().for_each(|frame| self.write(frame)),
                Err(_) => return,
            }
        }
    }

    /// Sends a frame as soon as the window takes it.
    pub(crate) fn send(&mut self, body: Body) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.channel.send(body.clone()) {
                Ok(frame) => {
                    frame.iter().for_each(|frame| self.write(frame));
                    return self.pump(Duration::ZERO);
                }
                Err(_) => self.pump(Duration::from_millis(1)),
            }
            assert!(Instant::now() < deadline, "the window stays full");
        }
    }

    /// Takes nothing from the link for a while.
    pub(crate) fn stall(&mut self, time: Duration) {
        std::thread::sleep(time);
    }

    pub(crate) fn until(&mut self, mut holds: impl FnMut(&Gateway) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            self.pump(Duration::from_millis(1));
            let text = || String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(2_000)]).into_owned();
            assert!(Instant::now() < deadline, "it never came true; output so far: {}", text());
        }
    }

    pub(crate) fn stdout_has(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.stdout).contains(text)
    }

    /// Until the exit has come, and the shepherd is gone.
    pub(crate) fn finish(&mut self) -> Exit {
        self.until(|gateway| gateway.exit.is_some());
        assert!(matches!(self.done(), Report::Done { delivered: true, .. }));
        assert!(self.shepherd_ends());
        self.exit.clone().unwrap_or_default()
    }

    pub(crate) fn shepherd_ends(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if matches!(self.shepherd.try_wait(), Ok(Some(status)) if status.success()) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    /// Resident memory of the shepherd in KiB.
    pub(crate) fn shepherd_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.shepherd.id())).expect("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    }

    /// Processor time the shepherd has used, in seconds.
    pub(crate) fn shepherd_time(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.shepherd.id())).expect("stat");
        let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
        // utime and stime, in hundredths.
        fields[11..13].iter().filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
    }

    fn write(&mut self, frame: &ChannelFrame) {
        let (head, data) = frames::encode(frame);
        let mut bytes = [&head[..], &data[..]].concat();
        // Reading while the socket is full: neither side may wait for the other.
        while let Some(link) = self.link.as_mut().filter(|_| !bytes.is_empty()) {
            match link.write(&bytes) {
                Ok(n) => drop(bytes.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.read(),
                Err(error) => panic!("the link broke: {error}"),
            }
        }
    }

    fn read(&mut self) {
        let mut buffer = vec![0; 256 << 10];
        let Some(link) = self.link.as_mut() else { return };
        match link.read(&mut buffer) {
            Ok(0) => {}
            Ok(n) => self.incoming.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("the link broke: {error}"),
        }
    }

    fn pump(&mut self, wait: Duration) {
        let before = self.incoming.len();
        self.read();
        let idle = self.incoming.len() == before;
        while let Some(frame) = frames::decode(&mut self.incoming).expect("frames") {
            match self.channel.on_frame(frame).expect("a peer that keeps the rules") {
                Incoming::Deliver { seq, body } => {
                    match body {
                        Body::Chunk(chunk) if chunk.stream == Stream::Stdout as i32 => {
                            self.n_stdout += chunk.data.len() as u64;
                            if self.keep {
                                self.stdout.extend_from_slice(&chunk.data);
                            }
                        }
                        Body::Chunk(chunk) => self.stderr.extend_from_slice(&chunk.data),
                        Body::Exit(exit) => self.exit = Some(exit),
                        _ => {}
                    }
                    self.channel.take(seq);
                }
                Incoming::Attached { resend } => resend.iter().for_each(|frame| self.write(frame)),
                Incoming::Acked | Incoming::Duplicate => {}
            }
        }
        if let Some(ack) = self.channel.ack_due(true) {
            self.write(&ack);
        }
        if idle {
            std::thread::sleep(wait);
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.shepherd.kill();
        let _ = self.shepherd.wait();
    }
}

fn connect(directory: &Path, kind: u8) -> UnixStream {
    let mut stream = UnixStream::connect(socket_path(directory)).expect("connect");
    stream.write_all(&[kind]).expect("first byte");
    stream
}
