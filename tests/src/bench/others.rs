//! The others on the same computer: auditd with rules for the same calls, and a bpftrace one-liner for them. Both are started here
//! and gone when the value is dropped, also when the run is interrupted.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sallyport_e2e::child::{Running, finish};
use sallyport_e2e::wait;

/// The calls that the loads make.
const CALLS: [&str; 3] = ["execve", "openat", "connect"];
/// Marks our rules.
const KEY: &str = "sallyport-bench";
/// As Debian's own rules have it.
const BACKLOG: u32 = 8192;

fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let finished = finish(Command::new(program).args(arguments), b"", wait::PATIENCE)?;
    Ok(finished.success().with_context(|| format!("{program} {}", arguments.join(" ")))?.out())
}

/// A number of `auditctl -s`.
fn status(name: &str) -> Result<u64> {
    let text = said("auditctl", &["-s"])?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.split(' ').next());
    value
        .and_then(|value| value.parse().ok())
        .with_context(|| format!("`auditctl -s` says nothing of {name}: {text}"))
}

/// auditd with three rules.
pub(crate) struct Auditd {
    daemon: Option<Running>,
    /// `enabled` and `backlog_limit` before.
    before: (u64, u64),
    log: PathBuf,
}

impl Auditd {
    /// Starts it with a configuration and a log in `folder`. Refuses where another one runs.
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        let pid = status("pid").context("the audit subsystem does not answer")?;
        ensure!(pid == 0, "an audit daemon is running already (process {pid}); it is left alone");
        let folder = folder.join("auditd");
        std::fs::create_dir_all(folder.join("plugins.d"))?;
        let log = folder.join("audit.log");
        // Debian's settings, but for the places, and without what it does to a full disk.
        let config = format!(
            "local_events = yes\nwrite_logs = yes\nlog_file = {log}\nlog_group = root\nlog_format = ENRICHED\n\
             flush = INCREMENTAL_ASYNC\nfreq = 50\nmax_log_file = 8\nnum_logs = 5\npriority_boost = 4\n\
             name_format = NONE\nmax_log_file_action = ROTATE\nspace_left = 75\nspace_left_action = IGNORE\n\
             admin_space_left = 50\nadmin_space_left_action = IGNORE\ndisk_full_action = IGNORE\n\
             disk_error_action = IGNORE\nq_depth = 2000\noverflow_action = IGNORE\nmax_restarts = 10\n\
             plugin_dir = {plugins}\nend_of_event_timeout = 2\n",
            log = log.display(),
            plugins = folder.join("plugins.d").display(),
        );
        std::fs::write(folder.join("auditd.conf"), config)?;
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o640);
        std::fs::set_permissions(folder.join("auditd.conf"), private)?;
        let before = (status("enabled")?, status("backlog_limit")?);
        let mut command = Command::new("auditd");
        command.args(["-n", "-c"]).arg(&folder);
        let mut daemon = Running::start("auditd", &mut command, &folder.join("output"))?;
        wait::until("auditd to register", wait::PATIENCE, || {
            daemon.check()?;
            Ok(status("pid").ok().filter(|pid| *pid != 0))
        })?;
        // From here on dropping puts everything back.
        let auditd = Self { daemon: Some(daemon), before, log };
        said("auditctl", &["-b", &BACKLOG.to_string()])?;
        for call in CALLS {
            said(
                "auditctl",
                &["-a", "always,exit", "-F", "arch=b64", "-S", call, "-F", &format!("key={KEY}")],
            )?;
        }
        Ok(auditd)
    }

    /// Fails if nothing was logged: then nothing was compared.
    pub(crate) fn check(&self) -> Result<()> {
        let logged = std::fs::metadata(&self.log).map_or(0, |log| log.len());
        ensure!(logged > 0, "auditd logged nothing");
        Ok(())
    }
}

/// Removes what an earlier run that was killed may have left.
pub(crate) fn remove_rules() {
    let _ = finish(Command::new("auditctl").args(["-D", "-k", KEY]), b"", wait::PATIENCE);
}

impl Drop for Auditd {
    fn drop(&mut self) {
        if wait::interrupted() {
            wait::clean_up();
        }
        remove_rules();
        self.daemon = None;
        let (enabled, backlog) = self.before;
        for arguments in [["-b", &backlog.to_string()], ["-e", &enabled.to_string()]] {
            let _ = finish(Command::new("auditctl").args(arguments), b"", wait::PATIENCE);
        }
    }
}

/// bpftrace with a line for each of the three calls, writing to a file.
pub(crate) struct Bpftrace {
    _program: Running,
    output: PathBuf,
}

impl Bpftrace {
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        let (output, log) = (folder.join("bpftrace.out"), folder.join("bpftrace.log"));
        for file in [&output, &log] {
            let _ = std::fs::remove_file(file);
        }
        let probes: String = CALLS
            .iter()
            .map(|call| {
                let what = if *call == "connect" { "\"\"" } else { "str(args->filename)" };
                format!(
                    "tracepoint:syscalls:sys_enter_{call} {{ printf(\"%d %s {call} %s\\n\", pid, comm, {what}) }} "
                )
            })
            .collect();
        // A mount namespace of its own: tracefs need not be mounted on the host, and stays as it is there.
        let script =
            "[ -e /sys/kernel/tracing/events ] || mount -t tracefs tracefs /sys/kernel/tracing; exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script, "sh", "bpftrace", "-o"]).arg(&output).args(["-e", &probes]);
        let mut program = Running::start("bpftrace", &mut command, &log)?;
        let started = wait::until("bpftrace to see something", wait::PATIENCE, || {
            // Something that it can see.
            let _ = finish(&mut Command::new("/usr/bin/true"), b"", wait::PATIENCE);
            program.check()?;
            let lines = std::fs::read_to_string(&output).unwrap_or_default();
            Ok(lines.contains(" execve ").then_some(()))
        });
        if let Err(error) = started {
            bail!("{error:#}; bpftrace says: {}", std::fs::read_to_string(&log).unwrap_or_default().trim());
        }
        Ok(Self { _program: program, output })
    }

    pub(crate) fn check(&self) -> Result<()> {
        let written = std::fs::metadata(&self.output).map_or(0, |output| output.len());
        ensure!(written > 0, "bpftrace wrote nothing");
        Ok(())
    }
}
