//! `cargo xtask test`: every test there is, in one run of the test runner.

use std::process::Command;

use anyhow::Result;

use crate::{build, places, run, setup, vm};

/// `cargo xtask test`
#[derive(clap::Args, Default)]
pub(crate) struct TestArguments {
    /// Leave out the virtual machines
    #[arg(long)]
    no_vm: bool,
    /// So many answers of the kernel programs are compared with Cedar's, instead of a million
    #[arg(long, value_name = "N")]
    kernel_cases: Option<u64>,
    /// Further arguments for `cargo nextest run`, for example a test's name
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Sets up, builds, and runs all tests; the runner's summary comes last.
pub(crate) fn run(arguments: &TestArguments) -> Result<()> {
    run::need_root(
        "test",
        "end-to-end tests load programs into the kernel and start sessions as local users",
    )?;
    setup::packages(setup::Needed::Test)?;
    setup::nextest()?;
    build::run(&build::BuildArguments { tests: true, ..build::BuildArguments::default() })?;
    openid_provider()?;
    let mut nextest = run::cargo();
    nextest.args(["nextest", "run", "--locked", "--workspace"]);
    if arguments.no_vm {
        nextest.args(["--filter-expr", "not binary(/_vm$/)"]);
    } else {
        vm::prepare()?;
    }
    if let Some(cases) = arguments.kernel_cases {
        nextest.env("SALLYPORT_KERNEL_CASES", cases.to_string());
    }
    nextest
        .args(&arguments.rest)
        // An error names its causes; where it was made is noise beside them.
        .env("RUST_LIB_BACKTRACE", "0")
        // The tests of virtual machines call back here.
        // Not this very file: the build may just have replaced it.
        .env("SALLYPORT_XTASK", places::programs(false).join("xtask"));
    run::loud("run the tests", &mut nextest)
}

/// Installs the certified OpenID provider from its lock file, unless that is done.
pub(crate) fn openid_provider() -> Result<()> {
    let folder = places::root().join("tests/oidc-provider");
    let lock = std::fs::read(folder.join("package-lock.json"))?;
    let done = folder.join("node_modules/.sallyport-lock");
    if std::fs::read(&done).is_ok_and(|installed| installed == lock) {
        return Ok(());
    }
    run::quiet(
        "install the OpenID provider of the tests from its lock file",
        Command::new("npm").current_dir(&folder).args([
            "ci",
            "--omit=dev",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--loglevel=error",
        ]),
    )?;
    Ok(std::fs::write(done, lock)?)
}
