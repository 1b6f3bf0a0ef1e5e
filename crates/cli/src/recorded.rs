//! Decisions on the record, as policy can judge them again: who, where, what, and what came of it.
//!
//! A record's own form is [`sallyport_evidence::record::Record`]; this reads what a decision depends on, without copying, since
//! a million of them are read at once.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use sallyport_policy::{Act, Args, FileOp, GatewayAction, Operation, Principal};
use serde::Deserialize;

type Text<'a> = Cow<'a, str>;

/// A record, as far as decisions go.
#[derive(Debug, Deserialize)]
pub struct Recorded<'a> {
    /// Wall clock, nanoseconds since the Unix epoch.
    pub time_ns: u64,
    #[serde(borrow, default)]
    host: Option<Text<'a>>,
    #[serde(borrow, default)]
    identity: Option<Identity<'a>>,
    #[serde(borrow, default)]
    session: Option<Session<'a>>,
    /// What was decided; none: nothing was.
    #[serde(borrow, default)]
    pub decision: Option<Decision<'a>>,
    #[serde(borrow, default)]
    process: Option<Process<'a>>,
    #[serde(borrow, default)]
    endpoint: Option<Endpoint<'a>>,
    #[serde(borrow, default)]
    file: Option<File<'a>>,
    #[serde(borrow, default)]
    system: Option<System<'a>>,
}

#[derive(Debug, Deserialize)]
struct Identity<'a> {
    #[serde(borrow)]
    user: Text<'a>,
    #[serde(borrow, default)]
    groups: Vec<Text<'a>>,
    #[serde(borrow, default)]
    kind: Text<'a>,
    #[serde(borrow, default)]
    issuer: Text<'a>,
    #[serde(borrow, default)]
    on_behalf_of: Text<'a>,
}

#[derive(Debug, Deserialize)]
struct Session<'a> {
    #[serde(borrow, default)]
    id: Text<'a>,
    #[serde(borrow, default)]
    local_user: Text<'a>,
    #[serde(borrow, default)]
    client: Text<'a>,
}

/// What was decided.
#[derive(Debug, Deserialize)]
pub struct Decision<'a> {
    /// The Cedar action.
    #[serde(borrow)]
    pub action: Text<'a>,
    /// `allowed`, `blocked`, `killed` or `observed`.
    #[serde(borrow)]
    pub outcome: Text<'a>,
    /// Id of the rule; empty: none permits it.
    #[serde(borrow, default)]
    pub rule: Text<'a>,
    #[serde(borrow, default)]
    reason: Text<'a>,
}

#[derive(Debug, Deserialize)]
struct Process<'a> {
    #[serde(borrow, default)]
    path: Text<'a>,
    #[serde(default)]
    path_cut: bool,
    #[serde(borrow, default)]
    args: Vec<Text<'a>>,
    #[serde(default)]
    args_cut_from: Option<u32>,
    #[serde(borrow, default)]
    comm: Text<'a>,
    #[serde(default)]
    fileless: bool,
    #[serde(default)]
    setuid: bool,
    #[serde(default)]
    other_name: bool,
}

#[derive(Debug, Deserialize)]
struct Endpoint<'a> {
    #[serde(borrow, default)]
    address: Text<'a>,
    #[serde(default)]
    port: u16,
    #[serde(borrow, default)]
    protocol: Text<'a>,
    #[serde(borrow, default)]
    op: Text<'a>,
}

#[derive(Debug, Deserialize)]
struct File<'a> {
    #[serde(borrow, default)]
    op: Text<'a>,
    #[serde(borrow, default)]
    path: Text<'a>,
    #[serde(default)]
    path_cut: bool,
    #[serde(default)]
    fileless: bool,
    #[serde(default)]
    other_name: bool,
}

#[derive(Debug, Deserialize)]
struct System<'a> {
    #[serde(borrow, default)]
    operation: Text<'a>,
    #[serde(default)]
    outside: bool,
}

/// What was decided about.
#[derive(Debug)]
pub enum Subject<'a> {
    /// Something in a session.
    Act(Act<'a>),
    /// A session was to be opened from there.
    Session(IpAddr),
    /// Something was to be done to Sallyport.
    Gateway(GatewayAction),
}

/// Why a decision cannot be judged again.
pub mod lacking {
    /// Nobody is named.
    pub const IDENTITY: &str = "the record does not say who acted";
    /// Host or local user.
    pub const PLACE: &str = "the record does not say on which host or as whom";
    /// The path.
    pub const PATH: &str = "the path on the record is incomplete";
    /// The endpoint.
    pub const ENDPOINT: &str = "the address on the record is incomplete";
    /// The kernel could not.
    pub const UNJUDGED: &str = "the sensor could not judge it, so it was denied";
    /// Changes of policy.
    pub const CHANGE: &str = "the record does not have all that rules on changes of policy look at";
    /// A newer version's record.
    pub const ACTION: &str = "it is of an action that this version does not know";
}

impl<'a> Recorded<'a> {
    /// Parses a record.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// Whether a decision of a policy is on it. Forks are counted, not judged.
    #[must_use]
    pub fn is_decided(&self) -> bool {
        self.decision.as_ref().is_some_and(|decision| decision.action != "fork")
    }

    /// Who acted.
    #[must_use]
    pub fn principal(&self) -> Option<Principal> {
        let identity = self.identity.as_ref()?;
        Some(Principal {
            user: identity.user.to_string(),
            groups: identity.groups.iter().map(ToString::to_string).collect(),
            kind: identity.kind.to_string(),
            issuer: identity.issuer.to_string(),
            on_behalf_of: identity.on_behalf_of.to_string(),
        })
    }

    /// Whether it is this person.
    #[must_use]
    pub fn is_of(&self, principal: &Principal) -> bool {
        self.identity.as_ref().is_some_and(|identity| {
            identity.user == principal.user
                && identity.kind == principal.kind
                && identity.issuer == principal.issuer
                && identity.on_behalf_of == principal.on_behalf_of
                && identity.groups.len() == principal.groups.len()
                && identity.groups.iter().zip(&principal.groups).all(|(a, b)| a == b)
        })
    }

    /// The person's name; empty: nobody is named.
    #[must_use]
    pub fn user(&self) -> &str {
        self.identity.as_ref().map_or("", |identity| &identity.user)
    }

    /// The host; empty: none is named.
    #[must_use]
    pub fn host(&self) -> &str {
        self.host.as_deref().unwrap_or_default()
    }

    /// The local user; empty: none is named.
    #[must_use]
    pub fn local_user(&self) -> &str {
        self.session.as_ref().map_or("", |session| &session.local_user)
    }

    /// The session's id; empty: there is none.
    #[must_use]
    pub fn session(&self) -> &str {
        self.session.as_ref().map_or("", |session| &session.id)
    }

    /// The object of the decision, in words; empty: it has none.
    #[must_use]
    pub fn object(&self) -> String {
        let action = self.decision.as_ref().map_or("", |decision| &decision.action);
        if let (Some(endpoint), "connect" | "listen") = (&self.endpoint, action) {
            return format!("{} port {}/{}", endpoint.address, endpoint.port, endpoint.protocol);
        }
        if let Some(system) = &self.system {
            return system.operation.to_string();
        }
        if let Some(file) = &self.file {
            return file.path.to_string();
        }
        match (&self.process, action) {
            (Some(process), "exec") => {
                let args = process.args.iter().skip(1).map(|arg| format!(" {arg}"));
                std::iter::once(process.path.to_string()).chain(args).collect()
            }
            _ => String::new(),
        }
    }

    /// What was decided about, or why it cannot be judged again. `args` takes the arguments.
    ///
    /// # Errors
    /// Something is not on the record.
    pub fn subject<'s>(&'s self, args: &'s mut String) -> Result<Subject<'s>, &'static str> {
        let decision = self.decision.as_ref().ok_or(lacking::ACTION)?;
        if self.identity.is_none() {
            return Err(lacking::IDENTITY);
        }
        if decision.rule.is_empty() && decision.reason.starts_with("it could not be judged") {
            return Err(lacking::UNJUDGED);
        }
        if let Some(action) = GatewayAction::from_name(&decision.action) {
            return if action.is_about_a_change() {
                Err(lacking::CHANGE)
            } else {
                Ok(Subject::Gateway(action))
            };
        }
        if self.host().is_empty() || self.local_user().is_empty() {
            return Err(lacking::PLACE);
        }
        if decision.action == "open_session" {
            let client = self.session.as_ref().map_or("", |session| &session.client);
            let address = client.parse::<SocketAddr>().map(|at| at.ip()).or_else(|_| client.parse());
            return address.map(Subject::Session).map_err(|_| lacking::ENDPOINT);
        }
        let act = match &*decision.action {
            "exec" => self.exec(args)?,
            "connect" | "listen" => self.endpoint(decision.action == "listen")?,
            "system" => {
                let system = self.system.as_ref().ok_or(lacking::ACTION)?;
                let operation = Operation::from_name(&system.operation).ok_or(lacking::ACTION)?;
                Act::System { operation, outside: system.outside, caller: self.caller() }
            }
            action => {
                let op = FileOp::from_name(action).ok_or(lacking::ACTION)?;
                let file = self.file.as_ref().filter(|file| file.op == action).ok_or(lacking::ACTION)?;
                if file.path_cut {
                    return Err(lacking::PATH);
                }
                let (path, fileless, other_name) = (&*file.path, file.fileless, file.other_name);
                Act::File { op, path, fileless, caller: self.caller(), other_name }
            }
        };
        Ok(Subject::Act(act))
    }

    fn exec<'s>(&'s self, joined: &'s mut String) -> Result<Act<'s>, &'static str> {
        let process = self.process.as_ref().ok_or(lacking::PATH)?;
        if process.path_cut || process.path.is_empty() {
            return Err(lacking::PATH);
        }
        joined.clear();
        for (at, arg) in process.args.iter().enumerate() {
            if at > 0 {
                joined.push('\0');
            }
            joined.push_str(arg);
        }
        let args = match process.args_cut_from {
            Some(total) => Args::Beginning(joined, total),
            // There is always one, so none at all means that they are not known.
            None if process.args.is_empty() => Args::Beginning("", 0),
            None => Args::All(joined),
        };
        // What started it is not on the record.
        let (fileless, setuid, other_name) = (process.fileless, process.setuid, process.other_name);
        Ok(Act::Exec { path: &process.path, args, fileless, setuid, caller: None, other_name })
    }

    /// The acting program, where it is sure which one that was: an exec that was not recorded leaves the record with the path
    /// of the program before, and the name of the one after.
    fn caller(&self) -> Option<&str> {
        let process = self.process.as_ref()?;
        let name = process.path.rsplit('/').next().filter(|name| !name.is_empty())?;
        // The kernel keeps 15 bytes.
        let kept = name.get(..15.min(name.len()))?;
        let sure = !process.path_cut && !process.other_name && process.comm == kept;
        sure.then_some(&*process.path)
    }

    fn endpoint(&self, listens: bool) -> Result<Act<'_>, &'static str> {
        let endpoint = self.endpoint.as_ref().ok_or(lacking::ENDPOINT)?;
        let protocol = match &*endpoint.protocol {
            "tcp" => 6,
            "udp" => 17,
            "icmp" => 1,
            number => number.parse().map_err(|_| lacking::ENDPOINT)?,
        };
        if endpoint.op == "socket" && protocol == 1 {
            return Ok(Act::IcmpSocket);
        }
        let address = endpoint.address.parse().map_err(|_| lacking::ENDPOINT)?;
        Ok(if listens {
            Act::Listen(address, endpoint.port, protocol)
        } else {
            Act::Connect(address, endpoint.port, protocol)
        })
    }
}
