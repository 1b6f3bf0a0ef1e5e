//! The steps of the story.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sallyport_evidence::record::{Kind, Outcome as Verdict};

use super::{Line, Story};
use crate::child::{Finished, finish};
use crate::events::{self, Entry};
use crate::listener::Witness;
use crate::terminal::Terminal;
use crate::wait;

/// Where the prompt stands in a shell whose prompt we set: nothing else prints it.
const PROMPT: &str = "ready$ ";

impl Story<'_> {
    fn line(&mut self, what: &str, expected: &str, happened: String, held: bool, records: &[&Entry]) {
        let line = Line {
            what: what.to_owned(),
            expected: expected.to_owned(),
            happened,
            held,
            records: records.iter().map(|entry| entry.index).collect(),
        };
        (self.report)(&line);
        self.lines.push(line);
    }

    fn marker(&self, name: &str) -> PathBuf {
        self.work.join(name)
    }

    /// The first connection of a key that nobody knows: the link is shown, the person signs in, the command
    /// runs; then the same key again, in silence.
    pub(super) fn sign_in(&mut self) -> Result<()> {
        let target = self.stage.wait_for_sensor(&self.sam_sees()?)?;
        self.mode = target["mode"].as_str().unwrap_or_default().to_owned();
        let at = format!("{}@gateway", self.facts.target);
        let (shown, code) = self.alice.first_time(self.stage.openid()?, "alice", &["-T", &at, "id -un"])?;
        let again = self.alice.run(&self.facts.target, "id -un")?;
        let silent = again.out() == "root\n" && again.code() == 0;
        self.line(
            "an unknown key signs in by link and code, then again in silence",
            "both run `id -un`",
            format!("exit {code}, then exit {} ({})", again.code(), again.out().trim()),
            code == 0 && shown.contains("root") && silent,
            &[],
        );
        ensure!(
            code == 0,
            "nobody can sign in; ssh showed:\n{shown}\nthe gateway says:\n{}",
            self.stage.gateway_log(20)
        );
        Ok(())
    }

    /// Somebody whose `sallyport targets` shows the host: those who may open sessions on it.
    fn sam_sees(&self) -> Result<crate::command_line::Person> {
        self.stage.signed_in("alice")
    }

    pub(super) fn allowed_command(&mut self) -> Result<()> {
        let from = events::end(&self.sam)?;
        let marker = self.marker("allowed");
        let done = self.run(&format!("touch {} && echo done", marker.display()))?;
        let record = self.record_of(from, "the allowed command", |entry| {
            entry.is_exec_of("/usr/bin/touch") && !entry.is_denial()
        });
        let held = done.code() == 0 && done.out() == "done\n" && marker.exists() && record.is_ok();
        let happened = format!("exit {}, {}", done.code(), file_is(&marker));
        self.line("an allowed command", "it runs", happened, held, &records(&record));
        Ok(())
    }

    pub(super) fn forbidden_program(&mut self) -> Result<()> {
        let program = self.facts.forbidden_program.clone();
        self.denied("a forbidden program", &program, |marker| format!("{program} if=/dev/null of={marker}"))
    }

    /// The same program, reached in three other ways.
    pub(super) fn disguised_program(&mut self) -> Result<()> {
        let program = self.facts.forbidden_program.clone();
        self.denied("the same through `base64 -d | sh`", &program, |marker| {
            use base64::Engine;
            let line = format!("{program} if=/dev/null of={marker}");
            format!("echo {} | base64 -d | sh", base64::engine::general_purpose::STANDARD.encode(line))
        })?;
        let script = self.work.join("script.sh");
        std::fs::write(&script, format!("set -e\n{program} if=/dev/null of=\"$1\"\n"))?;
        self.denied("the same through a script", &program, |marker| {
            format!("sh {} {marker}", script.display())
        })?;
        let copy = self.work.join("harmless");
        let copied = self.run(&format!("cp {program} {0} && chmod 755 {0}", copy.display()))?;
        ensure!(copied.code() == 0 && copy.exists(), "the program could not be copied: {}", copied.err());
        let path = copy.display().to_string();
        self.denied("a copy of it under another name", &path, |marker| {
            format!("{path} if=/dev/null of={marker}")
        })
    }

    /// Runs a line that would make a marker file, in a session and outside; `program` is what must be denied.
    fn denied(&mut self, what: &str, program: &str, line: impl Fn(&str) -> String) -> Result<()> {
        let from = events::end(&self.sam)?;
        let number = self.lines.len();
        let inside = self.marker(&format!("inside-{number}"));
        let outside = self.marker(&format!("outside-{number}"));
        // The shell must not become the program: its exit status is what a person would see.
        let done = self.run(&format!("{}; echo status=$?", line(&inside.to_string_lossy())))?;
        let control = shell(&line(&outside.to_string_lossy()))?;
        let record = self
            .record_of(from, "the denied program", |entry| entry.is_exec_of(program) && entry.is_denial());
        let status =
            done.out().lines().rev().find_map(|line| line.strip_prefix("status=").map(str::to_owned));
        let held = !inside.exists()
            && outside.exists()
            && status.as_deref().is_some_and(|status| status != "0")
            && record.as_ref().is_ok_and(|entry| self.verdict_is_right(entry));
        let happened = format!(
            "status {}, {}; outside a session: {}",
            status.as_deref().unwrap_or("none"),
            file_is(&inside),
            file_is(&outside)
        );
        let expected = if self.mode == "lsm" { "refused (EPERM)" } else { "killed at once" };
        self.line(what, expected, happened, held, &records(&record));
        ensure!(control.code() == 0, "the control failed, so the test shows nothing: {}", control.err());
        Ok(())
    }

    /// In LSM mode an exec is refused; in tracepoint mode it is killed before its first instruction.
    fn verdict_is_right(&self, entry: &Entry) -> bool {
        let Some(decision) = &entry.record.decision else { return false };
        match (self.mode.as_str(), entry.record.kind) {
            ("tracepoint", Kind::Exec) => decision.outcome == Verdict::Killed,
            _ => decision.outcome == Verdict::Blocked,
        }
    }

    pub(super) fn forbidden_connections(&mut self) -> Result<()> {
        let forbidden = Witness::listen(&self.facts.forbidden_address)?;
        let allowed = Witness::listen("127.0.0.1")?;
        let (ip, port) = (forbidden.address().ip(), forbidden.address().port());
        let open = allowed.address();
        self.connects(
            "a permitted connection by bash",
            &allowed,
            &bash_connects(&open.ip().to_string(), open.port()),
        )?;
        self.refused("a forbidden connection by bash", &forbidden, &bash_connects(&ip.to_string(), port))?;
        self.refused("a forbidden connection by perl", &forbidden, &perl_connects(&ip.to_string(), port))
    }

    fn connects(&mut self, what: &str, witness: &Witness, line: &str) -> Result<()> {
        let from = events::end(&self.sam)?;
        let before = witness.accepted();
        let done = self.run(line)?;
        let record = self.record_of(from, "the permitted connection", |entry| {
            entry.is_connect_to(witness.address()) && !entry.is_denial()
        });
        let arrived = witness.accepted() - before;
        let held = done.code() == 0 && arrived == 1 && record.is_ok();
        let happened = format!("exit {}, {arrived} arrived", done.code());
        self.line(what, "it is made", happened, held, &records(&record));
        Ok(())
    }

    /// The listener accepts in order: once the control's connection is counted, none before it was missed.
    fn refused(&mut self, what: &str, witness: &Witness, line: &str) -> Result<()> {
        let from = events::end(&self.sam)?;
        let before = witness.accepted();
        let done = self.run(line)?;
        let during = witness.accepted() - before;
        let control = shell(line)?;
        wait::until("the control's connection", wait::PATIENCE, || {
            Ok((witness.accepted() > before).then_some(()))
        })
        .context("the control failed, so the test shows nothing")?;
        let in_all = witness.accepted() - before;
        let rule = self.facts.connect_rule.clone();
        let record = self.record_of(from, "the refused connection", |entry| {
            entry.is_connect_to(witness.address()) && entry.is_denial() && entry.rule() == rule
        });
        let held = done.code() != 0 && during == 0 && control.code() == 0 && in_all == 1 && record.is_ok();
        let happened = format!("exit {}, {during} arrived; outside a session: {in_all} arrived", done.code());
        self.line(what, "refused", happened, held, &records(&record));
        Ok(())
    }

    /// A shell on a terminal: a denial that it survives, and a policy that changes under it.
    pub(super) fn interactive(&mut self) -> Result<String> {
        let from = events::end(&self.sam)?;
        let mut shell = self.alice.shell(&self.facts.target)?;
        let entry = self.entry_line(&shell)?;
        // Printed by the prompt alone, since the typed line has it in two parts.
        shell.type_keys("PS1='rea''dy$ '\r")?;
        shell.expect(0, PROMPT)?;
        let session = self.block_survived(&mut shell, from)?;
        self.pushed_policy(&mut shell, entry)?;
        let mark = shell.mark();
        shell.type_keys("exit 7\r")?;
        let code = shell.wait()?;
        let closed = self.record_of(from, "the end of the session", |entry| {
            entry.record.kind == Kind::SessionClose && entry.session() == session
        });
        let held = code == 7 && closed.is_ok();
        let happened = format!("exit {code}{}", if held { String::new() } else { shell.since(mark) });
        self.line("leaving the shell with `exit 7`", "ssh ends with 7", happened, held, &records(&closed));
        Ok(session)
    }

    /// What a person reads on entry.
    fn entry_line(&mut self, shell: &Terminal) -> Result<String> {
        let shown = shell.expect(0, "grant ends").or_else(|_| shell.expect(0, "sallyport:"))?;
        let line =
            shown.lines().find(|line| line.contains("sallyport:")).unwrap_or_default().trim().to_owned();
        let held = ["recorded", "alice@example.org", "web-1", "policy", &self.mode, "grant ends"]
            .iter()
            .all(|part| line.contains(*part));
        self.line("entering a shell", "one line says what holds", line.clone(), held, &[]);
        Ok(line)
    }

    fn block_survived(&mut self, shell: &mut Terminal, from: u64) -> Result<String> {
        let program = self.facts.forbidden_program.clone();
        let marker = self.marker("interactive");
        let mark = shell.mark();
        shell.type_keys(&format!("{program} if=/dev/null of={}\r", marker.display()))?;
        let shown = shell.expect(mark, "sallyport: blocked")?;
        let mark = shell.mark();
        shell.type_keys("echo alive-$((6*7))\r")?;
        let alive = shell.expect(mark, "alive-42").is_ok();
        let record = self.record_of(from, "the denial in the shell", |entry| {
            entry.is_exec_of(&program) && entry.is_denial()
        });
        let notice = shown
            .lines()
            .find_map(|line| line.find("sallyport: blocked").map(|at| line[at..].trim().to_owned()))
            .unwrap_or_default();
        let complete = [program.as_str(), self.facts.forbidden_rule.as_str(), "security@example.org"]
            .iter()
            .all(|part| notice.contains(part));
        let held = !marker.exists() && alive && complete && record.is_ok();
        let happened = if held {
            "one line said why; the shell went on".to_owned()
        } else {
            format!("{}; shell alive: {alive}; said: {notice}", file_is(&marker))
        };
        self.line(
            "a forbidden program in an interactive shell",
            "blocked, the shell lives",
            happened,
            held,
            &records(&record),
        );
        Ok(record?.session().to_owned())
    }

    /// The same command before and after a push, in the shell that was there all the time; and the
    /// out-of-session control while that session runs.
    fn pushed_policy(&mut self, shell: &mut Terminal, _entry: String) -> Result<()> {
        let (before, after) = (self.marker("before-push"), self.marker("after-push"));
        let mark = shell.mark();
        shell.type_keys(&format!("truncate -s 0 {}; echo rc-$?\r", before.display()))?;
        let first = status_shown(shell, mark)?;
        let folder = self.work.join("changed-policy");
        self.facts.write_changed_bundle(&folder)?;
        let from = events::end(&self.sam)?;
        let pushed = self.sam.run(&["policy", "push", &folder.to_string_lossy(), "-m", "incident review"])?;
        ensure!(pushed.code() == 0, "the push failed: {}{}", pushed.out(), pushed.err());
        // No waiting: a push answers when the sensors enforce it.
        let mark = shell.mark();
        shell.type_keys(&format!("truncate -s 0 {}; echo rc-$?\r", after.display()))?;
        let second = status_shown(shell, mark)?;
        let rule = self.facts.added_rule.clone();
        let record = self.record_of(from, "the denial after the push", |entry| {
            entry.is_exec_of("/usr/bin/truncate") && entry.is_denial() && entry.rule() == rule
        });
        let push = self.record_of(from, "the push", |entry| entry.record.kind == Kind::Policy);
        let held = first == "0" && before.exists() && second != "0" && !after.exists() && record.is_ok();
        let happened = format!(
            "before: status {first}, {}; after: status {second}, {}",
            file_is(&before),
            file_is(&after)
        );
        let entries: Vec<&Entry> = records(&push).into_iter().chain(records(&record)).collect();
        self.line(
            "a policy push turns an allowed command into a forbidden one, in the running shell",
            "allowed, then blocked",
            happened,
            held,
            &entries,
        );
        self.out_of_session()
    }

    /// While a session is judged, everything else on the computer is not.
    fn out_of_session(&mut self) -> Result<()> {
        let from = events::end(&self.sam)?;
        let witness = Witness::listen(&self.facts.forbidden_address)?;
        let address = witness.address();
        let (copied, cut) = (self.marker("untouched-1"), self.marker("untouched-2"));
        let done = [
            shell(&format!("{} if=/dev/null of={}", self.facts.forbidden_program, copied.display()))?,
            shell(&format!("truncate -s 0 {}", cut.display()))?,
            shell(&bash_connects(&address.ip().to_string(), address.port()))?,
            shell(&perl_connects(&address.ip().to_string(), address.port()))?,
        ];
        let codes: Vec<i32> = done.iter().map(Finished::code).collect();
        wait::until("the connections from outside", wait::PATIENCE, || {
            Ok((witness.accepted() >= 2).then_some(()))
        })?;
        // The log must know nothing of them: they are nobody's session. A later command in a session is
        // waited for, so that whatever came before it would have arrived.
        let after = self.run("true")?;
        ensure!(after.code() == 0, "the session after the control failed: {}", after.err());
        let known = events::all(&self.sam, &[])?;
        let strays = known.iter().filter(|entry| entry.index >= from && entry.is_denial()).count();
        let held = codes.iter().all(|code| *code == 0) && copied.exists() && cut.exists() && strays == 0;
        let happened =
            format!("exits {codes:?}, both files are there, 2 arrived, {strays} denials in the log");
        self.line("the same programs outside of a session, meanwhile", "untouched", happened, held, &[]);
        Ok(())
    }

    pub(super) fn log_verifies(&mut self) -> Result<()> {
        let verified = self.sam.run(&["verify"])?;
        let held = verified.code() == 0;
        let said =
            if held { "it verifies".to_owned() } else { format!("{}{}", verified.out(), verified.err()) };
        self.line("`sallyport verify` recomputes the log", "it verifies", said, held, &[]);
        Ok(())
    }

    fn run(&self, line: &str) -> Result<Finished> {
        self.alice.run(&self.facts.target, line)
    }

    fn record_of(&self, from: u64, what: &str, wanted: impl Fn(&Entry) -> bool) -> Result<Entry> {
        events::wait_for(&self.sam, from, what, wanted)
    }
}

/// What the shell printed for `echo rc-$?` (the typed line has no digits after it).
fn status_shown(shell: &Terminal, mark: usize) -> Result<String> {
    wait::until("the command's status", wait::PATIENCE, || {
        let shown = shell.since(mark);
        let ended = shown.rfind('\n').map_or("", |end| &shown[..end]);
        let status = ended.lines().find_map(|line| {
            let digits = line.trim().strip_prefix("rc-")?;
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.to_owned())
        });
        Ok(status)
    })
    .with_context(|| format!("the terminal showed: {}", shell.since(mark)))
}

/// Runs a line with the shell of this computer, outside of any session.
fn shell(line: &str) -> Result<Finished> {
    finish(Command::new("bash").args(["-c", line]), b"", wait::PATIENCE)
}

fn bash_connects(address: &str, port: u16) -> String {
    // A shell of its own: `exec` with a failed redirection ends a shell.
    format!(
        "bash -c 'exec 3<>/dev/tcp/{address}/{port} && read -t 10 -r line <&3 && test \"$line\" = witness'"
    )
}

fn perl_connects(address: &str, port: u16) -> String {
    format!(
        "perl -MSocket -e 'socket(my $s, PF_INET, SOCK_STREAM, 0) or exit 2; \
         connect($s, pack_sockaddr_in({port}, inet_aton(\"{address}\"))) or exit 3; \
         my $line = <$s>; exit($line eq \"witness\\n\" ? 0 : 4)'"
    )
}

fn file_is(path: &Path) -> &'static str {
    if path.exists() { "the file is there" } else { "no file" }
}

fn records(record: &Result<Entry>) -> Vec<&Entry> {
    record.as_ref().ok().into_iter().collect()
}
