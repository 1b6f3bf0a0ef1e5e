//! A person at a terminal: a pseudo-terminal with a program on it, keys typed, output read.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use nix::pty::{Winsize, openpty};

use crate::wait;

/// A program on a terminal. Dropping it hangs up.
pub struct Terminal {
    child: Child,
    keys: File,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts `program` as the leader of a session of its own, with a terminal of this size.
    ///
    /// # Errors
    /// There is no terminal, or the program cannot be started.
    pub fn start(command: &Command, columns: u16, rows: u16) -> Result<Self> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(Some(&size), None).context("open a pseudo-terminal")?;
        let side = |fd: &OwnedFd| -> Result<Stdio> { Ok(Stdio::from(fd.try_clone()?)) };
        // setsid makes the terminal the controlling one, so that Ctrl-C and resizing reach the program.
        let mut started = Command::new("setsid");
        started.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => started.env(name, value),
                None => started.env_remove(name),
            };
        }
        let child = started
            .stdin(side(&pair.slave)?)
            .stdout(side(&pair.slave)?)
            .stderr(side(&pair.slave)?)
            .spawn()
            .context("start a program on a terminal")?;
        drop(pair.slave);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let keys = File::from(pair.master);
        let mut output = keys.try_clone()?;
        let shared = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO: the last program on the terminal is gone.
            while let Ok(read @ 1..) = output.read(&mut buffer) {
                shared.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..read]);
            }
        });
        Ok(Self { child, keys, screen })
    }

    /// Types.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn type_keys(&mut self, keys: &str) -> Result<()> {
        self.keys.write_all(keys.as_bytes()).context("type into the terminal")
    }

    /// Everything that was ever shown.
    #[must_use]
    pub fn screen(&self) -> String {
        let bytes = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Where the output stands now, to look for what comes after.
    #[must_use]
    pub fn mark(&self) -> usize {
        self.screen().len()
    }

    /// What was shown after `mark`.
    #[must_use]
    pub fn since(&self, mark: usize) -> String {
        self.screen().get(mark..).unwrap_or_default().to_owned()
    }

    /// Waits until `text` is shown after `mark`; gives all that is shown after it by then.
    ///
    /// # Errors
    /// It is not shown in time.
    pub fn expect(&self, mark: usize, text: &str) -> Result<String> {
        wait::until(&format!("`{text}` in the terminal"), wait::PATIENCE, || {
            let shown = self.since(mark);
            Ok(shown.contains(text).then_some(shown))
        })
        .with_context(|| format!("the terminal showed: {}", self.since(mark)))
    }

    /// Waits until these texts are shown after the mark, each behind the one before.
    ///
    /// # Errors
    /// They are not shown in time.
    pub fn expect_in_turn(&self, mark: usize, texts: &[&str]) -> Result<()> {
        wait::until(&format!("{texts:?} in the terminal"), wait::PATIENCE, || {
            let shown = self.since(mark);
            let rest =
                texts.iter().try_fold(&*shown, |rest, text| rest.split_once(text).map(|(_, rest)| rest));
            Ok(rest.map(drop))
        })
        .with_context(|| format!("the terminal showed: {}", self.since(mark)))
    }

    /// Is the program still running?
    ///
    /// # Errors
    /// Its state cannot be told.
    pub fn is_alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for the program's end; its exit code.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn wait(&mut self) -> Result<i32> {
        let status = wait::until("the program on the terminal to end", wait::PATIENCE, || {
            Ok(self.child.try_wait()?)
        })?;
        Ok(status.code().unwrap_or(-1))
    }

    /// Changes the window's size, as dragging its corner does.
    ///
    /// # Errors
    /// `stty` refused.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let status = Command::new("stty")
            .args(["cols", &columns.to_string(), "rows", &rows.to_string()])
            .stdin(Stdio::from(self.keys.try_clone()?))
            .status()?;
        anyhow::ensure!(status.success(), "stty could not resize the terminal");
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
