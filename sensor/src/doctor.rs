//! `sallyport-sensor doctor`: what this host can enforce and what it cannot, in words or as JSON.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::config::Config;
use crate::credentials::{Credentials, CredentialsError};
use crate::kernel::{KernelFacts, Mode, ModeFacts, probe};
use crate::refusals::{self, Means};

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
        let gateway = credentials.as_ref().map(|credentials| credentials.gateway.clone());
        Self { kernel, chosen, why, gateway, host: credentials.map(|credentials| credentials.host), problems }
    }

    /// Whether sessions can be enforced here.
    #[must_use]
    pub fn can_enforce(&self) -> bool {
        self.chosen.is_some()
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
        let chosen = self.chosen.map_or_else(|| "none".into(), |mode| mode.to_string());
        let _ = writeln!(out, "\nmode             {chosen}: {}", self.why);
        for (name, facts) in [("lsm", &kernel.lsm), ("tracepoint", &kernel.tracepoint)] {
            mode_text(&mut out, name, facts);
        }
        if !self.problems.is_empty() {
            let _ = writeln!(out, "\nto be done");
            list(&mut out, "", &self.problems);
        }
        out
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
