//! `sallyport-sensor doctor`: what this host can enforce and what it cannot, in words or as JSON.

mod findings;

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::config::Config;
use crate::credentials::{Credentials, CredentialsError};
use crate::kernel::{KernelFacts, Mode, ModeFacts, PinnedState, inspect, probe};
use crate::refusals::{self, Means};
use crate::status::Status;

pub use findings::{Finding, Level};

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The kernel.
    pub kernel: KernelFacts,
    /// The mode that `run` will use, if it can run at all.
    pub chosen: Option<Mode>,
    /// Why that one.
    pub why: String,
    /// The gateway this host has joined.
    pub gateway: Option<String>,
    /// This host's name there.
    pub host: Option<String>,
    /// What is loaded in the kernel now.
    pub pinned: Option<PinnedState>,
    /// What the running sensor says of itself.
    pub status: Option<Status>,
    /// What it all means, worst first.
    pub findings: Vec<Finding>,
    /// What stands in the way of running now.
    pub problems: Vec<String>,
}

impl Report {
    /// Looks at the host. Changes nothing.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let mut kernel = probe();
        for (mode, facts) in [(Mode::Lsm, &mut kernel.lsm), (Mode::Tracepoint, &mut kernel.tracepoint)] {
            facts.limits.extend(refusals::limits(&Means::of(mode)));
        }
        let mut problems = Vec::new();
        let (chosen, why) = choose(&kernel, config.mode);
        if chosen.is_none() {
            problems.push(why.clone());
        }
        let credentials = match Credentials::load(&config.state_dir) {
            Ok(credentials) => Some(credentials),
            Err(error @ CredentialsError::NotJoined) => {
                problems.push(error.to_string());
                None
            }
            Err(error) => {
                problems.push(crate::uplink::chain(&error));
                None
            }
        };
        if !config.sessions.sftp_server.iter().any(|path| path.is_file()) {
            problems.push("no sftp-server was found, so sftp and newer scp will be refused".into());
        }
        let pinned = if kernel.root {
            inspect(&config.pin_dir).unwrap_or_else(|error| {
                problems.push(format!(
                    "what is loaded in the kernel cannot be looked at: {}",
                    crate::uplink::chain(&error)
                ));
                None
            })
        } else {
            None
        };
        let status = Status::read(&config.run_dir);
        let findings = findings::all(config, &kernel, chosen, pinned.as_ref(), status.as_ref());
        let gateway = credentials.as_ref().map(|credentials| credentials.gateway.clone());
        let host = credentials.map(|credentials| credentials.host);
        Self { kernel, chosen, why, gateway, host, pinned, status, findings, problems }
    }

    /// Whether sessions can be enforced here.
    #[must_use]
    pub fn can_enforce(&self) -> bool {
        self.chosen.is_some()
    }

    /// Whether something is wrong that somebody must mend now.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(|finding| finding.level == Level::Error)
    }

    /// For people.
    #[must_use]
    pub fn text(&self, config_path: &Path) -> String {
        let mut out = String::new();
        let kernel = &self.kernel;
        let lsms = if kernel.lsms.is_empty() { "unknown".into() } else { kernel.lsms.join(", ") };
        let cgroup =
            kernel.cgroup2.as_ref().map_or_else(|| "not mounted".into(), |path| path.display().to_string());
        // Writing into a String cannot fail.
        let _ = writeln!(out, "configuration    {}", config_path.display());
        let _ = writeln!(out, "gateway          {}", self.gateway.as_deref().unwrap_or("not joined"));
        let _ = writeln!(out, "host             {}", self.host.as_deref().unwrap_or("-"));
        let _ = writeln!(out, "kernel           {}", kernel.release);
        let _ = writeln!(out, "BTF              {}", if kernel.btf { "yes" } else { "no" });
        let _ = writeln!(out, "security modules {lsms}");
        let _ = writeln!(out, "lockdown         {}", kernel.lockdown.as_deref().unwrap_or("unknown"));
        let _ = writeln!(out, "cgroup2          {cgroup}");
        let audit = if kernel.audit { "yes" } else { "no: log-ins outside of the gateway cannot be seen" };
        let _ = writeln!(out, "audit login uids {audit}");
        let chosen = self.chosen.map_or_else(|| "none".into(), |mode| mode.to_string());
        let _ = writeln!(out, "\nmode             {chosen}: {}", self.why);
        for (name, facts) in [("lsm", &kernel.lsm), ("tracepoint", &kernel.tracepoint)] {
            mode_text(&mut out, name, facts);
        }
        if let Some(pinned) = &self.pinned {
            pinned_text(&mut out, pinned);
        }
        let _ = writeln!(out, "\nfindings");
        for finding in &self.findings {
            let level = match finding.level {
                Level::Error => "ERROR",
                Level::Warning => "warning",
                Level::Note => "note",
            };
            let Finding { id, what, why, todo, .. } = finding;
            let _ = writeln!(out, "  {level} [{id}] {what}\n      why:   {why}\n      to do: {todo}");
        }
        if !self.problems.is_empty() {
            let _ = writeln!(out, "\nto be done");
            list(&mut out, "", &self.problems);
        }
        out
    }
}

fn pinned_text(out: &mut String, pinned: &PinnedState) {
    let mode = pinned.mode.map_or_else(|| "unknown".into(), |mode| mode.to_string());
    let sensor = if pinned.in_charge { "a sensor is in charge" } else { "no sensor is running" };
    let _ = writeln!(out, "\nloaded           {mode} mode, maps of version {}; {sensor}", pinned.abi);
    let seconds = |ns: u64| ns / 1_000_000_000;
    let grace = pinned.grace_ns.map_or_else(|| "never".into(), |ns| format!("after {} s", seconds(ns)));
    if let Some(silent) = pinned.silent_ns {
        let _ = writeln!(out, "sign of life     {} s ago; sessions fail closed {grace}", seconds(silent));
    }
    for fill in &pinned.fill {
        let _ = writeln!(out, "  {:<24} {:>9} of {}", fill.what, fill.used, fill.limit);
    }
    for events in &pinned.events {
        let _ = writeln!(
            out,
            "  {:<24} {:>9} seen, {} lost",
            format!("{} events", events.kind),
            events.counters.seen,
            events.counters.lost
        );
    }
}

fn mode_text(out: &mut String, name: &str, facts: &ModeFacts) {
    let _ = writeln!(out, "\n{name} mode: {}", if facts.works { "works here" } else { "does not work here" });
    list(out, "why not: ", &facts.obstacles);
    list(out, "limit: ", &facts.limits);
}

fn list(out: &mut String, what: &str, lines: &[String]) {
    for line in lines {
        let _ = writeln!(out, "  - {what}{line}");
    }
}

fn choose(kernel: &KernelFacts, wanted: Option<Mode>) -> (Option<Mode>, String) {
    let of = |mode| match mode {
        Mode::Lsm => &kernel.lsm,
        Mode::Tracepoint => &kernel.tracepoint,
    };
    match wanted {
        Some(mode) if of(mode).works => (Some(mode), "set in the configuration".into()),
        Some(mode) => (
            None,
            format!(
                "{mode} is set in the configuration but does not work: {}",
                of(mode).obstacles.join("; ")
            ),
        ),
        None => match kernel.mode {
            Some(Mode::Lsm) => {
                (Some(Mode::Lsm), "BPF LSM works: calls are denied before anything happens".into())
            }
            Some(Mode::Tracepoint) => {
                let why = kernel.lsm.obstacles.join("; ");
                (Some(Mode::Tracepoint), format!("BPF LSM does not work here ({why})"))
            }
            None => (None, kernel.tracepoint.obstacles.join("; ")),
        },
    }
}
