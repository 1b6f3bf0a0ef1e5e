//! Opening the person's browser, where there is one.

use std::process::{Command, Stdio};

/// Tries to open an address; says whether a browser seems to be starting. `BROWSER` is tried first.
///
/// The address is an argument of the browser: it holds no secret (the verifier of PKCE never leaves this
/// process).
pub fn open(address: &str) -> bool {
    let graphical = cfg!(target_os = "macos")
        || ["DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "WSL_DISTRO_NAME"]
            .iter()
            .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    if !graphical {
        return false;
    }
    let chosen =
        std::env::var("BROWSER").ok().filter(|name| !name.is_empty() && !name.contains([' ', ':', '%']));
    let known: &[&str] = if cfg!(target_os = "macos") {
        &["open"]
    } else {
        &["xdg-open", "wslview", "sensible-browser", "x-www-browser"]
    };
    chosen.as_deref().into_iter().chain(known.iter().copied()).any(|program| {
        let started = Command::new(program)
            .arg(address)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match started {
            Ok(mut child) => {
                // Reaps it; what it answers does not matter, as the address is printed in any case.
                std::thread::spawn(move || child.wait());
                true
            }
            Err(_) => false,
        }
    })
}
