//! What is to run on the host, gathered from a channel's requests (RFC 4254 section 6).

use super::config::EnvFilter;
use russh::{Pty as Mode, Sig};
use sallyport_contract::v1::{Command, EnvVar, Pty, Shell, Subsystem, WindowSize, Work, work};

/// Variables, and bytes of them, that one channel may set.
const MAX_VARIABLES: usize = 64;
const MAX_ENV_BYTES: usize = 32 * 1024;
/// Names of terminal types are short.
const MAX_TERM: usize = 128;

/// Requests that came before the one that starts something.
#[derive(Default)]
pub struct Preparation {
    pty: Option<Pty>,
    env: Vec<EnvVar>,
    env_bytes: usize,
}

/// What a terminal request says.
pub struct TerminalRequest<'a> {
    /// `TERM`.
    pub term: &'a str,
    /// Its size.
    pub size: WindowSize,
    /// Its modes, decoded.
    pub modes: &'a [(Mode, u32)],
}

impl Preparation {
    /// A terminal is wanted; false if the request makes no sense.
    pub fn terminal(&mut self, request: &TerminalRequest<'_>) -> bool {
        let good = request.term.len() <= MAX_TERM && request.term.bytes().all(|b| b.is_ascii_graphic());
        if good {
            self.pty = Some(Pty {
                term: request.term.to_owned(),
                size: Some(request.size),
                modes: encode_modes(request.modes),
            });
        }
        good
    }

    /// The terminal has another size before anything runs in it.
    pub fn resize(&mut self, size: WindowSize) {
        if let Some(pty) = &mut self.pty {
            pty.size = Some(size);
        }
    }

    /// A variable is to be set; false if it may not be.
    pub fn variable(&mut self, filter: &EnvFilter, name: &str, value: &str) -> bool {
        let bytes = self.env_bytes + name.len() + value.len();
        let good = filter.passes(name)
            && !value.contains('\0')
            && self.env.len() < MAX_VARIABLES
            && bytes <= MAX_ENV_BYTES;
        if good {
            self.env_bytes = bytes;
            self.env.push(EnvVar { name: name.to_owned(), value: value.as_bytes().to_vec() });
        }
        good
    }

    /// Whether there is a terminal.
    #[must_use]
    pub fn has_terminal(&self) -> bool {
        self.pty.is_some()
    }

    /// The login shell.
    #[must_use]
    pub fn shell(self) -> Work {
        self.into_work(work::Work::Shell(Shell {}))
    }

    /// A command for the login shell.
    #[must_use]
    pub fn command(self, line: &[u8]) -> Work {
        self.into_work(work::Work::Command(Command { line: line.to_vec() }))
    }

    /// A subsystem; `None` if there is none of that name.
    #[must_use]
    pub fn subsystem(self, name: &str) -> Option<Work> {
        (name == "sftp").then(|| self.into_work(work::Work::Subsystem(Subsystem { name: name.to_owned() })))
    }

    fn into_work(self, work: work::Work) -> Work {
        Work { work: Some(work), pty: self.pty, env: self.env }
    }
}

/// RFC 4254 section 8: opcode, value, ended by opcode 0. What russh does not know it hands over as 0, which
/// would end the list early.
fn encode_modes(modes: &[(Mode, u32)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(modes.len() * 5 + 1);
    for &(mode, value) in modes.iter().filter(|(mode, _)| *mode != Mode::TTY_OP_END) {
        bytes.push(mode as u8);
        bytes.extend_from_slice(&value.to_be_bytes());
    }
    bytes.push(Mode::TTY_OP_END as u8);
    bytes
}

/// The name of a signal as in RFC 4254 section 6.10.
#[must_use]
pub fn signal_name(signal: &Sig) -> String {
    match signal {
        Sig::ABRT => "ABRT",
        Sig::ALRM => "ALRM",
        Sig::FPE => "FPE",
        Sig::HUP => "HUP",
        Sig::ILL => "ILL",
        Sig::INT => "INT",
        Sig::KILL => "KILL",
        Sig::PIPE => "PIPE",
        Sig::QUIT => "QUIT",
        Sig::SEGV => "SEGV",
        Sig::TERM => "TERM",
        Sig::USR1 => "USR1",
        Sig::Custom(name) => name,
    }
    .to_owned()
}

/// The other way round.
#[must_use]
pub fn signal(name: &str) -> Sig {
    match name {
        "ABRT" => Sig::ABRT,
        "ALRM" => Sig::ALRM,
        "FPE" => Sig::FPE,
        "HUP" => Sig::HUP,
        "ILL" => Sig::ILL,
        "INT" => Sig::INT,
        "KILL" => Sig::KILL,
        "PIPE" => Sig::PIPE,
        "QUIT" => Sig::QUIT,
        "SEGV" => Sig::SEGV,
        "TERM" => Sig::TERM,
        "USR1" => Sig::USR1,
        other => Sig::Custom(other.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_unknown_to_russh_do_not_end_the_list() {
        let modes = [(Mode::ECHO, 1), (Mode::TTY_OP_END, 0), (Mode::TTY_OP_OSPEED, 38400)];
        assert_eq!(encode_modes(&modes), [53, 0, 0, 0, 1, 129, 0, 0, 0x96, 0, 0]);
    }

    #[test]
    fn signals_keep_their_names() {
        for name in ["INT", "TERM", "KILL", "WINCH"] {
            assert_eq!(signal_name(&signal(name)), name);
        }
    }

    #[test]
    fn only_sftp_is_a_subsystem() {
        assert!(Preparation::default().subsystem("sftp").is_some());
        assert!(Preparation::default().subsystem("netconf").is_none());
    }
}
