//! A page about a bundle for people who do not read Cedar: who may do what where, and why not.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use cedar_policy::pst;

use crate::bundle::{Bundle, INCLUDE};
use crate::load::Policy;
use crate::placement::{Enforcement, Placement};
use crate::question::OnViolation;
use crate::residual::OPEN_SESSION;
use crate::rule::Rule;

/// The page's parts: heading, what is said below it, and the actions in it.
const PARTS: [(&str, &str, &[&str]); 7] = [
    ("Sessions", "Who may open a session where, and as whom.", &[OPEN_SESSION]),
    ("Programs", "What may run in a session.", &["exec", "map_code"]),
    (
        "Files",
        "What may be done to files and folders, beside the host's own permissions.",
        &["read_file", "write_file", "create_file", "delete_file", "rename_file", "link_file", "change_file"],
    ),
    ("Connections", "What a session may connect to.", &["connect", "connect_unix"]),
    ("Listening", "Where a session may listen.", &["listen"]),
    ("The system", "What a session may ask of the kernel.", &["system"]),
    ("Sallyport itself", "Who may change this policy, read the evidence, and end sessions.", &[]),
];

impl Policy {
    /// The page, in Markdown. `bundle` is the one that this policy was loaded from.
    pub fn page(&self, bundle: &Bundle) -> String {
        let mut page = String::new();
        let placement: BTreeMap<String, Placement> =
            self.placement().into_iter().map(|placement| (placement.rule.id.clone(), placement)).collect();
        // Writing to a string cannot fail.
        let _ = write!(
            page,
            "# Policy `{}`\n\nWhat no rule permits is denied, and a forbid always beats a permit. Questions: {}.\n\n\
             Version `{}`, {} rules.\n\n",
            self.name(),
            text(&self.default_rule().contact),
            self.version(),
            self.inner.rules.len()
        );
        self.inventory(&mut page);
        let mut told: Vec<&str> = Vec::new();
        for (heading, about, actions) in PARTS {
            let belongs = |rule: &&Rule| {
                !told.contains(&rule.info.id.as_str())
                    && (actions.is_empty() || actions.iter().any(|action| rule.speaks_of(action)))
            };
            let rules: Vec<&Rule> = self.inner.rules.values().filter(belongs).collect();
            if rules.is_empty() {
                continue;
            }
            let _ = write!(page, "## {heading}\n\n{about}\n\n");
            for forbids in [false, true] {
                let mut these: Vec<&Rule> =
                    rules.iter().copied().filter(|rule| rule.forbids == forbids).collect();
                these.sort_by_key(|rule| {
                    (rule.info.file.starts_with(INCLUDE), &rule.info.file, rule.info.line)
                });
                if these.is_empty() {
                    continue;
                }
                let _ = write!(page, "### {}\n\n", if forbids { "Forbidden" } else { "Permitted" });
                for rule in these {
                    told.push(&rule.info.id);
                    self.rule(&mut page, bundle, rule, placement.get(&rule.info.id));
                }
            }
        }
        page
    }

    /// Groups, host groups and hosts.
    fn inventory(&self, page: &mut String) {
        let known = &self.inner.known;
        let of = |kind: &str| {
            let these = known.uids.iter().filter(|uid| uid.type_name().to_string() == kind);
            these.map(|uid| code(uid.id().unescaped())).collect::<Vec<_>>()
        };
        for (kind, name) in
            [("Group", "Groups of people"), ("HostGroup", "Groups of hosts"), ("Host", "Hosts")]
        {
            let all = of(kind);
            if !all.is_empty() {
                let _ = writeln!(page, "- {name}: {}", all.join(", "));
            }
        }
        page.push('\n');
    }

    fn rule(&self, page: &mut String, bundle: &Bundle, rule: &Rule, placement: Option<&Placement>) {
        let info = &rule.info;
        let _ = writeln!(page, "#### {}\n", text(&info.id));
        if !info.reason.is_empty() {
            let _ = writeln!(page, "{}\n", sentence(&info.reason));
        }
        let verb = match (rule.forbids, rule.monitored) {
            (false, _) => "May",
            (true, false) => "May not",
            (true, true) => "Is only watched when they",
        };
        let _ = writeln!(
            page,
            "- {verb}: {} {}: {}",
            who(&rule.body.principal),
            place(&rule.body.resource),
            actions(&rule.body.action)
        );
        if let Some(limit) = rule.session_limit {
            let minutes = limit.as_secs().div_ceil(60);
            let _ = writeln!(page, "- For at most {} h {:02} min", minutes / 60, minutes % 60);
        }
        match info.on_violation {
            OnViolation::Block => {}
            OnViolation::Kill => page.push_str("- The process that tries is killed\n"),
            OnViolation::EndSession => page.push_str("- The session ends\n"),
        }
        if rule.quiet {
            page.push_str("- Is not recorded\n");
        }
        if rule.forbids {
            let _ = writeln!(page, "- Whom to ask: {}", text(&info.contact));
        }
        if let (true, Some(placement)) = (rule.forbids, placement) {
            let _ = writeln!(page, "- Enforced {}", enforced(placement));
        }
        if let Some(text) = source(bundle, rule) {
            let _ = write!(
                page,
                "\n<details><summary>Rule, {}:{}</summary>\n\n```cedar\n{text}\n```\n\n</details>\n",
                info.file, info.line
            );
        }
        page.push('\n');
    }
}

fn who(principal: &pst::PrincipalConstraint) -> String {
    let entity = |slot: &pst::EntityOrSlot| match slot {
        pst::EntityOrSlot::Entity(uid) if uid.ty.to_string() == "Group" => {
            format!("people in {}", code(&uid.eid))
        }
        pst::EntityOrSlot::Entity(uid) => code(&uid.eid),
        pst::EntityOrSlot::Slot(_) => "somebody".to_owned(),
    };
    match principal {
        pst::PrincipalConstraint::Eq(one)
        | pst::PrincipalConstraint::In(one)
        | pst::PrincipalConstraint::IsIn(_, one) => entity(one),
        _ => "everybody".to_owned(),
    }
}

fn place(resource: &pst::ResourceConstraint) -> String {
    let entity = |slot: &pst::EntityOrSlot| match slot {
        pst::EntityOrSlot::Entity(uid) if uid.ty.to_string() == "HostGroup" => {
            format!("on hosts in {}", code(&uid.eid))
        }
        pst::EntityOrSlot::Entity(uid) => format!("on {}", code(&uid.eid)),
        pst::EntityOrSlot::Slot(_) => "somewhere".to_owned(),
    };
    match resource {
        pst::ResourceConstraint::Eq(one)
        | pst::ResourceConstraint::In(one)
        | pst::ResourceConstraint::IsIn(_, one) => entity(one),
        _ => "everywhere".to_owned(),
    }
}

fn actions(action: &pst::ActionConstraint) -> String {
    match action {
        pst::ActionConstraint::Any => "everything".to_owned(),
        pst::ActionConstraint::Eq(uid) => code(&uid.eid),
        pst::ActionConstraint::In(uids) => {
            uids.iter().map(|uid| code(&uid.eid)).collect::<Vec<_>>().join(", ")
        }
    }
}

/// Where a forbid is enforced, each way once.
fn enforced(placement: &Placement) -> String {
    let mut ways: Vec<String> = Vec::new();
    for place in &placement.places {
        let way = if place.lsm == place.tracepoint || place.lsm == Enforcement::Gateway {
            place.lsm.to_string()
        } else {
            format!("{} (without BPF LSM: {})", place.lsm, place.tracepoint)
        };
        if !ways.contains(&way) {
            ways.push(way);
        }
    }
    ways.join("; ")
}

/// The rule as it is written, without annotations that were told already.
fn source(bundle: &Bundle, rule: &Rule) -> Option<String> {
    let file = std::str::from_utf8(bundle.file(&rule.info.file)?).ok()?;
    let chunk = crate::source::cut(file).into_iter().find(|chunk| chunk.offset == rule.offset)?;
    let effect = crate::source::parts(&chunk).effect.0 - chunk.offset;
    // A fence in it would end the block.
    Some(crate::diagnostic::printable_lines(&chunk.text[effect..]).replace("```", "'''"))
}

/// With a capital and a full stop.
fn sentence(reason: &str) -> String {
    let reason = text(reason);
    let mut chars = reason.chars();
    let first: String = chars.next().map(|c| c.to_uppercase().collect()).unwrap_or_default();
    let rest = chars.as_str();
    let stop = if rest.ends_with(['.', '!', '?']) { "" } else { "." };
    format!("{first}{rest}{stop}")
}

fn code(name: &str) -> String {
    format!("`{}`", crate::diagnostic::printable(name).replace('`', "'"))
}

/// Text that Markdown and HTML take as it is.
fn text(text: &str) -> String {
    let mut out = String::new();
    for c in crate::diagnostic::printable(text).chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '#' | '|' | '~' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}
