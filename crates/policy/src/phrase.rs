//! Questions in words, as people type and read them: `exec /usr/bin/nmap -- -sS`, `connect 10.0.0.1:5432/tcp`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use sallyport_sensor_abi::policy::{file_op, operation};

use crate::change::Change;
use crate::decide::protocol_name;
use crate::question::{FileOp, GatewayAction, Operation, Principal, Question};

/// What can be said of an action beside its object. What is left out is as it usually is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Path of the program that acts; left out: the shell's.
    pub caller: Option<String>,
    /// The file has no name in any directory.
    pub fileless: bool,
    /// The program is set-uid or set-gid.
    pub setuid: bool,
    /// It is done to a process outside of the session.
    pub outside: bool,
    /// Where the client connects from; left out: 192.0.2.1, an address that stands for anywhere.
    pub client: Option<IpAddr>,
    /// A program's arguments, without `argv[0]`.
    pub args: Vec<String>,
}

/// The calling program, if none is named.
const CALLER: &str = "/usr/bin/bash";
/// A client's address, if none is given (RFC 5737).
const ANYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

impl Question {
    /// Whether a word names an action.
    pub fn is_action(word: &str) -> bool {
        matches!(word, "open_session" | "exec" | "system" | "connect" | "listen")
            || FileOp::from_name(word).is_some()
            || GatewayAction::from_name(word).is_some()
    }

    /// The question that these words ask. The error is a sentence.
    pub fn asked(
        principal: Principal,
        host: &str,
        local_user: &str,
        words: &[String],
        details: Details,
    ) -> Result<Self, String> {
        let (action, objects) = words.split_first().ok_or("the action is missing")?;
        let Details { caller, fileless, setuid, outside, client, args } = details;
        let (host, local_user) = (host.to_owned(), local_user.to_owned());
        let caller = caller.unwrap_or_else(|| CALLER.to_owned());
        let takes = |what: &str| match objects {
            [one] => Ok(one.clone()),
            [] => Err(format!("`{action}` takes {what}; it is missing")),
            _ => Err(format!("`{action}` takes {what} alone; arguments of a program follow after `--`")),
        };
        let nothing = || match objects {
            [] => Ok(()),
            _ => Err(format!("`{action}` takes nothing more, not `{}`", objects.join(" "))),
        };
        if action != "exec" && (setuid || !args.is_empty()) {
            return Err(format!("set-uid and arguments belong to `exec`, not to `{action}`"));
        }
        if action != "system" && outside {
            return Err(format!("outside belongs to `system`, not to `{action}`"));
        }
        if let Some(action) = GatewayAction::from_name(action) {
            nothing()?;
            return Ok(Self::Gateway { principal, action, change: Change::default() });
        }
        if host.is_empty() {
            return Err(format!("`{action}` happens on a host: name it"));
        }
        if let Some(op) = FileOp::from_name(action) {
            let path = takes("a path")?;
            return Ok(Self::File { principal, host, local_user, op, path, fileless, caller });
        }
        Ok(match action.as_str() {
            "open_session" => {
                nothing()?;
                let client_address = client.unwrap_or(ANYWHERE);
                Self::OpenSession { principal, host, local_user, client_address }
            }
            "exec" => {
                let path = takes("the path of a program")?;
                let name = path.rsplit('/').next().unwrap_or_default().to_owned();
                let args: Vec<String> = std::iter::once(name).chain(args).collect();
                if path.contains('\0') || args.iter().any(|arg| arg.contains('\0')) {
                    return Err("paths and arguments cannot hold a zero byte".into());
                }
                Self::Exec { principal, host, local_user, path, args, fileless, setuid, caller }
            }
            "system" => {
                let name = takes("an operation")?;
                let operation = Operation::from_name(&name).ok_or_else(|| {
                    format!("`{name}` is no operation; they are {}", operation::NAMES.join(", "))
                })?;
                Self::System { principal, host, local_user, operation, outside, caller }
            }
            "connect" => {
                let (address, port, protocol) = endpoint(&takes("ADDRESS:PORT/PROTOCOL")?)?;
                Self::Connect { principal, host, local_user, address, port, protocol }
            }
            "listen" => {
                let (address, port, protocol) = endpoint(&takes("ADDRESS:PORT/PROTOCOL")?)?;
                Self::Listen { principal, host, local_user, address, port, protocol }
            }
            other => {
                return Err(format!(
                    "`{other}` is no action; they are open_session, exec, {}, system, connect, listen, {}",
                    file_op::NAMES.join(", "),
                    GatewayAction::ALL.map(GatewayAction::name).join(", ")
                ));
            }
        })
    }
}

/// `10.0.0.1:5432/tcp`, `[::1]:53/udp`, `10.0.0.1/icmp`; without a protocol TCP.
fn endpoint(text: &str) -> Result<(IpAddr, u16, u8), String> {
    let fault = || {
        format!(
            "`{text}` is no endpoint; write it like `10.0.0.1:5432/tcp`, `[::1]:53/udp` or `10.0.0.1/icmp`"
        )
    };
    let (at, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => 6,
        "udp" => 17,
        "icmp" => 1,
        number => number.parse().map_err(|_| fault())?,
    };
    let at = at.trim_start_matches('[');
    let (address, port) =
        match at.rsplit_once("]:").or_else(|| at.rsplit_once(':').filter(|(a, _)| !a.contains(':'))) {
            Some((address, port)) => (address, port.parse().map_err(|_| fault())?),
            None if matches!(protocol, 6 | 17) => return Err(fault()),
            None => (at.trim_end_matches(']'), 0),
        };
    Ok((address.parse().map_err(|_| fault())?, port, protocol))
}

impl fmt::Display for Question {
    /// As [`Question::asked`] takes it; options as `sallyport policy explain` has them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.action())?;
        let option = |f: &mut fmt::Formatter<'_>, there: bool, name: &str| {
            if there { write!(f, " {name}") } else { Ok(()) }
        };
        let by = |f: &mut fmt::Formatter<'_>, caller: &str| {
            if caller == CALLER { Ok(()) } else { write!(f, " --caller {}", quoted(caller)) }
        };
        match self {
            Self::OpenSession { client_address, .. } => {
                option(f, *client_address != ANYWHERE, &format!("--client {client_address}"))
            }
            Self::Exec { path, args, fileless, setuid, caller, .. } => {
                write!(f, " {}", quoted(path))?;
                option(f, *fileless, "--fileless")?;
                option(f, *setuid, "--setuid")?;
                by(f, caller)?;
                let name = path.rsplit('/').next().unwrap_or_default();
                match args.split_first() {
                    Some((first, rest)) if first == name => {
                        if !rest.is_empty() {
                            write!(f, " --")?;
                        }
                        rest.iter().try_for_each(|arg| write!(f, " {}", quoted(arg)))
                    }
                    _ => {
                        let all: Vec<String> = args.iter().map(|arg| quoted(arg)).collect();
                        write!(f, " (argv: {})", all.join(" "))
                    }
                }
            }
            Self::File { path, fileless, caller, .. } => {
                write!(f, " {}", quoted(path))?;
                option(f, *fileless, "--fileless")?;
                by(f, caller)
            }
            Self::System { operation, outside, caller, .. } => {
                write!(f, " {}", operation.name())?;
                option(f, *outside, "--outside")?;
                by(f, caller)
            }
            Self::Connect { address, port, protocol, .. } | Self::Listen { address, port, protocol, .. } => {
                let protocol = protocol_name(*protocol);
                match address {
                    IpAddr::V4(address) => write!(f, " {address}:{port}/{protocol}"),
                    IpAddr::V6(address) => write!(f, " [{address}]:{port}/{protocol}"),
                }
            }
            Self::Gateway { .. } => Ok(()),
        }
    }
}

/// A word as a shell takes it; what cannot be shown is escaped.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/@._-+:,=%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.escape_debug().to_string().replace("\\'", "'\\''").replace("\\\"", "\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(words: &[&str], details: Details) -> Result<Question, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Question::asked(Principal::default(), "web-1", "root", &words, details)
    }

    #[test]
    fn what_is_printed_is_what_is_asked() {
        for words in [
            &["open_session"][..],
            &["exec", "/usr/bin/id"],
            &["read_file", "/etc/shadow"],
            &["connect_unix", "@x"],
            &["system", "trace"],
            &["connect", "10.0.0.1:5432/tcp"],
            &["connect", "[fd00::1]:53/udp"],
            &["listen", "0.0.0.0:80/132"],
            &["push_policy"],
        ] {
            let question = asked(words, Details::default()).expect("a question");
            assert_eq!(question.to_string(), words.join(" "));
        }
        let details = Details {
            setuid: true,
            caller: Some("/x y".into()),
            args: vec!["-s".into(), "it's".into()],
            ..Details::default()
        };
        let question = asked(&["exec", "/bin/rm"], details).expect("a question");
        assert_eq!(question.to_string(), "exec /bin/rm --setuid --caller '/x y' -- -s 'it'\\''s'");
        let Question::Connect { port: 0, protocol: 1, .. } =
            asked(&["connect", "10.0.0.1/icmp"], Details::default()).expect("a question")
        else {
            panic!("ICMP has no port");
        };
    }

    #[test]
    fn what_makes_no_question_is_told() {
        for (words, part) in [
            (&["fly"][..], "no action"),
            (&["exec"], "missing"),
            (&["exec", "/bin/a", "-r"], "after `--`"),
            (&["system", "dance"], "no operation"),
            (&["connect", "10.0.0.1"], "no endpoint"),
            (&["connect", "host:1"], "no endpoint"),
            (&["open_session", "x"], "nothing more"),
        ] {
            let error = asked(words, Details::default()).expect_err("no question");
            assert!(error.contains(part), "{words:?}: {error}");
        }
    }
}
