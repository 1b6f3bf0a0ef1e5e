//! The help is part of the interface: changes to it are made on purpose. `BLESS=1 cargo test -p sallyport --test help`
//! writes the new text.

use std::{fmt::Write, fs, path::Path};

use clap::{Command, CommandFactory};
use sallyport_cli::args::Cli;

fn write_help(command: &mut Command, text: &mut String) {
    let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
    // Fixed width: the terminal's must not matter.
    let _ = write!(text, "===== {name}\n{}\n", command.render_long_help());
    for sub in command.get_subcommands_mut() {
        if sub.get_name() != "help" {
            write_help(sub, text);
        }
    }
}

#[test]
fn help_is_as_it_was() {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut text = String::new();
    write_help(&mut command, &mut text);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help.txt");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &text).expect("written");
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == expected,
        "the help changed; if that is meant, run again with BLESS=1. It is now:\n{text}"
    );
}

#[test]
fn the_grammar_is_sound() {
    Cli::command().debug_assert();
}
