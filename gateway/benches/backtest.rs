//! A million stored records, made by the recorder's own store, and `sallyport policy backtest` over them.
//!
//! Started by `cargo xtask bench backtest`. Exit status 3: measured, and the target is missed.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use sallyport_evidence::note::Signer;
use sallyport_evidence::record::{
    Decision, Endpoint, FileAction, Identity, Kind, Outcome, Process, Record, Session, Source,
};
use sallyport_gateway::recorder::store::{self, NewLeaf, Store};

/// What a million records may take, in seconds, on two cores.
const TARGET: f64 = 30.0;
/// Records that are made durable at once.
const BATCH: u64 = 5_000;
/// Sessions, each of one person on one host.
const SESSIONS: u64 = 2_000;

#[derive(Parser)]
struct Arguments {
    /// How many records
    #[arg(long, default_value_t = 1_000_000)]
    records: u64,
    /// The command
    #[arg(long)]
    program: PathBuf,
    /// The candidate bundle
    #[arg(long)]
    policy: PathBuf,
    /// Write the figures as Markdown as well
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// One JSON object, on standard output
    #[arg(long)]
    json: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let folder = tempfile::tempdir()?;
    let begun = Instant::now();
    let bytes = fill(&folder.path().join(store::FILE), arguments.records)?;
    eprintln!(
        "{} records, {} bytes each, stored in {:.1} s",
        arguments.records,
        bytes / arguments.records.max(1),
        begun.elapsed().as_secs_f64()
    );
    let begun = Instant::now();
    let ran = Command::new(&arguments.program)
        .args(["--json", "policy", "backtest", "--since", "7d", "--state-dir"])
        .args([folder.path(), &arguments.policy])
        .output()
        .context("start sallyport")?;
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(ran.status.success(), "the backtest failed: {}", String::from_utf8_lossy(&ran.stderr));
    let report: serde_json::Value = serde_json::from_slice(&ran.stdout)?;
    let decisions = report["decisions"].as_u64().unwrap_or(0);
    let unsaid: u64 = report["cannot_be_said"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|line| line["count"].as_u64())
        .sum();
    if decisions != arguments.records {
        bail!("{decisions} decisions were made again, not {}", arguments.records);
    }
    let rate = decisions as f64 / seconds;
    let changes = report["changes"].as_array().map_or(0, Vec::len);
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    if arguments.json {
        let figure = serde_json::json!({
            "records": decisions, "seconds": seconds, "records_per_second": rate, "cores": cores,
            "cannot_be_said": unsaid, "changes": changes, "tables": report["tables"],
        });
        println!("{figure}");
    }
    let text = format!(
        "| records | bytes each | cores | seconds | records/s | lines of changes | cannot be said | tables made |\n\
         |---|---|---|---|---|---|---|---|\n\
         | {decisions} | {} | {cores} | {seconds:.1} | {rate:.0} | {changes} | {unsaid} | {} |\n",
        bytes / arguments.records.max(1),
        report["tables"]
    );
    eprintln!("{text}");
    if let Some(file) = &arguments.markdown {
        std::fs::write(file, text)?;
    }
    let missed = seconds * 1_000_000.0 / decisions.max(1) as f64 > TARGET;
    Ok(ExitCode::from(if missed { 3 } else { 0 }))
}

/// Stores records; returns their bytes.
fn fill(path: &Path, records: u64) -> Result<u64> {
    let signer = Signer::new("bench", &[7; 32]).context("a signer")?;
    let mut store = Store::open(path, signer.verifier())?;
    let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
    let mut bytes = 0;
    for from in (0..records).step_by(usize::try_from(BATCH)?) {
        let mut leaves = Vec::new();
        for number in from..records.min(from + BATCH) {
            let record = record(number, now).to_bytes()?;
            bytes += record.len() as u64;
            leaves.push(NewLeaf { head: serde_json::from_slice(&record)?, bytes: record });
        }
        store.commit(&leaves, now, |_| None)?;
    }
    Ok(bytes)
}

/// One decision: programs, files, connections of people in sessions.
fn record(number: u64, now: u64) -> Record {
    // Numbers that look like chance and are the same in each run.
    let chance = |n: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31) / 7 % n;
    let session = number / 40 % SESSIONS;
    let host = format!("web-{}", session % 50);
    let boot = "0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0";
    let programs =
        ["/usr/bin/ls", "/usr/bin/git", "/usr/bin/nmap", "/usr/bin/psql", "/opt/tool/run", "/tmp/x"];
    let program = programs[chance(6) as usize];
    let mut record = Record {
        source: Source { maker: host.clone(), boot: boot.into(), seq: number + 1 },
        time_ns: now,
        host: Some(host),
        identity: Some(Identity {
            user: format!("person-{}@example.org", session % 400),
            groups: vec![["engineers", "ops", "dba"][(session % 3) as usize].into(), "staff".into()],
            kind: "human".into(),
            issuer: "https://id.example.org".into(),
            subject: format!("auth0|{session:024}"),
            method: "certificate".into(),
            ..Identity::default()
        }),
        session: Some(Session {
            id: format!("01930000-0000-7000-8000-{session:012}"),
            channel: format!("01930000-0000-7000-9000-{session:012}"),
            local_user: ["root", "www-data"][(session % 2) as usize].into(),
            client: "198.51.100.7:50122".into(),
        }),
        process: Some(Process {
            exec_id: format!("{boot}/{}/{}", 1_000_000_000 + number, number % 32_768),
            parent_exec_id: format!("{boot}/{}/{}", 900_000_000 + number, number % 32_000),
            pid: (number % 32_768) as u32,
            path: program.into(),
            args: vec![
                program.rsplit('/').next().unwrap_or_default().into(),
                "--file".into(),
                format!("/srv/data/{}", chance(5_000)),
            ],
            comm: program.rsplit('/').next().unwrap_or_default().into(),
            cwd: "/srv/data".into(),
            inode: "8:1/131080".into(),
            sha256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".into(),
            cgroup: "/sallyport/session".into(),
            ..Process::default()
        }),
        ..Record::empty(Kind::Exec)
    };
    let action = match number % 4 {
        0 | 1 => "exec",
        2 => {
            record.kind = Kind::File;
            let op = ["read_file", "write_file"][chance(2) as usize];
            let path = match chance(50) {
                0 => "/etc/shadow".to_owned(),
                n => format!("/srv/data/{n}/{}", chance(9_000)),
            };
            record.file =
                Some(FileAction { op: op.into(), path, inode: "8:1/99".into(), ..FileAction::default() });
            op
        }
        _ => {
            record.kind = Kind::Connect;
            let address = format!("10.{}.{}.7", chance(40), chance(200));
            let port = [443, 5432, 22, 8080][chance(4) as usize];
            record.endpoint = Some(Endpoint { address, port, protocol: "tcp".into(), op: "connect".into() });
            "connect"
        }
    };
    record.decision = Some(Decision {
        action: action.into(),
        outcome: if chance(30) == 0 { Outcome::Blocked } else { Outcome::Allowed },
        policy: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".into(),
        rule: String::new(),
        reason: String::new(),
        point: "kernel-lsm".into(),
    });
    record
}
