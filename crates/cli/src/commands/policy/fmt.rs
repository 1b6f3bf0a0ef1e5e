//! `policy fmt`: lays Cedar files out, or says which are not.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::{
    args::Fmt,
    failure::Failure,
    gateway::Context,
    out::Look,
    text::{safe, safe_lines},
};

/// Longest files, in lines, of which the lines that differ are sought out: the work is the product of both.
const MAX_DIFF: usize = 3_000;
/// Lines around a difference.
const AROUND: usize = 2;

pub(super) fn fmt(context: &Context, args: &Fmt) -> Result<(), Failure> {
    let out = context.out;
    let mut files = Vec::new();
    collect(&args.path, &mut files)?;
    files.sort();
    let (mut changed, mut faults) = (Vec::new(), Vec::new());
    for file in &files {
        let name = file.display().to_string();
        let before = fs::read_to_string(file)
            .map_err(|err| Failure::failed(format!("cannot read `{name}`")).because(&err))?;
        match sallyport_policy::format(&name, &before) {
            Err(found) => faults.extend(found.faults),
            Ok(after) if after == before => {}
            Ok(after) => {
                if args.check {
                    if !out.json {
                        out.line(out.look(Look::Bold, &safe(&name, 300)))?;
                        out.lines(diff(context, &before, &after))?;
                    }
                } else {
                    fs::write(file, after)
                        .map_err(|err| Failure::failed(format!("cannot write `{name}`")).because(&err))?;
                }
                changed.push(name);
            }
        }
    }
    let passed = faults.is_empty() && (changed.is_empty() || !args.check);
    if out.json {
        out.json(&json!({ "ok": passed, "files": files.len(), "changed": changed, "faults": faults }))?;
    } else {
        for fault in &faults {
            out.line(safe_lines(&fault.to_string(), 20))?;
        }
        let done = if args.check { "would change" } else { "laid out" };
        let sum = match changed.len() {
            0 if !faults.is_empty() => {
                format!("{} of {} files cannot be laid out.", faults.len(), files.len())
            }
            0 => format!("{} files, nothing to change.", files.len()),
            n => format!("{n} of {} files {done}.", files.len()),
        };
        out.line(sum)?;
    }
    if passed { Ok(()) } else { Err(Failure::said()) }
}

/// The Cedar files of a folder, without hidden ones; or the one that was named. What a bundle includes is as its authors
/// laid it out: in its folder `include` nothing is changed.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let cannot = |err: std::io::Error| {
        Failure::failed(format!("cannot read `{}`", path.display()))
            .because(&err)
            .next("name a bundle's folder, or a `.cedar` file")
    };
    if !fs::metadata(path).map_err(cannot)?.is_dir() {
        files.push(path.to_path_buf());
        return Ok(());
    }
    let bundle = path.join("bundle.toml").is_file();
    for entry in fs::read_dir(path).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let (kind, name) = (entry.file_type().map_err(cannot)?, entry.file_name());
        let name = name.to_string_lossy();
        if kind.is_dir() && !name.starts_with('.') && !(bundle && name == "include") {
            collect(&entry.path(), files)?;
        } else if kind.is_file() && name.ends_with(".cedar") && !name.starts_with('.') {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// The lines that differ, with a few around them.
fn diff(context: &Context, before: &str, after: &str) -> Vec<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    if old.len() > MAX_DIFF || new.len() > MAX_DIFF {
        return vec![format!("  {} lines become {}", old.len(), new.len())];
    }
    // Length of the longest common part of what follows each pair of lines.
    let width = new.len() + 1;
    let mut common = vec![0u16; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i * width + j] = if old[i] == new[j] {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let mut lines: Vec<(char, &str)> = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push((' ', old[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len()
            || (i < old.len() && common[(i + 1) * width + j] >= common[i * width + j + 1])
        {
            lines.push(('-', old[i]));
            i += 1;
        } else {
            lines.push(('+', new[j]));
            j += 1;
        }
    }
    let near = |at: usize| {
        let from = at.saturating_sub(AROUND);
        lines[from..lines.len().min(at + AROUND + 1)].iter().any(|(sign, _)| *sign != ' ')
    };
    let mut shown = Vec::new();
    let mut gap = false;
    for (at, (sign, line)) in lines.iter().enumerate() {
        if !near(at) {
            gap = true;
            continue;
        }
        if gap && !shown.is_empty() {
            shown.push("  …".to_owned());
        }
        gap = false;
        let text = format!("  {sign}{}", safe(&line.replace('\t', "    "), 500));
        shown.push(match sign {
            '-' => context.out.look(Look::Red, &text),
            '+' => context.out.look(Look::Green, &text),
            _ => text,
        });
    }
    shown
}
