//! The grammar of the commands that reason on what a policy means: `policy explain`, `diff`, `backtest`, `learn`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};
use sallyport_policy::Principal;

/// What kind of principal somebody is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PersonKind {
    /// A person
    #[default]
    Human,
    /// A CI job
    Ci,
    /// An AI agent
    Agent,
    /// A log-in that did not come through a gateway
    Unbrokered,
}

/// Who acts, as the identity provider would say.
#[derive(Debug, Default, Args)]
pub struct Who {
    /// The person's name, as in `User::"…"`
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// A group they are in; may be given several times
    #[arg(long = "group", value_name = "NAME")]
    pub groups: Vec<String>,
    /// What kind of principal they are
    #[arg(long, value_enum, default_value_t)]
    pub kind: PersonKind,
    /// Issuer of their token
    #[arg(long, value_name = "URL", default_value = "", hide_default_value = true)]
    pub issuer: String,
    /// For agents: whom they act for
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub on_behalf_of: String,
}

impl Who {
    /// As policies see them; none if nobody is named.
    #[must_use]
    pub fn principal(&self) -> Option<Principal> {
        let kind = match self.kind {
            PersonKind::Human => "human",
            PersonKind::Ci => "ci",
            PersonKind::Agent => "agent",
            PersonKind::Unbrokered => "unbrokered",
        };
        let user = self.user.clone().or_else(|| (!self.groups.is_empty()).then(|| "somebody".to_owned()))?;
        Some(Principal {
            user,
            groups: self.groups.clone(),
            kind: kind.to_owned(),
            issuer: self.issuer.clone(),
            on_behalf_of: self.on_behalf_of.clone(),
        })
    }
}

const EXPLAIN_EXAMPLES: &str = "\
Actions:
  open_session                            exec /usr/bin/nmap -- -sS 10.0.0.0/8
  connect 10.0.0.1:5432/tcp               listen 0.0.0.0:80/tcp
  read_file /etc/shadow                   (and the other actions on files, sockets by path or @name)
  system trace                            push_policy, read_evidence, manage_sensors, end_sessions

Exit codes: 0 allowed, 1 denied (or the bundle has faults), others as for all commands.";

/// `policy explain`.
#[derive(Debug, Args)]
#[command(
    after_help = EXPLAIN_EXAMPLES,
    override_usage = "sallyport policy explain [OPTIONS] --user <NAME> --host <HOST> [DIR] <ACTION> [OBJECT] [-- <ARG>...]"
)]
pub struct Explain {
    /// Who acts
    #[command(flatten)]
    pub who: Who,
    /// On which host
    #[arg(long, value_name = "HOST", default_value = "", hide_default_value = true)]
    pub host: String,
    /// As which local user
    #[arg(long = "as", value_name = "USER", default_value = "root")]
    pub local_user: String,
    /// Path of the program that acts
    #[arg(long, value_name = "PATH", default_value = "/usr/bin/bash")]
    pub caller: String,
    /// The file has no name in any directory
    #[arg(long)]
    pub fileless: bool,
    /// The program is set-uid or set-gid
    #[arg(long)]
    pub setuid: bool,
    /// It is done to a process outside of the session
    #[arg(long)]
    pub outside: bool,
    /// Address of the person's client [default: 192.0.2.1, for anywhere]
    #[arg(long, value_name = "ADDRESS")]
    pub client: Option<IpAddr>,
    /// Ask the policy that is in force at the gateway
    #[arg(long, conflicts_with = "version")]
    pub in_force: bool,
    /// Ask this version of the gateway's
    #[arg(long, value_name = "VERSION")]
    pub version: Option<String>,
    /// The bundle's folder [default: .], the action, and what it is done to
    #[arg(required = true, value_name = "[DIR] ACTION [OBJECT]")]
    pub words: Vec<String>,
    /// The program's arguments, without its name
    #[arg(last = true, value_name = "ARG")]
    pub args: Vec<String>,
}

const DIFF_HELP: &str = "\
A policy is a bundle's folder, a version of the gateway's (64 digits), or REF:PATH for a folder in a Git commit.

Exit codes: 0 compared (with --exit-code: and no difference), 1 with --exit-code: they differ.";

/// `policy diff`.
#[derive(Debug, Args)]
#[command(after_help = DIFF_HELP)]
pub struct Diff {
    /// Before and after; with --in-force the second alone
    #[arg(required = true, num_args = 1..=2, value_name = "POLICY", value_hint = ValueHint::DirPath)]
    pub policies: Vec<String>,
    /// Before is what is in force at the gateway
    #[arg(long)]
    pub in_force: bool,
    /// Exit with 1 if they differ
    #[arg(long)]
    pub exit_code: bool,
    /// Only for this person [default: one of each kind that rules can tell apart]
    #[command(flatten)]
    pub who: Who,
    /// Only on this host; may be given several times
    #[arg(long = "host", value_name = "HOST")]
    pub hosts: Vec<String>,
    /// Only as this local user; may be given several times
    #[arg(long = "as", value_name = "USER")]
    pub local_users: Vec<String>,
}

/// Which records.
#[derive(Debug, Args)]
pub struct Evidence {
    /// Only since then: `7d` (ago), a date, or an RFC 3339 time
    #[arg(long, value_name = "WHEN", default_value = "7d")]
    pub since: String,
    /// Read a gateway's state folder (or a copy) instead of asking the gateway
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub state_dir: Option<PathBuf>,
    /// Only of this person
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Only of this session; may be given several times
    #[arg(long = "session", value_name = "ID")]
    pub sessions: Vec<String>,
}

const BACKTEST_HELP: &str = "\
Each decision on the record is made again under the bundle. What the record lacks is never guessed: such decisions are counted
with the reason. Reading other people's records needs `read_evidence`; with --state-dir it happens without the gateway.

Exit codes: 0 done (with --exit-code: and nothing is newly blocked or allowed), 1 with --exit-code: something is.";

/// `policy backtest`.
#[derive(Debug, Args)]
#[command(after_help = BACKTEST_HELP)]
pub struct Backtest {
    /// The candidate bundle's folder, a version of the gateway's, or REF:PATH
    #[arg(default_value = ".", value_name = "POLICY", value_hint = ValueHint::DirPath)]
    pub policy: String,
    /// Which records
    #[command(flatten)]
    pub evidence: Evidence,
    /// Exit with 1 if anything is newly blocked or newly allowed
    #[arg(long)]
    pub exit_code: bool,
    /// Most lines per kind of change
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub lines: usize,
}

const LEARN_HELP: &str = "\
The proposal permits what went ahead, and what would have been denied by default in sessions that are only watched. What a
rule forbade is in comments. Conditions on arguments and on calling programs are for you to add. Put it into a bundle, review
it, and run `sallyport policy check` and `sallyport policy backtest`.";

/// `policy learn`.
#[derive(Debug, Args)]
#[command(after_help = LEARN_HELP)]
pub struct Learn {
    /// The folder of the bundle that the rules are for: its ids and hosts count
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
    /// Which records: name at least a person or a session
    #[command(flatten)]
    pub evidence: Evidence,
    /// Write the rules into this new file instead of printing them
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub out: Option<PathBuf>,
    /// For the members of this group instead of the people who were seen
    #[arg(long, value_name = "NAME")]
    pub for_group: Option<String>,
    /// For every host instead of those where it was seen
    #[arg(long)]
    pub any_host: bool,
    /// Propose what was denied because no rule permits it, too
    #[arg(long)]
    pub include_denied: bool,
    /// So many files of one folder become a pattern
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(2..))]
    pub folder_at: u16,
    /// Ids of rules begin so
    #[arg(long, value_name = "TEXT", default_value = "learned")]
    pub id_prefix: String,
}
