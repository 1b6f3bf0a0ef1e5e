//! The `sallyport-sensor` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|arg| arg == "shepherd") {
        return ExitCode::from(u8::from(sallyport_sensor::shepherd::run() != 0));
    }
    ExitCode::from(2)
}
