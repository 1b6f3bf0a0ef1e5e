//! The pipelines in the documentation, read so that their command lines can be run: as much of YAML as they use, and no
//! more (maps, lists, plain and quoted scalars, `[a, b]`, `|` blocks). Anything else is an error, not a guess.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

/// Reads a document.
///
/// # Errors
/// It uses something that this does not know.
pub fn parse(text: &str) -> Result<Value> {
    let is_content = |line: &&str| !line.trim_start().starts_with('#') && !line.trim().is_empty();
    let lines: Vec<&str> = text.lines().filter(is_content).collect();
    let (value, rest) = node(&lines, 0)?;
    if let Some(line) = rest.first() {
        bail!("not understood: {line}");
    }
    Ok(value)
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// A map or list whose lines are indented by at least `least`; gives it with what follows.
fn node<'a, 'b>(lines: &'b [&'a str], least: usize) -> Result<(Value, &'b [&'a str])> {
    let Some(first) = lines.first().filter(|line| indent(line) >= least) else {
        return Ok((Value::Null, lines));
    };
    let depth = indent(first);
    if first.trim_start().starts_with("- ") { list(lines, depth) } else { map(lines, depth) }
}

fn list<'a, 'b>(mut lines: &'b [&'a str], depth: usize) -> Result<(Value, &'b [&'a str])> {
    let mut items = Vec::new();
    while let Some(line) = lines.first().filter(|line| indent(line) == depth) {
        let Some(item) = line.trim_start().strip_prefix("- ") else { break };
        let n = 1 + lines[1..].iter().take_while(|line| indent(line) > depth).count();
        let (own, rest) = lines.split_at(n);
        lines = rest;
        if key_of(item).is_none() {
            items.push(scalar(item)?);
            continue;
        }
        // `- key: value` begins a map that goes on below, indented as the key is.
        let head = format!("{}{item}", " ".repeat(depth + 2));
        let mut body: Vec<&str> = vec![&head];
        body.extend(&own[1..]);
        let (value, left) = map(&body, depth + 2)?;
        if let Some(line) = left.first() {
            bail!("not understood: {line}");
        }
        items.push(value);
    }
    Ok((Value::Array(items), lines))
}

fn map<'a, 'b>(mut lines: &'b [&'a str], depth: usize) -> Result<(Value, &'b [&'a str])> {
    let mut entries = Map::new();
    while let Some(line) = lines.first().filter(|line| indent(line) == depth) {
        let (key, value) = key_of(line.trim_start()).with_context(|| format!("not understood: {line}"))?;
        let n = 1 + lines[1..].iter().take_while(|line| indent(line) > depth).count();
        let (own, rest) = lines.split_at(n);
        lines = rest;
        let value = match value {
            "" => {
                let (value, left) = node(&own[1..], depth + 1)?;
                if let Some(line) = left.first() {
                    bail!("not understood: {line}");
                }
                value
            }
            "|" => {
                let at = own.get(1).map_or(0, |line| indent(line));
                let text: Vec<&str> =
                    own[1..].iter().map(|line| line.get(at..).unwrap_or_default()).collect();
                json!(text.join("\n"))
            }
            value if own.len() == 1 => scalar(value)?,
            _ => bail!("not understood: what follows {line}"),
        };
        entries.insert(key.to_owned(), value);
    }
    Ok((Value::Object(entries), lines))
}

/// `key: value`, `key:`; none for a plain scalar.
fn key_of(text: &str) -> Option<(&str, &str)> {
    let (key, value) = text.split_once(':')?;
    let plain = key.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    (plain && (value.is_empty() || value.starts_with(' '))).then(|| (key, value.trim()))
}

fn scalar(text: &str) -> Result<Value> {
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner
            .split(',')
            .map(|item| scalar(item.trim()))
            .collect::<Result<Vec<_>>>()
            .map(Value::Array);
    }
    if let Some(inner) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        return Ok(json!(inner));
    }
    if text.starts_with(['\'', '"', '{', '&', '*', '!', '>', '@', '`']) || text.contains(" #") {
        bail!("not understood: {text}");
    }
    Ok(json!(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pipelines_use() -> Result<()> {
        let text = "# c\non:\n  push:\n    branches: [main, \"v*\"]\njobs:\n  push:\n    steps:\n      - uses: a/b@v5\n      \
                    - name: Sign it\n        env:\n          KEY: ${{ secrets.KEY }}\n        run: |\n          one \\\n            \
                    two\n      - run: three: four\n  other:\n    script:\n      - a --b \"$C\"\n      - d\n";
        let value = parse(text)?;
        assert_eq!(value["on"]["push"]["branches"], json!(["main", "v*"]));
        let steps = &value["jobs"]["push"]["steps"];
        assert_eq!(steps[0]["uses"], "a/b@v5");
        assert_eq!(steps[1]["run"], "one \\\n  two");
        assert_eq!(steps[1]["env"]["KEY"], "${{ secrets.KEY }}");
        assert_eq!(steps[2]["run"], "three: four");
        assert_eq!(value["jobs"]["other"]["script"], json!(["a --b \"$C\"", "d"]));
        for bad in ["a: {b: c}", "a: 'b'", "a: b # c", "a: &x b", "- a\nb: c", "a\n"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        Ok(())
    }
}
