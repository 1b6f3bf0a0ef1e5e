//! The question that a case asks, and its name.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use sallyport_sensor_abi::policy::{file_op, operation};

use super::{CALLER, Case, Person};
use crate::question::{FileOp, GatewayAction, Operation, Principal, Question};

pub(super) fn question(case: &Case, people: &BTreeMap<String, Person>) -> Result<Question, String> {
    let person = people.get(&case.who).ok_or_else(|| {
        format!("`{}` is not in [people]: add [people.{}] with `user` and `groups`", case.who, case.who)
    })?;
    let principal = Principal {
        user: person.user.clone(),
        groups: person.groups.clone(),
        kind: person.kind.clone(),
        issuer: person.issuer.clone(),
        on_behalf_of: person.on_behalf_of.clone(),
    };
    let files = case.file();
    let given = [
        (case.exec.is_some(), "exec"),
        (case.system.is_some(), "system"),
        (case.connect.is_some(), "connect"),
        (case.listen.is_some(), "listen"),
        (case.open_session.is_some(), "open_session"),
        (case.gateway.is_some(), "gateway"),
    ];
    let mut actions: Vec<&str> =
        given.into_iter().filter(|(there, _)| *there).map(|(_, name)| name).collect();
    actions.extend(files.iter().map(|(name, _)| name));
    let [action] = actions.as_slice() else {
        return Err(format!(
            "a case has exactly one of `open_session`, `exec`, `{}`, `system`, `connect`, `listen`, `gateway`",
            file_op::NAMES.join("`, `")
        ));
    };
    belongs(case, action, !files.is_empty())?;
    if let Some(action) = case.gateway {
        let change = case.change.clone().unwrap_or_default();
        return Ok(Question::Gateway { principal, action, change });
    }
    let host = case.host.clone().ok_or("`where` names the host; it is missing")?;
    let local_user = case.local_user.clone().ok_or("`as` names the local user; it is missing")?;
    let fileless = case.fileless.unwrap_or(false);
    let caller = case.caller.clone().unwrap_or_else(|| CALLER.to_owned());
    if let [(name, path)] = files.as_slice() {
        let op = FileOp::from_name(name).ok_or("the action is unknown")?;
        return Ok(Question::File {
            principal,
            host,
            local_user,
            op,
            path: (*path).clone(),
            fileless,
            caller,
        });
    }
    if let Some(path) = &case.exec {
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let args = case.args.clone().unwrap_or_else(|| vec![name]);
        if path.contains('\0') || args.iter().any(|arg| arg.contains('\0')) {
            return Err("paths and arguments cannot hold a zero byte".into());
        }
        let setuid = case.setuid.unwrap_or(false);
        let path = path.clone();
        return Ok(Question::Exec { principal, host, local_user, path, args, fileless, setuid, caller });
    }
    if let Some(name) = &case.system {
        let operation = Operation::from_name(name)
            .ok_or_else(|| format!("`{name}` is no operation; they are {}", operation::NAMES.join(", ")))?;
        let outside = case.outside.unwrap_or(false);
        return Ok(Question::System { principal, host, local_user, operation, outside, caller });
    }
    if let Some(client_address) = case.open_session {
        return Ok(Question::OpenSession { principal, host, local_user, client_address });
    }
    if let Some(at) = &case.listen {
        let (address, port, protocol) = endpoint("listen", at)?;
        return Ok(Question::Listen { principal, host, local_user, address, port, protocol });
    }
    let to = case.connect.as_ref().ok_or("the action is missing")?;
    let (address, port, protocol) = endpoint("connect", to)?;
    Ok(Question::Connect { principal, host, local_user, address, port, protocol })
}

/// What is wrong with a case that says something which its action does not have.
fn belongs(case: &Case, action: &str, file: bool) -> Result<(), String> {
    let exec = action == "exec";
    let in_kernel = exec || file || ["system", "connect", "listen"].contains(&action);
    for (given, name, allowed, to) in [
        (case.args.is_some(), "args", exec, "`exec`"),
        (case.setuid.is_some(), "setuid", exec, "`exec`"),
        (case.fileless.is_some(), "fileless", exec || file, "`exec` and what is done to files"),
        (case.outside.is_some(), "outside", action == "system", "`system`"),
        (
            case.caller.is_some(),
            "caller",
            exec || file || action == "system",
            "`exec`, what is done to files, and `system`",
        ),
        (case.recorded.is_some(), "recorded", in_kernel, "what happens inside a session"),
        (case.host.is_some(), "where", action != "gateway", "everything but `gateway`"),
        (case.local_user.is_some(), "as", action != "gateway", "everything but `gateway`"),
        (
            case.change.is_some(),
            "change",
            case.gateway.is_some_and(GatewayAction::is_about_a_change),
            "`gateway = \"push_policy\"` and `\"approve_policy\"`",
        ),
    ] {
        if given && !allowed {
            return Err(format!("`{name}` belongs to {to}, not to `{action}`"));
        }
    }
    Ok(())
}

/// Address, port and protocol number.
fn endpoint(action: &str, text: &str) -> Result<(IpAddr, u16, u8), String> {
    let (protocol, to) = text.split_once(' ').unwrap_or(("", text));
    let protocol = match protocol {
        "tcp" => 6,
        "udp" => 17,
        "icmp" => 1,
        number => number.parse().map_err(|_| {
            format!("`{action}` is written like \"tcp 192.0.2.1:443\" or \"udp [2001:db8::1]:53\"")
        })?,
    };
    let to: SocketAddr = to.parse().map_err(|_| format!("`{to}` is not an address with a port"))?;
    Ok((to.ip(), to.port(), protocol))
}

pub(super) fn title(who: &str, question: &Question) -> String {
    match question {
        Question::OpenSession { host, local_user, client_address, .. } => {
            format!("{who} opens a session as {local_user} on {host} from {client_address}")
        }
        Question::Exec { host, local_user, path, args, .. } => {
            format!("{who} as {local_user} on {host} runs {path} {args:?}")
        }
        Question::File { host, local_user, op, path, .. } => {
            format!("{who} as {local_user} on {host}: {} {path}", op.name())
        }
        Question::System { host, local_user, operation, outside, .. } => {
            let to = if *outside { " to a process outside" } else { "" };
            format!("{who} as {local_user} on {host} asks for {}{to}", operation.name())
        }
        Question::Listen { host, local_user, address, port, protocol, .. } => {
            let protocol = crate::decide::protocol_name(*protocol);
            format!(
                "{who} as {local_user} on {host} listens at {protocol} {}",
                SocketAddr::new(*address, *port)
            )
        }
        Question::Connect { host, local_user, address, port, protocol, .. } => {
            let protocol = crate::decide::protocol_name(*protocol);
            format!(
                "{who} as {local_user} on {host} connects to {protocol} {}",
                SocketAddr::new(*address, *port)
            )
        }
        Question::Gateway { action, change, .. } if action.is_about_a_change() => {
            format!("{who} asks for {}{change}", action.name())
        }
        Question::Gateway { action, .. } => format!("{who} asks for {}", action.name()),
    }
}
