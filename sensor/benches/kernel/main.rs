//! `cargo xtask bench kernel`: what a decision in the kernel costs, at 1 to 10,000 rules, and what the tables take.
//!
//! By the kernel's own counters, which add some 20 ns of their own to each run. Exit status: 0 if every target is met, 3
//! if one is missed, 1 if it could not be measured. With `SALLYPORT_EMULATED` set (in a virtual machine in software
//! emulation) times mean nothing, so only the ratios between sizes are given and no target on time is judged.

mod counters;
mod load;
mod measure;
mod pure;
mod report;
mod rules;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use sallyport_sensor::kernel::{Kernel, KernelOptions};

#[derive(Parser)]
#[command(name = "bench-kernel", about = "What decisions in the kernel cost (needs root)")]
struct Arguments {
    /// One JSON object per figure, on standard output
    #[arg(long)]
    json: bool,
    /// Write the figures as Markdown as well
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Rounds of each load
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// The process that does what is measured
    #[arg(long, hide = true)]
    load: Option<String>,
    /// Cargo says this to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.load {
        Some(name) => load::run(name).map(|()| true),
        None => run(&arguments),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(3),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True if every target is met.
fn run(arguments: &Arguments) -> Result<bool> {
    let pins = Pins(PathBuf::from(format!("/sys/fs/bpf/sallyport-bench-{}", std::process::id())));
    // The stream of events belongs to a runtime.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let options = KernelOptions { pin_dir: pins.0.clone(), ..KernelOptions::default() };
    let (kernel, started) = Kernel::start(&options).context("start the kernel programs")?;
    let (sizes, policies) = measure::sessions(&kernel)?;
    let costs = measure::costs(&kernel, arguments.rounds)?;
    eprintln!("measure the decisions alone");
    let pure = pure::measure(&policies, arguments.rounds)?;
    let report = report::Report { mode: started.mode, sizes, costs, pure, rounds: arguments.rounds };
    drop(kernel);
    if arguments.json {
        report.print_json();
    } else {
        print!("{}", report.shown());
    }
    if let Some(file) = &arguments.markdown {
        std::fs::write(file, report.text()).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(report.all_met())
}

/// Takes the programs out at the end.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = Kernel::unpin_all(Path::new(&self.0)) {
            eprintln!("the kernel programs are still there: {error}");
        }
    }
}
