//! `cargo xtask vm battery`: the battery of bypasses on Debian kernels in QEMU and on this machine, as one table.
//!
//! Every kernel's last whole run is kept in the cache, and docs/battery.md is written from those. The verdict of a row is the
//! battery's own; this only holds the columns together.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{build, kernels, places, qemu, run, vm};

/// `cargo xtask vm battery`
#[derive(clap::Args)]
pub(crate) struct BatteryArguments {
    /// Kernel series; all of them, and this machine, when nothing is given
    #[arg(long = "kernel", value_name = "SERIES")]
    kernels: Vec<String>,
    /// On this machine, in tracepoint mode
    #[arg(long)]
    native: bool,
    /// Only techniques whose group or name contains this (may be given more than once)
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Print the results as JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Leave docs/battery.md, and what is kept for it, as they are: for tests
    #[arg(long)]
    no_page: bool,
    /// Use the programs that were built last
    #[arg(long)]
    no_build: bool,
    /// Give each kernel this long
    #[arg(long, default_value_t = 1500, value_name = "SECONDS")]
    deadline: u64,
    /// Say what each technique's processes say
    #[arg(long)]
    verbose: bool,
}

/// Starts a line with a row as JSON; the battery prints it.
const ROW: &str = "battery-row: ";
/// Starts its last line.
const END: &str = "battery-end: ";
/// What every whole run of a kernel writes.
const PAGE: &str = "docs/battery.md";
/// The column of this machine.
const HERE: &str = "this machine";
const PROGRAM: &str = "sallyport-battery";

/// One kernel's results.
#[derive(Default)]
struct Column {
    /// `6.1`, or `this machine`.
    name: String,
    /// The kernel's package and version, or what the machine says of its kernel.
    kernel: String,
    mode: String,
    /// When it was run, and on which commit.
    run: String,
    rows: Vec<Value>,
    /// How many rows the battery says there are.
    expected: Option<u64>,
}

/// Runs the battery wherever it was asked to.
pub(crate) fn run(arguments: &BatteryArguments) -> Result<()> {
    run::need_root("vm battery", "on this machine it loads programs into the kernel")?;
    crate::setup::packages(crate::setup::Needed::Test)?;
    if !arguments.no_build {
        build::run(&build::BuildArguments::default())?;
    }
    let everything = arguments.kernels.is_empty() && !arguments.native;
    let mut columns = Vec::new();
    let names: Vec<&str> = match everything {
        true => kernels::SERIES.iter().map(|series| series.name).collect(),
        false => arguments.kernels.iter().map(String::as_str).collect(),
    };
    for name in names {
        columns.push(on_kernel(name, arguments)?);
    }
    if everything || arguments.native {
        columns.push(here(arguments)?);
    }
    let run = this_run()?;
    for column in &mut columns {
        column.run.clone_from(&run);
    }
    match arguments.json {
        true => println!("{:#}", Value::from_iter(columns.iter().map(Column::as_json))),
        false => print!("{}", table(&columns)),
    }
    if arguments.only.is_empty() && !arguments.no_page {
        keep(&columns)?;
    }
    let failures = failures(&columns);
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    Ok(())
}

/// What the battery is given on any machine.
fn options(arguments: &BatteryArguments) -> Vec<String> {
    let mut options: Vec<String> = arguments.only.iter().map(|only| format!("--only={only}")).collect();
    if arguments.verbose {
        options.push("--verbose".to_owned());
    }
    options
}

fn on_kernel(name: &str, arguments: &BatteryArguments) -> Result<Column> {
    let series = kernels::series(name)?;
    let kernel = kernels::kernel(series, false)?;
    run::say(format_args!("boot {} in QEMU, software emulation, and run the battery", kernel.version));
    let mut tree = vm::guest(&[PROGRAM], &[])?;
    let mut options = options(arguments);
    options.extend(["--own-machine".to_owned(), "--mode=lsm".to_owned()]);
    tree.file("opt/battery.arguments", 0o644, options.join("\n"));
    let initramfs = places::cache().join(format!("battery-{}.cpio", std::process::id()));
    std::fs::write(&initramfs, [tree.archive()?, vm::modules(&kernel)?].concat())?;
    let mut column = Column { name: name.to_owned(), kernel: kernel.version.clone(), ..Column::default() };
    let machine = qemu::Machine {
        kernel: &kernel.image,
        initramfs: &initramfs,
        kernel_arguments: series.arguments,
        arguments: &["battery".to_owned()],
        deadline: Duration::from_secs(arguments.deadline),
        silence: Duration::from_secs(arguments.deadline),
        log: &places::cache().join(format!("battery-{name}.log")),
    };
    let booted = qemu::boot(&machine, |line| column.take(line));
    let _ = std::fs::remove_file(&initramfs);
    booted.with_context(|| format!("kernel {name}, after {} rows", column.rows.len()))?;
    Ok(column)
}

fn here(arguments: &BatteryArguments) -> Result<Column> {
    run::say("run the battery on this machine, in tracepoint mode");
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut column = Column {
        name: HERE.to_owned(), // What follows the version is the builder's own name for it.
        kernel: release.trim().split('-').next().unwrap_or_default().to_owned(),
        ..Column::default()
    };
    let output = Command::new(places::programs(false).join(PROGRAM))
        .args(options(arguments))
        .arg("--mode=tracepoint")
        .arg("--bundle")
        .arg(places::root().join("tests/bundles/battery"))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("start the battery")?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        column.take(line);
    }
    if !output.status.success() {
        bail!("the battery failed on this machine ({}), after {} rows", output.status, column.rows.len());
    }
    Ok(column)
}

impl Column {
    /// Reads a line of the battery's output; others are passed on.
    fn take(&mut self, line: &str) {
        let parsed = |prefix: &str| {
            line.find(prefix).and_then(|at| serde_json::from_str::<Value>(&line[at + prefix.len()..]).ok())
        };
        if let Some(row) = parsed(ROW) {
            self.rows.push(row);
        } else if let Some(end) = parsed(END) {
            self.mode = end["mode"].as_str().unwrap_or_default().to_owned();
            self.expected = end["rows"].as_u64();
        } else if !line.trim().is_empty() {
            eprintln!("{} | {line}", self.name);
        }
    }

    fn is_whole(&self) -> bool {
        self.expected == Some(self.rows.len() as u64)
    }

    fn as_json(&self) -> Value {
        json!({
            "name": self.name, "kernel": self.kernel, "mode": self.mode, "run": self.run,
            "totals": self.totals(), "rows": self.rows,
        })
    }

    fn from_json(value: &Value) -> Self {
        let rows = value["rows"].as_array().cloned().unwrap_or_default();
        Self {
            name: word(value, "name"),
            kernel: word(value, "kernel"),
            mode: word(value, "mode"),
            run: word(value, "run"),
            expected: Some(rows.len() as u64),
            rows,
        }
    }

    fn row(&self, key: &(String, String)) -> Option<&Value> {
        self.rows.iter().find(|row| key_of(row) == *key)
    }

    /// Rows by verdict, and among the lost and broken ones those that count as failures.
    fn totals(&self) -> BTreeMap<String, usize> {
        let mut totals = BTreeMap::new();
        for row in &self.rows {
            *totals.entry(word(row, "verdict")).or_insert(0) += 1;
            if row["verdict"] == "lost" && row["claimed"] == true {
                *totals.entry("lost, claimed".to_owned()).or_insert(0) += 1;
            }
        }
        totals
    }
}

fn word(row: &Value, key: &str) -> String {
    row[key].as_str().unwrap_or_default().to_owned()
}

fn key_of(row: &Value) -> (String, String) {
    (word(row, "group"), word(row, "name"))
}

/// Why the run failed, if it did.
fn failures(columns: &[Column]) -> Vec<String> {
    let mut failures = Vec::new();
    for column in columns {
        if !column.is_whole() {
            failures.push(format!(
                "{}: {} rows came, {:?} were announced",
                column.name,
                column.rows.len(),
                column.expected
            ));
        }
        for row in &column.rows {
            let (group, name) = key_of(row);
            match (row["verdict"].as_str(), row["claimed"].as_bool()) {
                (Some("lost"), Some(true)) => {
                    failures.push(format!("{}: lost, though claimed: {group}: {name}", column.name));
                }
                (Some("broken"), _) => {
                    let note = word(row, "note");
                    failures.push(format!("{}: a control failed: {group}: {name}: {note}", column.name));
                }
                _ => {}
            }
        }
    }
    failures
}

/// Keeps whole columns, and writes the page from all that are kept.
fn keep(columns: &[Column]) -> Result<()> {
    let folder = places::cache().join("battery");
    std::fs::create_dir_all(&folder)?;
    let file = |name: &str| folder.join(format!("{}.json", name.replace(' ', "-")));
    for column in columns.iter().filter(|column| column.is_whole()) {
        std::fs::write(file(&column.name), column.as_json().to_string())?;
    }
    let mut all = Vec::new();
    for name in kernels::SERIES.iter().map(|series| series.name).chain([HERE]) {
        if let Ok(text) = std::fs::read_to_string(file(name)) {
            all.push(Column::from_json(&serde_json::from_str(&text).context("read what was kept")?));
        }
    }
    let page = places::root().join(PAGE);
    std::fs::create_dir_all(page.parent().context("the page's folder")?)?;
    std::fs::write(&page, table(&all)).context("write the page")?;
    run::say(format_args!("written, with {} kernels: {PAGE}", all.len()));
    Ok(())
}

/// Every technique of any column, in the battery's order.
fn keys(columns: &[Column]) -> Vec<(String, String)> {
    let mut keys = Vec::new();
    for row in columns.iter().flat_map(|column| &column.rows) {
        let key = key_of(row);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// The page: what was run, totals, and a table for each group. Lost rows are as visible as the others.
fn table(columns: &[Column]) -> String {
    let mut page = String::from(INTRODUCTION);
    page.push_str(
        "| column | kernel | mode | blocked | killed | lost | lost, claimed | broken | n/a | run |\n",
    );
    page.push_str("|---|---|---|---|---|---|---|---|---|---|\n");
    for column in columns {
        let totals = column.totals();
        let total = |key: &str| totals.get(key).copied().unwrap_or(0);
        let counts =
            ["blocked", "killed", "lost", "lost, claimed", "broken", "na"].map(|key| total(key).to_string());
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {} |",
            column.name,
            column.kernel,
            column.mode,
            counts.join(" | "),
            column.run
        );
    }
    let keys = keys(columns);
    let mut notes: Vec<String> = Vec::new();
    let mut group = "";
    for key in &keys {
        if key.0 != group {
            group = &key.0;
            let heads: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
            let _ = writeln!(page, "\n## {group}\n\n| technique | {} |", heads.join(" | "));
            let _ = writeln!(page, "|---|{}", "---|".repeat(columns.len()));
        }
        let cells: Vec<String> = columns.iter().map(|column| cell(column.row(key), &mut notes)).collect();
        let _ = writeln!(page, "| {} | {} |", key.1.replace('|', "\\|"), cells.join(" | "));
    }
    if !notes.is_empty() {
        page.push_str("\n## Notes\n\n");
        for (number, note) in (1..).zip(&notes) {
            let _ = writeln!(page, "{number}. {note}");
        }
    }
    page
}

fn cell(row: Option<&Value>, notes: &mut Vec<String>) -> String {
    let Some(row) = row else { return String::new() };
    let verdict = match (row["verdict"].as_str(), row["claimed"].as_bool()) {
        (Some("lost"), Some(true)) => "**LOST**".to_owned(),
        (Some("lost"), _) => "lost, not claimed".to_owned(),
        (Some("broken"), _) => "**control failed**".to_owned(),
        (Some("na"), _) => "n/a".to_owned(),
        (Some(other), Some(false)) => format!("{other}, not claimed"),
        (other, _) => other.unwrap_or_default().to_owned(),
    };
    let note = word(row, "note");
    if note.is_empty() {
        return verdict;
    }
    let number = notes.iter().position(|other| *other == note).unwrap_or_else(|| {
        notes.push(note);
        notes.len() - 1
    });
    format!("{verdict} [{}]", number + 1)
}

/// `2026-01-31 12:00 UTC, 0123abc`
fn this_run() -> Result<String> {
    let date = run::output(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]))?;
    let commit = run::output(
        Command::new("git").current_dir(places::root()).args(["describe", "--always", "--dirty"]),
    );
    Ok(format!("{}, {}", date.trim(), commit.unwrap_or_default().trim()))
}

const INTRODUCTION: &str = "# The battery of bypasses

`cargo xtask vm battery` writes this page. Each row is a way around the sensor, a small program or script in
`tests/battery`, and is tried four ways on each kernel: without the sensor, in an untagged process with the sensor, in a
session that policy permits the thing (but for what is refused whatever policy says), and in one that it forbids it. The
first three must succeed, which shows that the technique works there and that nobody else is touched. What happened is
judged from outside: a file that is there or not, bytes, what a listener heard, whether a process lives. Policies:
`tests/bundles/battery`.

- *blocked*: it did not happen, the call failed. *killed*: it did not happen, the process was killed.
- *lost*: it happened. **LOST**, in capitals: although the threat model (SECURITY.md) claims it; the run then fails.
- *not claimed*: the threat model does not say that it is prevented there; the note says why.
- *n/a*: it does not work on that kernel or machine even without the sensor, or would harm a machine that others use.
- An empty cell: the row is newer than the column, see its run in the table below.

";

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, rows: &[(&str, &str, bool)]) -> Column {
        let mut column = Column { name: name.to_owned(), ..Column::default() };
        for (technique, verdict, claimed) in rows {
            let row = json!({
                "group": "exec", "name": technique, "verdict": verdict, "claimed": claimed, "note": "",
            });
            column.take(&format!("noise {ROW}{row}"));
        }
        column.take(&format!("{END}{}", json!({ "mode": "lsm", "rows": rows.len() })));
        column
    }

    #[test]
    fn only_lost_claims_and_broken_controls_fail_the_run() {
        let fine = column("6.1", &[("a", "blocked", true), ("b", "lost", false), ("c", "na", true)]);
        assert_eq!(failures(&[fine]), Vec::<String>::new());
        let lost = column("6.1", &[("a", "lost", true), ("b", "broken", false)]);
        assert_eq!(failures(&[lost]).len(), 2);
    }

    #[test]
    fn rows_that_did_not_come_fail_the_run() {
        let mut cut = column("6.1", &[("a", "blocked", true), ("b", "blocked", true)]);
        cut.rows.pop();
        assert_eq!(failures(&[cut]).len(), 1);
        assert_eq!(failures(&[Column::default()]).len(), 1, "no last line");
    }

    #[test]
    fn the_table_has_every_column_and_shows_what_is_lost() {
        let page = table(&[
            column("6.1", &[("a", "lost", true)]),
            column("6.12", &[("a", "killed", true), ("b", "na", true)]),
        ]);
        assert!(page.contains("| a | **LOST** | killed |"), "{page}");
        assert!(page.contains("| b |  | n/a |"), "{page}");
    }
}
