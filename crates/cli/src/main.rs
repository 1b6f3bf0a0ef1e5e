//! `sallyport`: reads the command line, runs the command, tells what went wrong, sets the exit code.
#![forbid(unsafe_code)]

use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
};

use clap::{CommandFactory, Parser};
use sallyport_cli::{
    args::{Cli, Command},
    commands,
    failure::{Exit, Failure},
    gateway::Context,
    out::Out,
    profile::Folders,
};

fn main() -> ExitCode {
    // `parse` prints usage errors and exits with 2, as EXIT_CODES says.
    let cli = Cli::parse();
    let json = cli.global.json;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_said() {
                complain(&failure, json);
            }
            ExitCode::from(failure.exit() as u8)
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "sallyport", &mut script);
            io::stdout().write_all(&script).map_err(Into::into)
        }
        Command::Man { dir } => manual(&dir),
        command => {
            let folders = Folders::from_env().ok_or_else(|| {
                Failure::failed("your home folder is not known").next("set HOME to an absolute path")
            })?;
            let context = Context { out: Out::new(cli.global.json), global: cli.global, folders };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|err| Failure::failed("cannot start").because(&err))?;
            runtime.block_on(commands::run(&context, command))
        }
    }
}

fn manual(dir: &Path) -> Result<(), Failure> {
    let written = fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Cli::command(), dir));
    written.map_err(|err| {
        Failure::failed(format!("cannot write the manual pages into `{}`", dir.display())).because(&err)
    })
}

fn complain(failure: &Failure, json: bool) {
    let text = if json { failure.json().to_string() } else { failure.to_string() };
    let red = !json
        && io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    // Nothing is left to be told if standard error is gone.
    let _ = match text.strip_prefix("sallyport:") {
        Some(rest) if red && failure.exit() != Exit::Usage => {
            writeln!(io::stderr(), "\x1b[31msallyport:\x1b[0m{rest}")
        }
        _ => writeln!(io::stderr(), "{text}"),
    };
}
