//! `policy init`: a bundle to begin with, which checks, tests and is laid out without a word.

use std::{collections::BTreeSet, fs, path::Path};

use sallyport_policy::{pack_file, packs};
use serde_json::{Value, json};

use crate::{args::Init, failure::Failure, gateway::Context};

/// The files that are written, with what stands for the person's choices.
const FILES: [(&str, &str); 7] = [
    ("bundle.toml", include_str!("starter/bundle.toml")),
    ("sessions.cedar", include_str!("starter/sessions.cedar")),
    ("programs.cedar", include_str!("starter/programs.cedar")),
    ("connections.cedar", include_str!("starter/connections.cedar")),
    ("gateway.cedar", include_str!("starter/gateway.cedar")),
    ("tests/first.toml", include_str!("starter/cases.toml")),
    (".github/workflows/policy.yml", include_str!("starter/workflow.yml")),
];
/// The pack that every bundle here includes.
const BASE: &str = "base";
/// The host group that the starting rules are about.
const HOSTS: &str = "servers";

pub(super) fn init(context: &Context, args: &Init) -> Result<(), Failure> {
    let dir = &args.dir;
    let name = args.name.clone().unwrap_or_else(|| name_of(dir));
    choices(args, &name)?;
    let included = included(args)?;
    let cannot =
        |err: std::io::Error| Failure::failed(format!("cannot write into `{}`", dir.display())).because(&err);
    fs::create_dir_all(dir).map_err(cannot)?;
    let taken = fs::read_dir(dir).map_err(cannot)?.flatten().any(|entry| entry.file_name() != ".git");
    if taken {
        return Err(Failure::usage(format!("`{}` is not empty", dir.display()))
            .next("name a folder that is empty or missing; nothing is overwritten"));
    }
    let mut written = Vec::new();
    let mut write = |path: &str, content: &str| -> Result<(), Failure> {
        let target = dir.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(cannot)?;
        }
        fs::write(&target, content).map_err(cannot)?;
        written.push(path.to_owned());
        Ok(())
    };
    for (path, template) in FILES {
        let text = filled(template, args, &name, &included);
        let text = if path.ends_with(".cedar") {
            sallyport_policy::format(path, &text)
                .map_err(|faults| Failure::failed("cannot lay out what is to be written").because(&faults))?
        } else {
            text
        };
        write(path, &text)?;
    }
    write("entities.json", &entities(args, &included))?;
    written.sort();
    let out = context.out;
    if out.json {
        out.json(&json!({ "name": name, "dir": dir, "files": written, "includes": included }))?;
        return Ok(());
    }
    let shown = dir.display();
    out.line(format!("Wrote {} files into {shown}. Next:", written.len()))?;
    for (command, what) in [
        ("check", "what is wrong with it, and where each rule is enforced"),
        ("test", "ask it the questions of tests/first.toml"),
        ("push", "put it in force everywhere"),
    ] {
        out.line(format!("  sallyport policy {command} {shown}    # {what}"))?;
    }
    Ok(())
}

/// A bundle's name made of its folder's.
fn name_of(dir: &Path) -> String {
    let absolute = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_path_buf());
    let name = absolute.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let name: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '-' })
        .take(64)
        .collect();
    if name.is_empty() { "policy".to_owned() } else { name }
}

/// What is written into quotes must not end them.
fn choices(args: &Init, name: &str) -> Result<(), Failure> {
    let one = |what: &str, text: &str| {
        let odd = text.is_empty()
            || text.len() > 200
            || text.chars().any(|c| c.is_control() || "\"\\'@".contains(c));
        // Mail addresses are usual, so `@` is fine there.
        let odd =
            odd && !(what == "--contact" && !text.is_empty() && !text.contains(['"', '\\', '\n', '\r']));
        if odd {
            return Err(Failure::usage(format!(
                "{what}: `{}` cannot be written into a policy",
                text.escape_debug()
            ))
            .next("use letters, digits, spaces and plain punctuation"));
        }
        Ok(())
    };
    one("--name", name)?;
    one("--group", &args.group)?;
    one("--admins", &args.admins)?;
    one("--contact", &args.contact)?;
    args.hosts.iter().try_for_each(|host| one("--host", host))?;
    args.users.iter().try_for_each(|user| one("--user", user))?;
    if args.group == args.admins {
        return Err(Failure::usage("--group and --admins are the same group")
            .next("whoever works on hosts should not be who changes the policy; name two groups"));
    }
    Ok(())
}

/// The packs to include, each once.
fn included(args: &Init) -> Result<Vec<String>, Failure> {
    let known: Vec<&str> = packs().into_iter().map(|(name, _)| name).collect();
    let mut all = vec![BASE.to_owned()];
    for pack in &args.packs {
        if !known.contains(&pack.as_str()) {
            return Err(Failure::usage(format!("there is no pack `{}`", pack.escape_debug()))
                .next(format!("the packs are {}", known.join(", "))));
        }
        if !all.contains(pack) {
            all.push(pack.clone());
        }
    }
    Ok(all)
}

fn filled(template: &str, args: &Init, name: &str, included: &[String]) -> String {
    let quoted = |all: &mut dyn Iterator<Item = String>| {
        all.map(|one| format!("\"{one}\"")).collect::<Vec<_>>().join(", ")
    };
    let users = quoted(&mut args.users.iter().cloned());
    let packs = quoted(&mut included.iter().map(|pack| format!("pack:{pack}")));
    // Choices hold no `@`, so none can stand for another; but a contact may, and comes last.
    template
        .replace("@NAME@", name)
        .replace("@PACKS@", &packs)
        .replace("@GROUP@", &args.group)
        .replace("@ADMINS@", &args.admins)
        .replace("@HOSTS@", HOSTS)
        .replace("@HOST@", &args.hosts[0])
        .replace("@USERS@", &users)
        .replace("@USER@", &args.users[0])
        .replace("@CONTACT@", &args.contact)
}

/// Groups, the host group and its hosts. Groups that a pack lists are not listed again; hosts are in the host groups of
/// the packs, too, so that these speak of them.
fn entities(args: &Init, included: &[String]) -> String {
    let mut listed: BTreeSet<(String, String)> = BTreeSet::new();
    for pack in included {
        let Some(content) = pack_file(pack, "entities.json") else { continue };
        let all: Vec<Value> = serde_json::from_slice(content).unwrap_or_default();
        for entity in all {
            let text = |key: &str| entity["uid"][key].as_str().unwrap_or_default().to_owned();
            listed.insert((text("type"), text("id")));
        }
    }
    let mut lines = Vec::new();
    let mut list = |kind: &str, id: &str, parents: Vec<Value>| {
        if !listed.contains(&(kind.to_owned(), id.to_owned())) {
            lines.push(
                json!({ "uid": { "type": kind, "id": id }, "attrs": {}, "parents": parents }).to_string(),
            );
        }
    };
    list("Group", &args.group, vec![]);
    list("Group", &args.admins, vec![]);
    list("HostGroup", HOSTS, vec![]);
    let groups: Vec<Value> = std::iter::once(HOSTS.to_owned())
        .chain(listed.iter().filter(|(kind, _)| kind == "HostGroup").map(|(_, id)| id.clone()))
        .map(|id| json!({ "type": "HostGroup", "id": id }))
        .collect();
    let hosts: BTreeSet<&String> = args.hosts.iter().collect();
    for host in hosts {
        list("Host", host, groups.clone());
    }
    format!("[\n  {}\n]\n", lines.join(",\n  "))
}
