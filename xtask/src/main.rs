//! `cargo xtask`: everything a developer or CI runs.
//!
//! Each command does the set-up it needs by itself, says what it does and why, and takes seconds when
//! there is nothing to do.

mod apt;
mod battery;
mod bench;
mod build;
mod codegen;
mod demo;
mod deps;
mod document;
mod ebpf;
mod initramfs;
mod kernels;
mod lint;
mod places;
mod qemu;
mod run;
mod setup;
mod test;
mod tidy;
mod vm;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, try, test and measure Sallyport", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the other tasks need (Debian packages, bpf-linker, the standard library's source)
    Setup(setup::SetupArguments),
    /// Build the kernel programs and the three programs that ship
    Build(build::BuildArguments),
    /// Build only the kernel programs, which the sensor's build script then embeds
    Ebpf,
    /// Generate the gRPC code from crates/contract/proto
    Codegen(codegen::CodegenArguments),
    /// Drive a real ssh client through the whole product, and show what happened (needs root)
    Demo(demo::DemoArguments),
    /// Unit, policy and end-to-end tests, the story on two LSM kernels in QEMU, the battery on one (needs root)
    Test(test::TestArguments),
    /// Boot a Debian kernel in QEMU and run the story, given test programs, or the battery of bypasses
    Vm(vm::VmArguments),
    /// Measure decisions in the kernel, and the product beside auditd, bpftrace and plain OpenSSH (needs root)
    Bench(bench::BenchArguments),
    /// Formatting, clippy, repository rules, dependency directions
    Lint,
    /// What must pass before a change lands: lint, then test
    Ci,
}

fn main() -> std::process::ExitCode {
    let outcome = dispatch(Arguments::parse().task);
    if let Err(error) = outcome {
        eprintln!("error: {error:#}");
        let missed = error.downcast_ref::<bench::Missed>().is_some();
        return if missed { bench::Missed::STATUS.into() } else { std::process::ExitCode::FAILURE };
    }
    std::process::ExitCode::SUCCESS
}

fn dispatch(task: Task) -> Result<()> {
    match task {
        Task::Setup(arguments) => setup::run(&arguments),
        Task::Build(arguments) => build::run(&arguments).map(drop),
        Task::Ebpf => {
            ebpf::ensure_toolchain(&places::root())?;
            ebpf::build(&places::root(), true).map(drop)
        }
        Task::Codegen(arguments) => codegen::run(&arguments),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Vm(arguments) => vm::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Lint => lint::run(),
        Task::Ci => {
            lint::run()?;
            test::run(&test::TestArguments::default())
        }
    }
}
