//! The pseudo-terminal: making it, RFC 4254 modes, window size.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::stat::{Mode, fchmod};
use nix::sys::termios::{
    ControlFlags, InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices as Cc, Termios,
    cfsetspeed, tcgetattr, tcsetattr,
};
use nix::unistd::{Gid, Group, Uid, fchown, ttyname};

use super::protocol::Pty;

/// A terminal pair.
#[derive(Debug)]
pub struct Terminal {
    /// The shepherd's side.
    pub master: OwnedFd,
    /// The leader's side.
    pub slave: OwnedFd,
    /// `/dev/pts/N`.
    pub name: String,
}

/// Makes a terminal with the client's size and modes, owned by the account.
///
/// # Errors
/// The kernel has no more terminals, or refuses one of the settings.
pub fn open(pty: &Pty, uid: Uid, gid: Gid) -> nix::Result<Terminal> {
    let pair = openpty(Some(&winsize(pty.size)), None::<&Termios>)?;
    for fd in [&pair.master, &pair.slave] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    let mut termios = tcgetattr(&pair.slave)?;
    apply_modes(&mut termios, &pty.modes);
    tcsetattr(&pair.slave, SetArg::TCSANOW, &termios)?;
    if Uid::effective().is_root() {
        // As sshd: group tty may write (`wall`, `write`), others nothing.
        let tty = Group::from_name("tty").ok().flatten();
        let mode = if tty.is_some() { 0o620 } else { 0o600 };
        fchown(&pair.slave, Some(uid), Some(tty.map_or(gid, |group| group.gid)))?;
        fchmod(&pair.slave, Mode::from_bits_truncate(mode))?;
    }
    let name = ttyname(&pair.slave)?.to_string_lossy().into_owned();
    Ok(Terminal { master: pair.master, slave: pair.slave, name })
}

/// Tells the terminal (and its foreground processes, by SIGWINCH) its new size.
pub fn resize(master: &OwnedFd, size: [u16; 4]) -> nix::Result<()> {
    let size = winsize(size);
    // SAFETY: TIOCSWINSZ reads one `struct winsize`; the pointer is to a live local of that type, and the
    // descriptor is owned by the caller for the duration of the call.
    #[allow(unsafe_code, reason = "no safe wrapper of TIOCSWINSZ")]
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    nix::errno::Errno::result(result).map(drop)
}

fn winsize([columns, rows, width, height]: [u16; 4]) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: width, ws_ypixel: height }
}

/// Applies encoded modes: opcode byte, 32-bit value, until opcode 0 or one from 160 on, whose arguments
/// are undefined (RFC 4254 section 8). What is cut off or unknown is ignored.
pub fn apply_modes(termios: &mut Termios, modes: &[u8]) {
    let mut rest = modes;
    while let [opcode @ 1..160, a, b, c, d, tail @ ..] = rest {
        apply_mode(termios, *opcode, u32::from_be_bytes([*a, *b, *c, *d]));
        rest = tail;
    }
}

fn apply_mode(termios: &mut Termios, opcode: u8, value: u32) {
    let on = value != 0;
    if let Some(index) = special_character(opcode) {
        // 255 means "none", which is `_POSIX_VDISABLE` (0) on Linux.
        let byte = u8::try_from(value).unwrap_or(255);
        termios.control_chars[index as usize] = if byte == 255 { 0 } else { byte };
    } else if let Some(flag) = input_flag(opcode) {
        termios.input_flags.set(flag, on);
    } else if let Some(flag) = local_flag(opcode) {
        termios.local_flags.set(flag, on);
    } else if let Some(flag) = output_flag(opcode) {
        termios.output_flags.set(flag, on);
    } else {
        match opcode {
            90 if on => set_size(termios, ControlFlags::CS7),
            91 if on => set_size(termios, ControlFlags::CS8),
            92 => termios.control_flags.set(ControlFlags::PARENB, on),
            93 => termios.control_flags.set(ControlFlags::PARODD, on),
            128 | 129 => {
                if let Some(baud) = baud_rate(value) {
                    let _ = cfsetspeed(termios, baud);
                }
            }
            _ => {}
        }
    }
}

fn set_size(termios: &mut Termios, size: ControlFlags) {
    termios.control_flags.remove(ControlFlags::CSIZE);
    termios.control_flags.insert(size);
}

fn special_character(opcode: u8) -> Option<Cc> {
    Some(match opcode {
        1 => Cc::VINTR,
        2 => Cc::VQUIT,
        3 => Cc::VERASE,
        4 => Cc::VKILL,
        5 => Cc::VEOF,
        6 => Cc::VEOL,
        7 => Cc::VEOL2,
        8 => Cc::VSTART,
        9 => Cc::VSTOP,
        10 => Cc::VSUSP,
        12 => Cc::VREPRINT,
        13 => Cc::VWERASE,
        14 => Cc::VLNEXT,
        16 => Cc::VSWTC,
        18 => Cc::VDISCARD,
        _ => return None,
    })
}

fn input_flag(opcode: u8) -> Option<InputFlags> {
    Some(match opcode {
        30 => InputFlags::IGNPAR,
        31 => InputFlags::PARMRK,
        32 => InputFlags::INPCK,
        33 => InputFlags::ISTRIP,
        34 => InputFlags::INLCR,
        35 => InputFlags::IGNCR,
        36 => InputFlags::ICRNL,
        38 => InputFlags::IXON,
        39 => InputFlags::IXANY,
        40 => InputFlags::IXOFF,
        41 => InputFlags::IMAXBEL,
        42 => InputFlags::IUTF8,
        _ => return None,
    })
}

fn local_flag(opcode: u8) -> Option<LocalFlags> {
    Some(match opcode {
        50 => LocalFlags::ISIG,
        51 => LocalFlags::ICANON,
        53 => LocalFlags::ECHO,
        54 => LocalFlags::ECHOE,
        55 => LocalFlags::ECHOK,
        56 => LocalFlags::ECHONL,
        57 => LocalFlags::NOFLSH,
        58 => LocalFlags::TOSTOP,
        59 => LocalFlags::IEXTEN,
        60 => LocalFlags::ECHOCTL,
        61 => LocalFlags::ECHOKE,
        62 => LocalFlags::PENDIN,
        _ => return None,
    })
}

fn output_flag(opcode: u8) -> Option<OutputFlags> {
    Some(match opcode {
        70 => OutputFlags::OPOST,
        71 => OutputFlags::OLCUC,
        72 => OutputFlags::ONLCR,
        73 => OutputFlags::OCRNL,
        74 => OutputFlags::ONOCR,
        75 => OutputFlags::ONLRET,
        _ => return None,
    })
}

fn baud_rate(speed: u32) -> Option<nix::sys::termios::BaudRate> {
    use nix::sys::termios::BaudRate as B;
    Some(match speed {
        300 => B::B300,
        1_200 => B::B1200,
        2_400 => B::B2400,
        4_800 => B::B4800,
        9_600 => B::B9600,
        19_200 => B::B19200,
        38_400 => B::B38400,
        57_600 => B::B57600,
        115_200 => B::B115200,
        230_400 => B::B230400,
        _ => return None,
    })
}

/// Fuzz entry: any bytes as terminal modes.
pub fn fuzz_modes(bytes: &[u8]) {
    if let Ok(pair) = openpty(None::<&Winsize>, None::<&Termios>)
        && let Ok(mut termios) = tcgetattr(&pair.slave)
    {
        apply_modes(&mut termios, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_applied_and_rubbish_is_ignored() {
        let pty = Pty {
            term: "xterm".into(),
            size: [132, 43, 0, 0],
            // VINTR = 3, ECHO = 0, VEOF = none, unknown 99, TTY_OP_END, then what must not be read.
            modes: [
                &[1, 0, 0, 0, 7][..],
                &[53, 0, 0, 0, 0],
                &[5, 0, 0, 0, 255],
                &[99, 0, 0, 0, 1],
                &[0],
                &[53, 0, 0, 0, 1],
            ]
            .concat(),
        };
        let user = Uid::current();
        let terminal = open(&pty, user, Gid::current()).expect("a terminal");
        let termios = tcgetattr(&terminal.slave).expect("its modes");
        assert_eq!(termios.control_chars[Cc::VINTR as usize], 7);
        assert_eq!(termios.control_chars[Cc::VEOF as usize], 0);
        assert!(!termios.local_flags.contains(LocalFlags::ECHO));
        assert!(terminal.name.starts_with("/dev/pts/"));
        resize(&terminal.master, [80, 24, 0, 0]).expect("resize");
        for cut in 0..9 {
            fuzz_modes(&[1, 0, 0, 0, 7, 53, 0, 0, 0][..cut]);
        }
    }
}
