//! The steps of the story.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use sallyport_evidence::record::{Kind, Outcome as Verdict};

use super::facts::{
    CONNECT_RULE, FORBIDDEN_ADDRESS, FORBIDDEN_PORT, FORBIDDEN_PROGRAM, FORBIDDEN_RULE, LATER_PROGRAM,
    LATER_RULE, TARGET,
};
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
        let at = format!("{TARGET}@gateway");
        let (shown, code) = self.alice.first_time(self.stage.openid()?, "alice", &["-T", &at, "id -un"])?;
        let again = self.alice.run(TARGET, "id -un")?;
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
        self.denied("a forbidden program", FORBIDDEN_PROGRAM, |file| format!("{FORBIDDEN_PROGRAM} -u {file}"))
    }

    /// The same program, reached in three other ways.
    pub(super) fn disguised_program(&mut self) -> Result<()> {
        self.denied("the same through `base64 -d | sh`", FORBIDDEN_PROGRAM, |file| {
            use base64::Engine;
            let line = format!("{FORBIDDEN_PROGRAM} -u {file}");
            format!("echo {} | base64 -d | sh", base64::engine::general_purpose::STANDARD.encode(line))
        })?;
        let script = self.work.join("script.sh");
        std::fs::write(&script, format!("set -e\n{FORBIDDEN_PROGRAM} -u \"$1\"\n"))?;
        let path = script.display().to_string();
        self.denied("the same through a script", FORBIDDEN_PROGRAM, |file| format!("sh {path} {file}"))?;
        let copy = self.work.join("harmless");
        let copied = self.run(&format!("cp {FORBIDDEN_PROGRAM} {0} && chmod 755 {0}", copy.display()))?;
        ensure!(copied.code() == 0 && copy.exists(), "the program could not be copied: {}", copied.err());
        let path = copy.display().to_string();
        self.denied("a copy of it under another name", &path, |file| format!("{path} -u {file}"))
    }

    /// Runs a line that destroys a file, in a session and outside; `program` is what must be denied.
    fn denied(&mut self, what: &str, program: &str, line: impl Fn(&str) -> String) -> Result<()> {
        let from = events::end(&self.sam)?;
        let number = self.lines.len();
        let (inside, outside) =
            (self.precious(&format!("inside-{number}"))?, self.precious(&format!("outside-{number}"))?);
        // The shell must not become the program: its exit status is what a person would see.
        let done = self.run(&format!("{}; echo status=$?", line(&inside.to_string_lossy())))?;
        let control = shell(&line(&outside.to_string_lossy()))?;
        let record = self
            .record_of(from, "the denied program", |entry| entry.is_exec_of(program) && entry.is_denial());
        let status =
            done.out().lines().rev().find_map(|line| line.strip_prefix("status=").map(str::to_owned));
        let held = is_whole(&inside)
            && !outside.exists()
            && status.as_deref().is_some_and(|status| status != "0")
            && record.as_ref().is_ok_and(|entry| self.verdict_is_right(entry));
        let happened = format!(
            "status {}, {}; outside a session: {}",
            status.as_deref().unwrap_or("none"),
            fate(&inside),
            fate(&outside)
        );
        let expected = if self.mode == "lsm" { "refused (EPERM)" } else { "killed at once" };
        self.line(what, expected, happened, held, &records(&record));
        ensure!(control.code() == 0, "the control failed, so the test shows nothing: {}", control.err());
        Ok(())
    }

    /// A file that forbidden programs would destroy.
    fn precious(&self, name: &str) -> Result<PathBuf> {
        let path = self.work.join(name);
        std::fs::write(&path, PRECIOUS)?;
        Ok(path)
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
        let forbidden = Rc::clone(&self.database);
        let allowed = Witness::listen("127.0.0.1", 0)?;
        let open = allowed.address();
        self.connects(
            "a permitted connection by bash",
            &allowed,
            &bash_connects(&open.ip().to_string(), open.port()),
        )?;
        self.refused(
            "a forbidden connection by bash",
            &forbidden,
            &bash_connects(FORBIDDEN_ADDRESS, FORBIDDEN_PORT),
        )?;
        self.refused(
            "a forbidden connection by perl",
            &forbidden,
            &perl_connects(FORBIDDEN_ADDRESS, FORBIDDEN_PORT),
        )
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
        let record = self.record_of(from, "the refused connection", |entry| {
            entry.is_connect_to(witness.address()) && entry.is_denial() && entry.rule() == CONNECT_RULE
        });
        let held = done.code() != 0 && during == 0 && control.code() == 0 && in_all == 1 && record.is_ok();
        let happened = format!("exit {}, {during} arrived; outside a session: {in_all} arrived", done.code());
        self.line(what, "refused", happened, held, &records(&record));
        Ok(())
    }

    /// A shell on a terminal: a denial that it survives, and a policy that changes under it.
    pub(super) fn interactive(&mut self) -> Result<String> {
        let from = events::end(&self.sam)?;
        let mut shell = self.alice.shell(TARGET)?;
        self.entry_line(&shell)?;
        // Printed by the prompt alone, since the typed line has it in two parts.
        shell.type_keys("PS1='rea''dy$ '\r")?;
        shell.expect(0, PROMPT)?;
        let session = self.block_survived(&mut shell, from)?;
        self.pushed_policy(&mut shell)?;
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
    fn entry_line(&mut self, shell: &Terminal) -> Result<()> {
        let shown = shell.expect(0, "grant ends").or_else(|_| shell.expect(0, "sallyport:"))?;
        let line =
            shown.lines().find(|line| line.contains("sallyport:")).unwrap_or_default().trim().to_owned();
        let held = ["recorded", "alice@example.org", "web-1", "policy", &self.mode, "grant ends"]
            .iter()
            .all(|part| line.contains(*part));
        let happened =
            if held { "who, where, policy, mode, end".to_owned() } else { format!("it says: {line}") };
        self.line("entering a shell", "one line says what holds", happened, held, &[]);
        Ok(())
    }

    fn block_survived(&mut self, shell: &mut Terminal, from: u64) -> Result<String> {
        let file = self.precious("interactive")?;
        let mark = shell.mark();
        shell.type_keys(&format!("{FORBIDDEN_PROGRAM} -u {}\r", file.display()))?;
        let shown = shell.expect(mark, "sallyport: blocked")?;
        let mark = shell.mark();
        shell.type_keys("echo alive-$((6*7))\r")?;
        let alive = shell.expect(mark, "alive-42").is_ok();
        let record = self.record_of(from, "the denial in the shell", |entry| {
            entry.is_exec_of(FORBIDDEN_PROGRAM) && entry.is_denial()
        });
        let notice = shown
            .lines()
            .find_map(|line| line.find("sallyport: blocked").map(|at| line[at..].trim().to_owned()))
            .unwrap_or_default();
        let complete = [FORBIDDEN_PROGRAM, FORBIDDEN_RULE, "security@example.org"]
            .iter()
            .all(|part| notice.contains(part));
        let held = is_whole(&file) && alive && complete && record.is_ok();
        let happened = if held {
            "one line said why; the shell went on".to_owned()
        } else {
            format!("{}; shell alive: {alive}; said: {notice}", fate(&file))
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
    fn pushed_policy(&mut self, shell: &mut Terminal) -> Result<()> {
        let (before, after) = (self.marker("before-push"), self.marker("after-push"));
        let mark = shell.mark();
        shell.type_keys(&format!("{LATER_PROGRAM} -s > {}; echo rc-$?\r", before.display()))?;
        let first = status_shown(shell, mark)?;
        let from = events::end(&self.sam)?;
        let bundle = self.facts.tightened.to_string_lossy().into_owned();
        let pushed = self.sam.run(&["policy", "push", &bundle, "-m", "audit"])?;
        let said = format!("{}{}", pushed.out(), pushed.err());
        // A push answers when the sensors enforce it, or after twenty seconds, which a host in software emulation
        // may not keep: then it says so, and the host's own report is waited for.
        ensure!(pushed.code() == 0 || said.contains("has not answered yet"), "the push failed: {said}");
        if pushed.code() != 0 {
            self.wait_for_version(&bundle)?;
        }
        let mark = shell.mark();
        shell.type_keys(&format!("{LATER_PROGRAM} -s > {}; echo rc-$?\r", after.display()))?;
        let second = status_shown(shell, mark)?;
        let record = self.record_of(from, "the denial after the push", |entry| {
            entry.is_exec_of(LATER_PROGRAM) && entry.is_denial() && entry.rule() == LATER_RULE
        });
        let push = self.record_of(from, "the push", |entry| entry.record.kind == Kind::Policy);
        // The shell makes the files; only the program can write into them.
        let wrote = |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| text == "Linux\n");
        let silent = std::fs::read(&after).is_ok_and(|bytes| bytes.is_empty());
        let held = first == "0" && wrote(&before) && second != "0" && silent && record.is_ok();
        let happened = format!(
            "before: status {first}, {}; after: status {second}, {}",
            if wrote(&before) { "it answered" } else { "nothing came" },
            if silent { "nothing came" } else { "it answered" },
        );
        let entries: Vec<&Entry> = records(&push).into_iter().chain(records(&record)).collect();
        let what = "a pushed policy forbids `uname` in the running shell";
        self.line(what, "allowed, then blocked", happened, held, &entries);
        self.out_of_session()
    }

    fn wait_for_version(&self, bundle: &str) -> Result<()> {
        let version = self.sam.run(&["policy", "version", bundle])?.success()?.out().trim().to_owned();
        let alice = self.stage.person("alice")?;
        wait::until("the host to enforce the pushed policy", wait::PATIENCE, || {
            let targets = alice.json(&["targets"])?;
            Ok(targets.iter().any(|target| target["policy_version"] == version.as_str()).then_some(()))
        })
    }

    /// While a session is judged, everything else on the computer is not.
    fn out_of_session(&mut self) -> Result<()> {
        let from = events::end(&self.sam)?;
        let before = self.database.accepted();
        let file = self.precious("untouched")?;
        let done = [
            shell(&format!("{FORBIDDEN_PROGRAM} -u {}", file.display()))?,
            shell(&format!("test $({LATER_PROGRAM} -s) = Linux"))?,
            shell(&bash_connects(FORBIDDEN_ADDRESS, FORBIDDEN_PORT))?,
            shell(&perl_connects(FORBIDDEN_ADDRESS, FORBIDDEN_PORT))?,
        ];
        let codes: Vec<i32> = done.iter().map(Finished::code).collect();
        wait::until("the connections from outside", wait::PATIENCE, || {
            Ok((self.database.accepted() >= before + 2).then_some(()))
        })?;
        // The log must know nothing of them: they are nobody's session. A later command in a session is
        // waited for, so that whatever came before it would have arrived.
        let after = self.run("true")?;
        ensure!(after.code() == 0, "the session after the control failed: {}", after.err());
        let known = events::all(&self.sam, &[])?;
        let strays: Vec<&Entry> =
            known.iter().filter(|entry| entry.index >= from && entry.is_denial()).collect();
        for entry in &strays {
            println!("     a denial that nobody asked for: {:?}", entry.record);
        }
        let held = codes.iter().all(|code| *code == 0) && !file.exists() && strays.is_empty();
        let happened =
            format!("exits {codes:?}, {}, 2 arrived, {} denials in the log", fate(&file), strays.len());
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
        self.alice.run(TARGET, line)
    }

    fn record_of(&self, from: u64, what: &str, wanted: impl Fn(&Entry) -> bool) -> Result<Entry> {
        events::wait_for(&self.sam, from, what, wanted)
    }
}

/// What the shell printed for `echo rc-$?` (the typed line has no digits after it).
fn status_shown(shell: &Terminal, mark: usize) -> Result<String> {
    wait::until("the command's status", wait::PATIENCE, || {
        let shown = shell.since(mark);
        let status = shown.match_indices("rc-").find_map(|(at, _)| {
            let rest = &shown[at + 3..];
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            // Something must follow, or more digits may come.
            (digits > 0 && rest.len() > digits).then(|| rest[..digits].to_owned())
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
    let patience = 10 * wait::slowness();
    format!(
        "bash -c 'exec 3<>/dev/tcp/{address}/{port} && read -t {patience} -r line <&3 && test \"$line\" = witness'"
    )
}

fn perl_connects(address: &str, port: u16) -> String {
    format!(
        "perl -MSocket -e 'socket(my $s, PF_INET, SOCK_STREAM, 0) or exit 2; \
         connect($s, pack_sockaddr_in({port}, inet_aton(\"{address}\"))) or exit 3; \
         my $line = <$s>; exit($line eq \"witness\\n\" ? 0 : 4)'"
    )
}

/// What is in a file that must not be destroyed.
const PRECIOUS: &str = "the only copy\n";

fn is_whole(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text == PRECIOUS)
}

fn fate(path: &Path) -> &'static str {
    match (path.exists(), is_whole(path)) {
        (false, _) => "the file is destroyed",
        (true, true) => "the file is whole",
        (true, false) => "the file is damaged",
    }
}

fn file_is(path: &Path) -> &'static str {
    if path.exists() { "the file is there" } else { "no file" }
}

fn records(record: &Result<Entry>) -> Vec<&Entry> {
    record.as_ref().ok().into_iter().collect()
}
