//! The commands, one file each (or one per family).

pub mod events;
pub mod login;
pub mod policy;
pub mod replay;
pub mod sensor;
pub mod sessions;
pub mod ssh_config;
pub mod targets;
pub mod verify;
pub mod verify_offline;
pub mod whoami;

use crate::{
    args::{Command, Sensor, Session},
    failure::Failure,
    gateway::Context,
};

/// Runs a command that needs the person's folders.
///
/// # Errors
/// What the person is told.
pub async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Login(args) => login::run(context, &args).await,
        Command::Logout => whoami::logout(context).await,
        Command::Whoami => whoami::whoami(context).await,
        Command::Targets => targets::run(context).await,
        Command::SshConfig(args) => ssh_config::run(context, &args).await,
        Command::Policy(args) => policy::run(context, args).await,
        Command::Sessions(args) => sessions::list(context, args).await,
        Command::Session(Session::End { id, reason }) => sessions::end(context, id, reason).await,
        Command::Events(args) => events::run(context, args).await,
        Command::Replay(args) => replay::run(context, args).await,
        Command::Verify(args) => verify::run(context, args).await,
        Command::Sensor(Sensor::Token { host, ttl }) => sensor::token(context, host, ttl).await,
        Command::Sensor(Sensor::Revoke { host, reason }) => sensor::revoke(context, host, reason).await,
        Command::Completions { .. } | Command::Man { .. } => {
            // `main` runs these: they need neither folders nor a runtime.
            Ok(())
        }
    }
}
