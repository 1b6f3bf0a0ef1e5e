//! `sallyport-demo`: the whole product on this computer, driven by a real ssh client; ends with a table.
//!
//! Started by `cargo xtask demo`, and by the test virtual machines' init. Exit status 0 only if every line held.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use sallyport_e2e::child::finish;
use sallyport_e2e::story::{self, Facts};
use sallyport_e2e::{Stage, StageOptions, wait};

#[derive(Parser)]
#[command(
    name = "sallyport-demo",
    about = "Sallyport on this computer, driven by a real ssh client (needs root)"
)]
struct Arguments {
    /// Leave everything running at the end, and print how to try it by hand
    #[arg(long)]
    keep: bool,
    /// Fail unless the kernel programs enforce in this mode
    #[arg(long, value_name = "lsm|tracepoint")]
    expect_mode: Option<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // As shells say it: 128 and the signal's number.
        Err(_) if wait::interrupted() => ExitCode::from(130),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    wait::end_on_ctrl_c()?;
    let facts = Facts::new()?;
    println!("starting gateway, development identity provider and sensor (state in one temporary folder)");
    let options = StageOptions { bundle: facts.bundle.clone(), ..StageOptions::default() };
    let mut stage = Stage::start(&options)?;
    let told = story::tell(&mut stage, facts, &mut |line| {
        println!("{} {}: {}", if line.held { "ok  " } else { "FAIL" }, line.what, line.happened);
        let _ = std::io::stdout().flush();
    });
    let outcome = match told {
        Ok(outcome) => outcome,
        Err(error) if wait::interrupted() => {
            println!("interrupted; stopping everything and taking the kernel programs out again");
            return Err(error.context("interrupted"));
        }
        Err(error) => {
            eprintln!("--- the gateway's last words\n{}", stage.gateway_log(25));
            eprintln!("--- the sensor's last words\n{}", stage.sensor_log(25));
            return Err(error.context("the story could not be told to its end"));
        }
    };
    replay(&stage, &outcome.session)?;
    println!("\nenforcement mode on this kernel: {}\n", outcome.mode);
    story::print_table(&outcome.lines, &mut std::io::stdout())?;
    let mode_is_right = arguments.expect_mode.as_ref().is_none_or(|mode| *mode == outcome.mode);
    if !mode_is_right {
        println!(
            "FAIL the mode is {}, not {}",
            outcome.mode,
            arguments.expect_mode.as_deref().unwrap_or_default()
        );
    }
    if arguments.keep {
        explain(&stage)?;
        wait_for_the_person();
    }
    Ok(outcome.held() && mode_is_right)
}

/// Plays the interactive session, fast, with what the kernel saw between the lines.
fn replay(stage: &Stage, session: &str) -> Result<()> {
    println!("\n--- replay of session {session}, with what the kernel saw between the lines");
    let sam = stage.person("sam")?;
    let mut command = sam.command(&["replay", session, "--speed", "50", "--idle-limit", "1s"])?;
    let played =
        finish(&mut command, b"", Duration::from_secs(120))?.success().context("replay the session")?;
    std::io::stdout().write_all(&played.stdout)?;
    println!("\n--- end of the replay");
    Ok(())
}

fn explain(stage: &Stage) -> Result<()> {
    let sam = stage.person("sam")?;
    let ssh = stage.ssh("alice", &sam)?;
    let programs = sallyport_e2e::programs::folder()?;
    let config = ssh.config().display();
    println!(
        "\nEverything is still running. Try, in another terminal:\n\
         \n  ssh -F {config} web-1+root@gateway                 (as alice, whose key is bound)\
         \n  ssh -F {config} gateway                            (what alice may reach)\
         \n  ssh -F {config} -J gateway root@web-1              (the same by ProxyJump)\
         \n  export HOME={home} SALLYPORT_GATEWAY=https://{grpc}   (now you are sam, of security)\
         \n  {sallyport} events --follow\
         \n  {sallyport} sessions\
         \n  {sallyport} verify\
         \n\nState and logs: {folder}\nCtrl-C ends it and cleans up.",
        home = sam.home.display(),
        grpc = stage.addresses.grpc,
        sallyport = programs.join("sallyport").display(),
        folder = stage.folder().display(),
    );
    Ok(())
}

fn wait_for_the_person() {
    while !wait::interrupted() {
        std::thread::sleep(Duration::from_millis(200));
    }
}
