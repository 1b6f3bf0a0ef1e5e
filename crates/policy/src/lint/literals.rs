//! Habits that go wrong: texts and patterns that do not mean what they seem to, rules that can be dodged.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::pst::{Expr, UnaryOp};

use super::leaves::{subject, texts};
use super::{Kind, Report, Sheet};
use crate::expr::{Leaf, parts};
use crate::formula::Piece;
use crate::residual::Action;

/// Folders that are links on systems with a merged /usr, and where they lead.
const MERGED: [(&str, &str); 6] = [
    ("/bin/", "/usr/bin/"),
    ("/sbin/", "/usr/sbin/"),
    ("/lib/", "/usr/lib/"),
    ("/lib64/", "/usr/lib64/"),
    ("/var/run/", "/run/"),
    ("/var/lock/", "/run/lock/"),
];

/// Programs that are links nearly everywhere, and what they lead to as a rule.
const LINKS: [(&str, &str); 11] = [
    ("/usr/bin/sh", "/usr/bin/dash"),
    ("/usr/bin/vi", "/usr/bin/vim.basic"),
    ("/usr/bin/vim", "/usr/bin/vim.basic"),
    ("/usr/bin/view", "/usr/bin/vim.basic"),
    ("/usr/bin/editor", "/usr/bin/nano"),
    ("/usr/bin/pager", "/usr/bin/less"),
    ("/usr/bin/awk", "/usr/bin/mawk"),
    ("/usr/bin/nc", "/usr/bin/nc.openbsd"),
    ("/usr/bin/netcat", "/usr/bin/nc.openbsd"),
    ("/usr/bin/python3", "/usr/bin/python3.11"),
    ("/usr/bin/java", "/usr/lib/jvm/…/bin/java"),
];

/// How a text is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Equals,
    Like,
}

pub(super) fn examine(report: &mut Report, sheet: &Sheet<'_>) {
    let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for leaf in &sheet.leaves {
        if let Some(what) = subject(leaf.expr) {
            named.entry(what.to_owned()).or_default().extend(texts(leaf.expr));
        }
    }
    for leaf in &sheet.leaves {
        let how = match leaf.expr {
            Expr::Like { .. } => How::Like,
            _ => How::Equals,
        };
        let texts = texts(leaf.expr);
        twice(report, sheet, leaf, &texts);
        addresses(report, sheet, leaf, &texts);
        let Some(what) = subject(leaf.expr) else { continue };
        for (at, text) in texts.iter().enumerate() {
            let place = sheet.quoted(leaf, at);
            stars(report, sheet, place, what, text, how);
            if matches!(what, "path" | "caller") {
                paths(report, sheet, leaf, place, text, how, named.get(what));
            }
            if matches!(what, "args" | "command_line") && sheet.rule.forbids && leaf.sense == Some(true) {
                arguments(report, sheet, place, what, text, how, &named);
            }
        }
    }
    only_names(report, sheet);
}

/// The same text twice in one set.
fn twice(report: &mut Report, sheet: &Sheet<'_>, leaf: &Leaf<'_>, texts: &[String]) {
    let mut seen = BTreeSet::new();
    for (at, text) in texts.iter().enumerate() {
        if !seen.insert(text) {
            let message = format!("`{text}` is in this set twice");
            let help = "remove it, or write what was meant instead";
            report.warn(sheet, sheet.quoted(leaf, at), Kind::TwiceInSet, message, help);
        }
    }
}

/// `*` where it means itself, and `like` without one.
fn stars(report: &mut Report, sheet: &Sheet<'_>, place: (usize, usize), what: &str, text: &str, how: How) {
    let subject = if what == "kind" { "principal" } else { "context" };
    if how == How::Equals && text.contains('*') && !matches!(what, "address" | "client_address") {
        let message = format!("`*` in \"{text}\" stands for itself here: `==` and sets compare whole texts");
        let help = format!("write `{subject}.{what} like \"{text}\"`");
        report.warn(sheet, place, Kind::LiteralStar, message, help);
    }
    if how == How::Like && !text.contains('*') {
        let message = format!("the pattern \"{text}\" has no `*`: it matches this one text only");
        let help =
            format!("write `{subject}.{what} == \"{text}\"`, or say with `*` where anything may stand");
        report.warn(sheet, place, Kind::NoStar, message, help);
    }
}

fn paths(
    report: &mut Report,
    sheet: &Sheet<'_>,
    leaf: &Leaf<'_>,
    place: (usize, usize),
    text: &str,
    how: How,
    named: Option<&BTreeSet<String>>,
) {
    let forbids = sheet.rule.forbids;
    let does = if forbids { "forbids" } else { "permits" };
    let sockets = sheet.rule.speaks_of("connect_unix");
    let rooted = text.starts_with('/') || (sockets && text.starts_with('@'));
    if !(rooted || how == How::Like && text.starts_with('*')) {
        let message = format!("no path is like \"{text}\": paths are absolute, so this {does} nothing");
        report.warn(
            sheet,
            place,
            Kind::RelativePath,
            message,
            format!("write \"/{text}\", with all folders"),
        );
        return;
    }
    if text.len() > 1 && text.ends_with('/') {
        let message =
            format!("no path is like \"{text}\": a path does not end in a slash, so this {does} nothing");
        let bare = text.trim_end_matches('/');
        let help = format!("write \"{bare}\" for the folder itself, `like \"{text}*\"` for what lies in it");
        report.warn(sheet, place, Kind::TrailingSlash, message, help);
    }
    if text.contains("//") || text.contains("/../") || text.contains("/./") {
        let message =
            format!("no path is like \"{text}\": rules see paths resolved, without `//`, `.` and `..`");
        report.warn(sheet, place, Kind::UnresolvedPath, message, "write the path as `realpath` prints it");
    }
    let all = named.cloned().unwrap_or_default();
    let merged = MERGED.iter().find(|(link, _)| text.starts_with(link));
    if let (Some((link, to)), true) = (merged, forbids) {
        let resolved = text.replacen(link, to, 1);
        if !all.iter().any(|one| covers(one, &resolved)) {
            let message = format!(
                "`{link}` is a link to `{to}` on most systems, and rules see paths resolved: this forbids nothing there"
            );
            report.warn(sheet, place, Kind::LinkedFolder, message, format!("write \"{resolved}\" as well"));
        }
    }
    let link = LINKS.iter().find(|(link, _)| text == *link);
    if let (Some((link, to)), How::Equals) = (link, how)
        && leaf.sense == Some(true)
    {
        let known = ["/usr/bin/vim.", "/usr/bin/nc.", "/usr/bin/python3."];
        let also = all.contains(*to)
            || known
                .iter()
                .any(|start| to.starts_with(start) && all.iter().any(|one| one.starts_with(start)));
        if !also {
            let message = format!("`{link}` is a link, and rules see where it leads: `{to}`, for example");
            let help = format!("name what `realpath {link}` prints on your hosts");
            report.warn(sheet, place, Kind::LinkedProgram, message, help);
        }
    }
    let before = text.strip_suffix('*').and_then(|rest| rest.chars().next_back());
    let runs = ["exec", "map_code"].iter().any(|action| sheet.rule.speaks_of(action));
    if !forbids
        && runs
        && how == How::Like
        && leaf.sense == Some(true)
        && text.starts_with('/')
        && before.is_some_and(|before| before.is_ascii_alphanumeric())
    {
        let start = text.trim_end_matches('*');
        let message = format!("\"{text}\" also fits what merely begins like that: `{start}-other/file`");
        let help = format!("write \"{start}/*\" for what lies in the folder, `==` for one file");
        report.warn(sheet, place, Kind::OpenEnded, message, help);
    }
}

/// Whether a text, taken as a pattern, fits another.
fn covers(pattern: &str, text: &str) -> bool {
    let mut pieces = Vec::new();
    for (at, part) in pattern.split('*').enumerate() {
        if at > 0 {
            pieces.push(Piece::Any);
        }
        if !part.is_empty() {
            pieces.push(Piece::Bytes(part.as_bytes().to_vec()));
        }
    }
    crate::residual::matches(text.as_bytes(), &pieces)
}

/// Rules on arguments that other arguments dodge.
fn arguments(
    report: &mut Report,
    sheet: &Sheet<'_>,
    place: (usize, usize),
    what: &str,
    text: &str,
    how: How,
    named: &BTreeMap<String, BTreeSet<String>>,
) {
    let args = named.get("args").cloned().unwrap_or_default();
    let short = text.strip_prefix('-').filter(|rest| {
        what == "args" && rest.len() == 2 && rest.bytes().all(|byte| byte.is_ascii_alphabetic())
    });
    if let Some(letters) = short {
        let swapped: String = letters.chars().rev().collect();
        // Whoever names the other order, or a letter by itself, has thought of it.
        let apart = letters.chars().any(|letter| args.contains(&format!("-{letter}")));
        if !args.contains(&format!("-{swapped}")) && !apart {
            let (first, second) = letters.split_at(1);
            let message = format!(
                "\"{text}\" is dodged by `-{swapped}` and by `-{first} -{second}`, which say the same"
            );
            let help = "name every way to say it, as `no-recursive-force-remove` of policies/demo does; or forbid the effect: \
                        the file, the connection";
            report.warn(sheet, place, Kind::DodgedOptions, message, help);
            return;
        }
    }
    // Devices are named as such by programs themselves.
    let path = !text.starts_with("/dev/")
        && text
            .char_indices()
            .any(|(at, c)| c == '/' && text[at + 1..].starts_with(|next: char| next.is_ascii_alphanumeric()));
    if path {
        let message = format!(
            "a path in an argument is dodged by another spelling of \"{text}\": `//`, `../`, a link, a relative path"
        );
        let help = "forbid what is done to the file: `action in [Action::\"read_file\", Action::\"write_file\"]` with `context.path`";
        report.warn(sheet, place, Kind::PathInArguments, message, help);
    } else if what == "command_line" && how == How::Equals {
        let message = "a whole command line is dodged by any further argument, even an empty one".to_owned();
        let help = "test for the arguments that matter: `context.args.contains(\"…\")`";
        report.warn(sheet, place, Kind::WholeCommandLine, message, help);
    } else if what == "command_line" && how == How::Like && !text.starts_with('*') {
        let message =
            format!("\"{text}\" begins with the program's own name, which the caller may choose freely");
        let help =
            "compare `context.path` or `context.name` with the program, and begin the pattern with `* `";
        report.warn(sheet, place, Kind::OwnNameInArguments, message, help);
    }
}

/// Ranges that do not mean what they seem to.
fn addresses(report: &mut Report, sheet: &Sheet<'_>, leaf: &Leaf<'_>, texts: &[String]) {
    fn literals(expr: &Expr, inside: bool, out: &mut Vec<bool>) {
        if let Expr::Literal(
            cedar_policy::pst::Literal::String(_) | cedar_policy::pst::Literal::EntityUID(_),
        ) = expr
        {
            out.push(inside);
        }
        let ip = matches!(expr, Expr::UnaryOp { op: UnaryOp::Ip, .. });
        for part in parts(expr) {
            literals(part, ip, out);
        }
    }
    let mut is_ip = Vec::new();
    literals(leaf.expr, false, &mut is_ip);
    for (at, text) in texts.iter().enumerate().filter(|(at, _)| is_ip.get(*at) == Some(&true)) {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, length.parse::<u32>().ok()),
            None => (text.as_str(), None),
        };
        let Ok(address) = address.parse::<std::net::IpAddr>() else { continue };
        let place = sheet.quoted(leaf, at);
        let (bits, full) = match address {
            std::net::IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32),
            std::net::IpAddr::V6(v6) => (u128::from(v6), 128),
        };
        if let Some(length) = length.filter(|length| *length < full) {
            let host = bits & (1u128.checked_shl(full - length).unwrap_or(0).wrapping_sub(1));
            if host != 0 {
                let network = bits - host;
                let network = match address {
                    std::net::IpAddr::V4(_) => std::net::IpAddr::from((network as u32).to_be_bytes()),
                    std::net::IpAddr::V6(_) => std::net::IpAddr::from(network.to_be_bytes()),
                };
                let message =
                    format!("\"{text}\" names one address and means the whole range {network}/{length}");
                let help = format!("write ip(\"{network}/{length}\"), or ip(\"{address}\") for the one");
                report.warn(sheet, place, Kind::HostBits, message, help);
            }
        }
        let connects = sheet.rule.speaks_of(Action::Connect.name());
        if connects && address.is_unspecified() && length.is_none() {
            let message = format!(
                "nothing connects to {address}: it is judged as loopback, which is where Linux connects it to"
            );
            report.warn(
                sheet,
                place,
                Kind::UnspecifiedAddress,
                message,
                "write `context.address.isLoopback()`",
            );
        }
        if let std::net::IpAddr::V6(v6) = address
            && let Some(v4) = v6.to_ipv4_mapped()
        {
            let message = format!("no address is {address}: IPv4-mapped ones are judged as IPv4");
            report.warn(sheet, place, Kind::MappedAddress, message, format!("write ip(\"{v4}\")"));
        }
    }
}

/// The part by which a permit of programs asks for their name, if it does not ask for their path.
pub(super) fn by_name<'a, 'b>(sheet: &'b Sheet<'a>) -> Option<&'b Leaf<'a>> {
    if sheet.rule.forbids || sheet.rule.wide || !sheet.rule.speaks_of(Action::Exec.name()) {
        return None;
    }
    let by_path = sheet.leaves.iter().any(|leaf| subject(leaf.expr) == Some("path"));
    let name =
        sheet.leaves.iter().find(|leaf| leaf.sense == Some(true) && subject(leaf.expr) == Some("name"));
    name.filter(|_| !by_path)
}

/// Permits of programs by name alone.
fn only_names(report: &mut Report, sheet: &Sheet<'_>) {
    if let Some(leaf) = by_name(sheet) {
        let name = texts(leaf.expr).first().cloned().unwrap_or_default();
        let message =
            format!("a file of any folder can be called `{name}`: a permit by name permits every program");
        let help = format!("name the path: `context.path == \"/usr/bin/{name}\"`");
        report.warn(sheet, sheet.leaf(leaf), Kind::NameOnlyPermit, message, help);
    }
}
