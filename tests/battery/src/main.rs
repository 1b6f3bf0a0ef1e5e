//! `sallyport-battery`: ways around the sensor, each tried four ways, with oracles outside of the sensor.
//!
//! First without the sensor: what does not work then does not work on this kernel. Then with it: an untagged process (nobody outside
//! of a session may be touched), a session that policy permits the thing, and one that it forbids it. Only the last may fail.
//!
//! `cargo xtask vm battery` runs it in virtual machines, and on this machine with `--native`.

mod bpf;
mod elf;
mod enforcer;
mod report;
mod runner;
mod server;
mod stage;
mod sys;
mod technique;
mod techniques;
mod uring;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sallyport_sensor::kernel::Mode;

/// Tries ways around the sensor.
#[derive(Parser)]
#[command(name = "sallyport-battery")]
struct Arguments {
    /// Only techniques whose group or name contains this (may be given more than once)
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// This machine is the battery's own: it may change settings of the whole system
    #[arg(long)]
    own_machine: bool,
    /// `lsm` or `tracepoint`; the better one that works here when not given
    #[arg(long, value_name = "MODE")]
    mode: Option<String>,
    /// The folder of the policies
    #[arg(long, value_name = "FOLDER", default_value = "/opt/sallyport/bundles/battery")]
    bundle: PathBuf,
    /// Try everything without the sensor only, and say what does not work
    #[arg(long)]
    without_sensor: bool,
    /// Say what each technique's processes say
    #[arg(long)]
    verbose: bool,
    /// Name the techniques and do nothing
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mode = match arguments.mode.as_deref() {
        None => None,
        Some("lsm") => Some(Mode::Lsm),
        Some("tracepoint") => Some(Mode::Tracepoint),
        Some(other) => {
            eprintln!("error: there is no mode `{other}`: it can be `lsm` or `tracepoint`");
            return ExitCode::FAILURE;
        }
    };
    let wanted = |technique: &technique::Technique| {
        let text = format!("{}: {}", technique.group, technique.name);
        arguments.only.is_empty() || arguments.only.iter().any(|only| text.contains(only.as_str()))
    };
    let chosen: Vec<_> = techniques::all().into_iter().filter(wanted).collect();
    if arguments.list {
        for technique in &chosen {
            println!("{}: {}", technique.group, technique.name);
        }
        return ExitCode::SUCCESS;
    }
    let options = runner::Options {
        mode,
        bundle: arguments.bundle,
        own_machine: arguments.own_machine,
        without_sensor: arguments.without_sensor,
        verbose: arguments.verbose,
    };
    match runner::run(&chosen, &options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
