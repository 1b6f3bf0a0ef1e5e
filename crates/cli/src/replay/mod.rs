//! Playing a recording: what was shown, and what the kernel saw meanwhile.
//!
//! `timeline` puts both in order, `player` says when what is due (pure: time and keys in, items out), `screen` lets
//! only harmless terminal sequences through, `render` prints, `tty` is the terminal.

pub mod player;
pub mod render;
pub mod screen;
pub mod timeline;
pub mod tty;
