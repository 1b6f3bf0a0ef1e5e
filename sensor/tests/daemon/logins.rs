//! Log-ins that did not come through a gateway: processes that carry a login uid, as `pam_loginuid` gives one, and one
//! real `ssh` through a real sshd.
//!
//! Programs that are run here are copies with names of their own, so that nothing else on the machine is meant.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sallyport_contract::v1::PolicyBundle;
use sallyport_evidence::Record;
use sallyport_evidence::record::{Kind, Outcome};

use super::{BASE, bundle, connected, install, record, start};
use crate::gateway::Gateway;
use crate::host::{Host, can_enforce};

/// A login uid that no account has.
pub(crate) const STRANGER: u32 = 54_321;
/// Another, so that the log-ins of tests beside this one are not taken for this one's.
const STARTER: u32 = 54_322;

/// A sensor that runs under `config`, and programs to run.
pub(crate) struct Stage {
    pub(crate) gateway: Gateway,
    host: Host,
    folder: tempfile::TempDir,
}

/// What a script did.
struct Ran {
    output: Output,
    /// Its audit session; `None`: it had none.
    login: Option<u32>,
}

/// Whether login uids can be set here; if not, says so.
pub(crate) fn can_log_in() -> bool {
    if !can_enforce() {
        return false;
    }
    let probe =
        Command::new("/bin/bash").args(["-c", "echo 54321 >/proc/self/loginuid"]).output().expect("bash");
    let able = probe.status.success();
    if !able {
        eprintln!("skipped: login uids cannot be set here (CONFIG_AUDIT, CAP_AUDIT_CONTROL)");
    }
    able
}

impl Stage {
    pub(crate) async fn start(config: &str) -> Self {
        let gateway = Gateway::start().await;
        let mut host = Host::with(config);
        host.join(&gateway);
        host.start();
        connected(&gateway, 1).await;
        let folder = tempfile::tempdir().expect("folder");
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("mode");
        Self { gateway, host, folder }
    }

    /// A copy of `touch` with a name of its own.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::copy("/usr/bin/touch", &path).expect("copy");
        path
    }

    pub(crate) fn made(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a script: the shell takes the login uid, then becomes another that is seen to start.
    fn run(&self, login: Option<u32>, script: &str) -> Ran {
        let script = format!("cat /proc/self/sessionid >session; {script}");
        let output = self.command(login, "script", &script).output().expect("bash");
        let login =
            std::fs::read_to_string(self.made("session")).ok().and_then(|text| text.trim().parse().ok());
        Ran { output, login: login.filter(|number| *number != u32::MAX) }
    }

    /// Runs a script that is kept under this name.
    pub(crate) fn command(&self, login: Option<u32>, name: &str, script: &str) -> Command {
        let inner = self.made(name);
        std::fs::write(&inner, script).expect("script");
        let login =
            login.map_or_else(String::new, |uid| format!("echo {uid} >/proc/self/loginuid || exit 99; "));
        let mut command = Command::new("/bin/bash");
        command
            .args(["-c", &format!("{login}exec /bin/bash {}", inner.display())])
            .current_dir(self.folder.path());
        command
    }

    /// The records of a log-in, by the session's id.
    fn records_of(&self, session: &str) -> Vec<Record> {
        let heard = self.gateway.heard.lock().expect("lock");
        let of = |record: &&Record| record.session.as_ref().is_some_and(|known| known.id == session);
        heard.records.iter().filter(of).cloned().collect()
    }
}

fn is_of(record: &Record, path: &Path) -> bool {
    record.kind == Kind::Exec
        && record.process.as_ref().is_some_and(|process| Path::new(&process.path) == path)
}

fn forbid(name: &str) -> String {
    format!(
        "@id(\"no-{name}\") @reason(\"test\")\nforbid (principal == User::\"unbrokered\", action == Action::\"exec\", resource) when {{ principal.kind == \"unbrokered\" && context.name == \"{name}\" }};\n"
    )
}

fn policy(rules: &str) -> PolicyBundle {
    bundle(&format!("{BASE}{rules}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_login_is_seen_from_start_to_end_and_nothing_is_denied() {
    if !can_log_in() {
        return;
    }
    let stage = Stage::start("unbrokered = 'record'").await;
    let (forbidden, control) = (stage.program("sp-forbidden"), stage.program("sp-control"));
    let policy = policy(&forbid("sp-forbidden"));
    assert_eq!(install(&stage.gateway, &policy).await, "");

    let outside = stage.run(None, "./sp-control control");
    assert!(outside.output.status.success() && stage.made("control").exists());
    assert_eq!(outside.login, None, "control: it has no login uid");
    let ran = stage.run(Some(STRANGER), "./sp-forbidden made; ./sp-forbidden again");
    assert!(ran.output.status.success() && stage.made("made").exists() && stage.made("again").exists());

    let seen = record(&stage.gateway, "the program is recorded", |record| is_of(record, &forbidden)).await;
    let decision = seen.decision.clone().expect("a decision");
    assert_eq!(decision.outcome, Outcome::Observed);
    assert_eq!(
        (decision.policy.as_str(), decision.rule.as_str()),
        (policy.version.as_str(), "no-sp-forbidden")
    );
    let identity = seen.identity.expect("identity");
    assert_eq!((identity.user.as_str(), identity.kind.as_str()), ("unbrokered", "unbrokered"));
    assert_eq!(identity.groups, ["unbrokered"]);
    let session = seen.session.expect("session");
    assert_eq!(session.local_user, STRANGER.to_string(), "an account without a name goes by its number");
    let process = seen.process.expect("process");
    assert_eq!((process.login_uid, process.audit_session), (Some(STRANGER), ran.login));

    // Opened once, first; closed once, last.
    let closed = |record: &Record| {
        record.kind == Kind::SessionClose && record.session.as_ref().is_some_and(|s| s.id == session.id)
    };
    let closed = record(&stage.gateway, "the log-in is closed", closed).await;
    assert!(closed.message.is_some_and(|text| text.contains("54321")));
    let records = stage.records_of(&session.id);
    let of = |kind: Kind| records.iter().filter(|record| record.kind == kind).count();
    assert_eq!((of(Kind::SessionOpen), of(Kind::SessionClose)), (1, 1), "{records:#?}");
    assert_eq!((records[0].kind, records[records.len() - 1].kind), (Kind::SessionOpen, Kind::SessionClose));
    let opened = &records[0];
    assert!(opened.message.as_ref().is_some_and(|text| text.contains("recorded only")), "{opened:?}");
    let decision = opened.decision.as_ref().expect("a decision");
    assert_eq!((decision.outcome, decision.policy.as_str()), (Outcome::Allowed, policy.version.as_str()));
    assert_eq!(opened.process.as_ref().and_then(|p| p.login_uid), Some(STRANGER));
    assert_eq!(records.iter().filter(|record| is_of(record, &forbidden)).count(), 2);

    let heard = stage.gateway.heard.lock().expect("lock");
    assert!(!heard.records.iter().any(|record| is_of(record, &control)), "the control was recorded");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enforced_policy_denies_and_a_push_reaches_who_is_logged_in() {
    if !can_log_in() {
        return;
    }
    let stage = Stage::start("unbrokered = 'enforce'\nbreak_glass = ['root']").await;
    let forbidden = stage.program("sp-denied");
    // Before there is a policy nobody is locked out, and it is said.
    let early = stage.run(Some(STRANGER), "./sp-denied early");
    assert!(early.output.status.success() && stage.made("early").exists());
    assert!(stage.host.log().contains("no policy yet"), "{}", stage.host.log());
    let seen = record(&stage.gateway, "it is recorded", |record| is_of(record, &forbidden)).await;
    let decision = seen.decision.expect("a decision");
    assert_eq!((decision.outcome, decision.policy.as_str()), (Outcome::Allowed, ""));

    let strict = policy(&forbid("sp-denied"));
    assert_eq!(install(&stage.gateway, &strict).await, "");
    let ran = stage.run(Some(STRANGER), "./sp-denied denied; ./sp-denied denied; true");
    assert!(ran.output.status.success(), "its shell is permitted: {:?}", ran.output);
    assert!(!stage.made("denied").exists(), "policy does not hold");
    let denied = record(&stage.gateway, "the denial is recorded", |record| {
        is_of(record, &forbidden)
            && record
                .decision
                .as_ref()
                .is_some_and(|d| matches!(d.outcome, Outcome::Blocked | Outcome::Killed))
    })
    .await;
    let decision = denied.decision.expect("a decision");
    assert_eq!((decision.policy.as_str(), decision.rule.as_str()), (strict.version.as_str(), "no-sp-denied"));

    // Controls: no login uid, and the account for emergencies.
    assert!(stage.run(None, "./sp-denied outside").output.status.success());
    assert!(stage.made("outside").exists());
    assert!(stage.run(Some(0), "./sp-denied rescue").output.status.success());
    assert!(stage.made("rescue").exists(), "root is locked out");
    let rescue = record(&stage.gateway, "root is recorded", |record| {
        is_of(record, &forbidden)
            && record.session.as_ref().is_some_and(|session| session.local_user == "root")
    })
    .await;
    assert_eq!(rescue.decision.map(|decision| decision.outcome), Some(Outcome::Observed));

    // Somebody who is logged in while policies come and go.
    let script = "n=0; while [ ! -e stop ]; do rm -f loop; ./sp-denied loop 2>/dev/null; [ -e loop ] && echo yes >state.new || echo no >state.new; mv state.new state; done";
    let stage = &stage;
    let state = || std::fs::read_to_string(stage.made("state")).unwrap_or_default().trim().to_owned();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| stage.run(Some(STRANGER), script));
        let push = |bundle: &PolicyBundle| {
            let answer = tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(install(&stage.gateway, bundle))
            });
            assert_eq!(answer, "");
        };
        let until = |wanted: &str| {
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
            while state() != wanted {
                assert!(
                    std::time::Instant::now() < deadline,
                    "`{wanted}` was not reached: {}",
                    stage.host.log()
                );
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        };
        until("no");
        push(&policy(""));
        until("yes");
        push(&policy(&forbid("sp-denied")));
        until("no");
        std::fs::write(stage.made("stop"), "").expect("stop");
        assert!(running.join().expect("the script").output.status.success());
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_cannot_be_compiled_for_logins_locks_nobody_out_and_fails_no_push() {
    if !can_log_in() {
        return;
    }
    let stage = Stage::start("unbrokered = 'enforce'").await;
    stage.program("sp-uncompiled");
    // Each pattern doubles what the automaton must remember, for such log-ins only.
    let patterns: Vec<String> = (0..26)
        .map(|n| {
            let (a, b) = (char::from(b'a' + n), char::from(b'A' + n));
            format!("context.path like \"*{a}{b}*{b}{a}*{a}{a}*\"")
        })
        .map(|pattern| format!("forbid (principal, action == Action::\"exec\", resource) when {{ principal.kind == \"unbrokered\" && {pattern} }};\n"))
        .enumerate()
        .map(|(n, rule)| format!("@id(\"heavy-{n}\") @reason(\"test\")\n{rule}"))
        .collect();
    let heavy = policy(&format!("{}{}", patterns.concat(), forbid("sp-uncompiled")));
    assert_eq!(install(&stage.gateway, &heavy).await, "", "the push failed");
    assert!(stage.host.log().contains("the policy cannot be used for log-ins"), "{}", stage.host.log());
    assert!(stage.run(Some(STRANGER), "./sp-uncompiled made").output.status.success());
    assert!(stage.made("made").exists(), "a fault locked somebody out");
    // The gateway's own sessions are judged by it.
    stage.gateway.order(super::Order::Start(start("s1", "c1", &heavy.version, "echo brokered")));
    super::output(&stage.gateway, "c1", "brokered").await;
    let told = record(&stage.gateway, "it is in the evidence", |record| {
        record.kind == Kind::Sensor
            && record.message.as_ref().is_some_and(|text| text.contains("cannot be used for log-ins"))
    })
    .await;
    assert!(told.identity.is_none());
    // Control: one that can be compiled denies.
    assert_eq!(install(&stage.gateway, &policy(&forbid("sp-uncompiled"))).await, "");
    stage.run(Some(STRANGER), "./sp-uncompiled denied; true");
    assert!(!stage.made("denied").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn switched_off_nothing_is_looked_at() {
    if !can_log_in() {
        return;
    }
    let stage = Stage::start("unbrokered = 'off'").await;
    let program = stage.program("sp-unseen");
    let policy = policy(&forbid("sp-unseen"));
    assert_eq!(install(&stage.gateway, &policy).await, "");
    assert!(stage.run(Some(STRANGER), "./sp-unseen made").output.status.success());
    assert!(stage.made("made").exists());
    // Something that is recorded later shows that it would have been here by now.
    stage.gateway.order(super::Order::Start(start("s1", "c1", &policy.version, "/usr/bin/true")));
    record(&stage.gateway, "a session's program", |record| super::is_exec(record, "/true", Outcome::Allowed))
        .await;
    let heard = stage.gateway.heard.lock().expect("lock");
    assert!(!heard.records.iter().any(|record| is_of(record, &program)));
    assert!(
        !heard.records.iter().any(|record| record.identity.as_ref().is_some_and(|i| i.user == "unbrokered"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_outlives_the_sensor_and_is_opened_and_closed_once() {
    if !can_log_in() {
        return;
    }
    let mut stage = Stage::start("unbrokered = 'record'").await;
    let program = stage.program("sp-long");
    assert_eq!(install(&stage.gateway, &policy("")).await, "");
    let script = "./sp-long up; while [ ! -e stop ]; do read -t 0.05 _ <>gate; done; ./sp-long down";
    nix::unistd::mkfifo(&stage.made("gate"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    let inner = stage.made("script");
    std::fs::write(&inner, script).expect("script");
    let mut running = Command::new("/bin/bash")
        .args(["-c", &format!("echo {STRANGER} >/proc/self/loginuid; exec /bin/bash {}", inner.display())])
        .current_dir(stage.folder.path())
        .spawn()
        .expect("bash");
    let up = record(&stage.gateway, "it is seen", |record| is_of(record, &program)).await;
    let session = up.session.expect("session");
    stage.host.kill();
    stage.host.start();
    connected(&stage.gateway, 2).await;
    std::fs::write(stage.made("stop"), "").expect("stop");
    assert!(running.wait().expect("wait").success());
    let is_close = |record: &Record| {
        record.kind == Kind::SessionClose && record.session.as_ref().is_some_and(|s| s.id == session.id)
    };
    record(&stage.gateway, "it is closed", is_close).await;
    let records = stage.records_of(&session.id);
    let of = |kind: Kind| records.iter().filter(|record| record.kind == kind).count();
    assert_eq!((of(Kind::SessionOpen), of(Kind::SessionClose)), (1, 1), "{records:#?}");
    assert_eq!(records.iter().filter(|record| is_of(record, &program)).count(), 2, "both runs of it");
    assert!(!stage.host.log().contains("belongs to nobody known"), "{}", stage.host.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sensor_started_from_a_login_and_its_sessions_are_not_taken_for_that_login() {
    if !can_log_in() {
        return;
    }
    let gateway = Gateway::start().await;
    let mut host = Host::with("unbrokered = 'record'");
    host.join(&gateway);
    host.start_from_login(STARTER);
    connected(&gateway, 1).await;
    let policy = policy("");
    assert_eq!(install(&gateway, &policy).await, "");
    gateway.order(super::Order::Start(start(
        "s1",
        "c1",
        &policy.version,
        "cat /proc/self/loginuid; /usr/bin/true",
    )));
    let program =
        record(&gateway, "the session's program", |record| super::is_exec(record, "/true", Outcome::Allowed))
            .await;
    assert_eq!(program.session.map(|session| session.id), Some("s1".into()));
    assert_eq!(program.identity.map(|identity| identity.user), Some("alice@example.org".into()));
    let heard = gateway.heard.lock().expect("lock");
    let strange = heard.records.iter().find(|record| {
        record.process.as_ref().is_some_and(|p| p.login_uid == Some(STARTER))
            && record.identity.as_ref().is_some_and(|i| i.user == "unbrokered")
    });
    assert!(strange.is_none(), "{strange:#?}");
}

/// An sshd on loopback that nothing of Sallyport stands before. Goes when dropped.
struct Sshd {
    server: std::process::Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Sshd {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let path = |name: &str| folder.path().join(name);
        for key in ["host", "me"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(path(key))
                .status()
                .expect("ssh-keygen");
            assert!(made.success());
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|socket| socket.local_addr())
            .expect("a port")
            .port();
        let text = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {0}/host\nAuthorizedKeysFile {0}/me.pub\nUsePAM yes\nPermitRootLogin yes\nStrictModes no\nPidFile none\nPrintMotd no\n",
            folder.path().display()
        );
        std::fs::write(path("config"), text).expect("configuration");
        std::fs::create_dir_all("/run/sshd").expect("sshd's own folder");
        let log = std::fs::File::create(path("log")).expect("log");
        let server =
            Command::new("/usr/sbin/sshd").args(["-D", "-e", "-f"]).arg(path("config")).stderr(log).spawn();
        let server = server.expect("sshd");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(std::time::Instant::now() < deadline, "sshd does not listen");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Self { server, folder, port }
    }

    fn ssh(&self, command: &str) -> Output {
        Command::new("ssh")
            .args([
                "-F",
                "none",
                "-o",
                "IdentitiesOnly=yes",
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "BatchMode=yes",
            ])
            .args(["-o", "UserKnownHostsFile=/dev/null", "-p", &self.port.to_string(), "-i"])
            .arg(self.folder.path().join("me"))
            .args(["root@127.0.0.1", command])
            .output()
            .expect("ssh")
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_ssh_is_seen_and_enforced() {
    if !can_log_in() {
        return;
    }
    let pam = std::fs::read_to_string("/etc/pam.d/sshd").unwrap_or_default();
    if !Path::new("/usr/sbin/sshd").exists() || !pam.contains("pam_loginuid") {
        eprintln!("skipped: needs openssh-server with pam_loginuid (`cargo xtask setup --all`)");
        return;
    }
    // No account for emergencies, so that policy holds for root.
    let stage = Stage::start("unbrokered = 'enforce'\nbreak_glass = []").await;
    let program = stage.program("sp-direct");
    let sshd = Sshd::start();
    let free = policy("");
    assert_eq!(install(&stage.gateway, &free).await, "");
    let command = |file: &str| {
        format!("cd {}; ./sp-direct {file}; cat /proc/self/loginuid", stage.folder.path().display())
    };
    let first = sshd.ssh(&command("made"));
    let text = String::from_utf8_lossy(&first.stdout).into_owned();
    if text.trim() == u32::MAX.to_string() {
        eprintln!("skipped: this sshd's PAM gives no login uid");
        return;
    }
    assert_eq!(text.trim(), "0", "{}", String::from_utf8_lossy(&first.stderr));
    assert!(stage.made("made").exists());
    let seen = record(&stage.gateway, "the program is recorded", |record| is_of(record, &program)).await;
    assert_eq!(seen.decision.map(|decision| decision.outcome), Some(Outcome::Allowed));
    let session = seen.session.expect("session");
    assert_eq!((session.local_user.as_str(), session.client.as_str()), ("root", ""));
    let is_close = |record: &Record| {
        record.kind == Kind::SessionClose && record.session.as_ref().is_some_and(|s| s.id == session.id)
    };
    record(&stage.gateway, "the log-in is closed", is_close).await;

    assert_eq!(install(&stage.gateway, &policy(&forbid("sp-direct"))).await, "");
    sshd.ssh(&command("denied"));
    assert!(!stage.made("denied").exists(), "policy does not hold for direct ssh");
    let denied = record(&stage.gateway, "the denial is recorded", |record| {
        is_of(record, &program)
            && record
                .decision
                .as_ref()
                .is_some_and(|d| matches!(d.outcome, Outcome::Blocked | Outcome::Killed))
    })
    .await;
    assert_ne!(denied.session.expect("session").id, session.id, "another log-in");
}
