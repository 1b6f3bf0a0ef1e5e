//! From a push to a thousand sensors that report the new version: a real gateway, real mTLS streams, the sensor's own code
//! for orders and bundles.
//!
//! The sensors are simulated in so far as they share this process, load nothing into the kernel and write nothing to disk.
//! Each has a certificate of its own, its own connection with a control and an evidence stream, verifies each order and
//! bundle itself, and answers as a sensor does. Two ways are measured: each also parses, checks and compiles the bundle
//! itself, which on a fleet a thousand hosts do at the same time and here one does; and one does that for all.
//!
//! Started by `cargo xtask bench push`. Exit status 3: measured, and the target is missed.

mod bundle;
mod figures;
mod fleet;
mod gateway;
mod sensor;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use sallyport_e2e::{Stage, StageOptions, programs, wait};

use figures::{Figures, Push};
use fleet::Fleet;
use gateway::Gateway;
use sensor::Way;

/// A push that takes longer than this is given up.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Parser)]
struct Arguments {
    /// How many sensors
    #[arg(long, default_value_t = 1_000)]
    sensors: usize,
    /// Pushes in which one sensor parses for all
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Pushes in which each parses for itself: as many hosts' work on one computer, which takes its time
    #[arg(long, default_value_t = 1)]
    own: u32,
    /// Write the figures as Markdown as well
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// One JSON object per push, on standard output
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(3),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True if the target is met.
fn run(arguments: &Arguments) -> Result<bool> {
    wait::end_on_ctrl_c()?;
    // Two ends of each connection are open, one here and one in the gateway, which inherits the limit.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let folder = tempfile::tempdir()?;
    bundle::write(folder.path(), &programs::policies()?, arguments.sensors)?;
    let stage_options = StageOptions {
        bundle: folder.path().join("fleet"),
        sensor: false,
        gateway_log: "warn",
        ..StageOptions::default()
    };
    eprintln!("starting the gateway");
    let mut stage = Stage::start(&stage_options)?;
    let sam = stage.signed_in("sam")?;
    let cores = std::thread::available_parallelism()?.get();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores)
        // What blocks is computation: more at once than there are processors would only take memory.
        .max_blocking_threads(cores)
        .enable_all()
        .build()?;
    let pid = stage.gateway()?.id();
    let figures = runtime.block_on(measure(arguments, &folder, &sam.home, pid));
    let figures = figures.with_context(|| format!("the gateway says:\n{}", stage.gateway_log(20)))?;
    let text = figures.markdown();
    eprintln!("{text}");
    if let Some(file) = &arguments.markdown {
        std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(figures.met())
}

async fn measure(
    arguments: &Arguments,
    folder: &tempfile::TempDir,
    home: &std::path::Path,
    pid: u32,
) -> Result<Figures> {
    let mut gateway = Gateway::connect(home, pid).await?;
    let begun = Instant::now();
    let mut fleet = Fleet::enrol(&gateway, arguments.sensors).await?;
    eprintln!("{} sensors have joined, after {:.1} s", fleet.len(), begun.elapsed().as_secs_f64());
    let alone = gateway.memory()?;
    let begun = Instant::now();
    fleet.connect().await?;
    fleet.all_have(1, PATIENCE).await?;
    eprintln!("all are connected and have the first version, after {:.1} s", begun.elapsed().as_secs_f64());
    fleet.refuse_what_is_forged()?;
    let mut figures = Figures::new(fleet.len(), bundle::size(folder.path())?);
    figures.memory = (alone, gateway.memory()?);
    for (way, rounds) in [(Way::Shared, arguments.rounds), (Way::Own, arguments.own)] {
        fleet.go(way);
        for round in 0..rounds {
            let archive = bundle::changed(folder.path(), &format!("{round}-{}", way.name()))?;
            let push = push(&mut gateway, &mut fleet, way, archive).await?;
            if arguments.json {
                println!("{}", serde_json::to_string(&push)?);
            }
            eprintln!("{push}");
            figures.pushes.push(push);
        }
    }
    figures.peak = gateway.peak()?;
    Ok(figures)
}

/// One push, until every sensor has reported.
async fn push(gateway: &mut Gateway, fleet: &mut Fleet, way: Way, archive: Vec<u8>) -> Result<Push> {
    let log = gateway.log_size().await?;
    let (theirs, ours) = (gateway.processor()?, processor()?);
    let bytes = archive.len();
    let begun = gateway::now_ns();
    let answer = gateway.push(archive).await?;
    let answered = gateway::now_ns();
    fleet.all_have(answer.serial, PATIENCE).await?;
    let (theirs, ours) = (gateway.processor()? - theirs, processor()? - ours);
    // The gateway's own records say when each report had arrived there.
    let told = gateway.told(log, answer.serial, fleet.len(), PATIENCE).await?;
    let on_time = answer.sensors.iter().filter(|sensor| sensor.version == answer.version).count();
    ensure!(
        answered.saturating_sub(begun) < 2_000_000_000 || on_time < fleet.len() || told.all_before(answered),
        "the gateway's records and its answer contradict each other"
    );
    gateway.agrees(&answer.version, fleet.hosts()).await?;
    Ok(Push::new(way, bytes, begun, answered, on_time, &told, (theirs, ours)))
}

/// What this process has used.
fn processor() -> Result<Duration> {
    let used = getrusage(UsageWho::RUSAGE_SELF)?;
    let time = |value: nix::sys::time::TimeVal| {
        Duration::from_micros((value.tv_sec() * 1_000_000 + value.tv_usec()).unsigned_abs())
    };
    Ok(time(used.user_time()) + time(used.system_time()))
}
