//! The terminal while a replay runs: keys without echo, and everything back as it was afterwards.

use std::{
    io::{self, Write},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::termios::{self, LocalFlags, SetArg, SpecialCharacterIndices, Termios},
};

use super::{
    player::{Effect, Key, Player},
    render::Render,
};

/// At most this much is waited at once; also how long a paused replay sleeps between looks.
const GLANCE: Duration = Duration::from_secs(1);

/// The terminal's settings, put back on drop.
struct Settings {
    before: Termios,
}

impl Settings {
    /// Keys one by one, no echo, no signals from keys; output stays as it is.
    fn keys() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = termios::tcgetattr(stdin.as_fd())?;
        let mut keys = before.clone();
        keys.local_flags
            .remove(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG | LocalFlags::IEXTEN);
        keys.control_chars[SpecialCharacterIndices::VMIN as usize] = 0;
        keys.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &keys)?;
        Ok(Self { before })
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        // What was typed and not read must not reach the shell as commands.
        let _ = termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSAFLUSH, &self.before);
    }
}

/// Plays to the end or until `q`.
///
/// # Errors
/// The terminal.
pub fn play(player: &mut Player, render: &mut Render, from: Option<Duration>) -> io::Result<()> {
    let _settings = Settings::keys()?;
    let played = run(player, render, from);
    let mut out = String::new();
    render.finish(&mut out);
    out.push_str(Render::reset());
    io::stdout().lock().write_all(out.as_bytes())?;
    io::stdout().flush()?;
    played
}

fn run(player: &mut Player, render: &mut Render, from: Option<Duration>) -> io::Result<()> {
    let mut then = Instant::now();
    if let Some(from) = from
        && show(player.seek(from), player, render)?
    {
        return Ok(());
    }
    while !player.is_over() {
        let wait = player.next_in().unwrap_or(GLANCE).min(GLANCE);
        let keys = keys(wait)?;
        let now = Instant::now();
        let due = player.tick(now.duration_since(then));
        then = now;
        if show(Effect::Skip { from: due.start, to: due.end }, player, render)? {
            return Ok(());
        }
        for key in keys {
            let effect = player.key(key);
            if show(effect, player, render)? {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Says whether that was the end.
fn show(effect: Effect, player: &Player, render: &mut Render) -> io::Result<bool> {
    let mut out = String::new();
    let range = match effect {
        Effect::None => return Ok(false),
        Effect::Quit => return Ok(true),
        Effect::Skip { from, to } => from..to,
        Effect::Redraw { to } => {
            render.clear(&mut out);
            0..to
        }
    };
    let mut stdout = io::stdout().lock();
    for timed in player.items().get(range).unwrap_or_default() {
        render.item(timed, &mut out);
        if out.len() > 1 << 16 {
            stdout.write_all(out.as_bytes())?;
            out.clear();
        }
    }
    stdout.write_all(out.as_bytes())?;
    stdout.flush()?;
    Ok(false)
}

/// Waits for keys.
fn keys(wait: Duration) -> io::Result<Vec<Key>> {
    let stdin = io::stdin();
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    // Rounded up: rounding down would spin for the last fraction of a millisecond.
    let millis = u16::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
    match poll(&mut fds, PollTimeout::from(millis)) {
        Ok(0) | Err(Errno::EINTR) => return Ok(Vec::new()),
        Ok(_) => {}
        Err(err) => return Err(err.into()),
    }
    let mut bytes = [0; 64];
    match nix::unistd::read(stdin.as_fd(), &mut bytes) {
        // The terminal is gone.
        Ok(0) => Ok(vec![Key::Quit]),
        Ok(n) => Ok(parse_keys(&bytes[..n])),
        Err(Errno::EINTR | Errno::EAGAIN) => Ok(Vec::new()),
        Err(err) => Err(err.into()),
    }
}

fn parse_keys(mut bytes: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    while let Some((&first, rest)) = bytes.split_first() {
        let (key, rest) = match (first, rest) {
            (0x1b, [b'[' | b'O', arrow, rest @ ..]) => {
                let key = match arrow {
                    b'C' => Some(Key::Forward),
                    b'D' => Some(Key::Back),
                    b'A' => Some(Key::LeapForward),
                    b'B' => Some(Key::LeapBack),
                    _ => None,
                };
                (key, rest)
            }
            (b' ', rest) => (Some(Key::Pause), rest),
            (b'+' | b'=', rest) => (Some(Key::Faster), rest),
            (b'-' | b'_', rest) => (Some(Key::Slower), rest),
            // Ctrl-C and Ctrl-D do what they always do.
            (b'q' | b'Q' | 3 | 4, rest) => (Some(Key::Quit), rest),
            (_, rest) => (None, rest),
        };
        keys.extend(key);
        bytes = rest;
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_understood() {
        assert_eq!(
            parse_keys(b" \x1b[C\x1bOD+-x\x1b[Aq"),
            [Key::Pause, Key::Forward, Key::Back, Key::Faster, Key::Slower, Key::LeapForward, Key::Quit]
        );
        assert!(parse_keys(b"\x1b").is_empty());
    }
}
