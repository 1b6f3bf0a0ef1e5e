//! The configuration that `~/.ssh/config` includes: one block per target, and one for the gateway itself.
//!
//! Names come from a server. What is not a plain name is left out: a line break in a name would be a directive
//! of its own, and `ProxyCommand` runs programs.

use std::{fmt::Write as _, path::Path};

use super::SshFiles;
use crate::args::Via;

/// A target, as far as ssh cares.
#[derive(Clone, Debug)]
pub struct SshTarget {
    /// Its name.
    pub host: String,
    /// The local users allowed there.
    pub local_users: Vec<String>,
}

/// The gateway's SSH door.
#[derive(Clone, Debug)]
pub struct SshDoor {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// The configuration, and the names that were left out because they are not plain.
#[derive(Debug)]
pub struct Rendered {
    /// The file's content.
    pub text: String,
    /// Names left out.
    pub left_out: Vec<String>,
}

/// A name that means only itself in a configuration: no blanks, quotes, patterns or tokens, and no option.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('-')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

fn is_plain_address(name: &str) -> bool {
    is_plain(name) || name.parse::<std::net::IpAddr>().is_ok()
}

/// A path as one argument: quoted, with `%` doubled because ssh expands tokens in it.
#[must_use]
pub fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%"))
}

/// The name of the block for the gateway itself.
pub const GATEWAY: &str = "sallyport-gateway";

/// Renders the configuration.
#[must_use]
pub fn render(files: &SshFiles, door: &SshDoor, targets: &[SshTarget], via: Via) -> Rendered {
    let mut left_out = Vec::new();
    let mut text = "# Written by `sallyport`; it is replaced at the next sign-in.\n".to_owned();
    if !is_plain_address(&door.host) {
        left_out.push(door.host.clone());
        return Rendered { text, left_out };
    }
    let trust = format!(
        "  IdentityFile {}\n  IdentitiesOnly yes\n  CertificateFile {}\n  UserKnownHostsFile {}\n  StrictHostKeyChecking yes\n",
        quoted(&files.key()),
        quoted(&files.certificate()),
        quoted(&files.known_hosts()),
    );
    let door_lines = format!("  HostName {}\n  Port {}\n", door.host, door.port);
    let mut block = |head: &str, lines: &str| {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n{head}\n{lines}{trust}");
    };
    block(&format!("Host {GATEWAY}"), &door_lines);
    for target in targets {
        let host = &target.host;
        if !is_plain(host) || host == GATEWAY {
            left_out.push(host.clone());
            continue;
        }
        let (plain, odd): (Vec<&String>, Vec<&String>) =
            target.local_users.iter().partition(|user| is_plain(user));
        left_out.extend(odd.into_iter().map(|user| format!("{user} on {host}")));
        // With several local users the gateway asks or says which there are.
        let only = if let [user] = plain.as_slice() { Some(user.as_str()) } else { None };
        match via {
            Via::Direct => {
                // `ssh root@web-1`: the user name is taken, so the gateway cannot learn the target from it. A
                // jump says both. `Match user` also holds for somebody whose name here is a local user's name
                // there; `User` keeps the block below from applying to them.
                for user in &plain {
                    let head = format!("Match originalhost {host} user {user}");
                    let jump =
                        format!("  User {user}\n  HostName {host}\n  Port 22\n  ProxyJump {GATEWAY}\n");
                    block(&head, &jump);
                }
                let user = only.map_or_else(|| host.clone(), |user| format!("{host}+{user}"));
                block(&format!("Host {host}"), &format!("  User {user}\n{door_lines}"));
                for user in &plain {
                    let name = format!("{host}+{user}");
                    block(&format!("Host {name}"), &format!("  User {name}\n{door_lines}"));
                }
            }
            Via::Jump => {
                let user = only.map(|user| format!("  User {user}\n")).unwrap_or_default();
                block(&format!("Host {host}"), &format!("{user}  ProxyJump {GATEWAY}\n"));
            }
        }
    }
    Rendered { text, left_out }
}

/// The known-hosts line: host keys signed by the gateway's CA are right, for the gateway and for every target
/// (with `ProxyJump`, a target's name is what ssh checks).
#[must_use]
pub fn known_hosts(ca_line: &str) -> String {
    format!("@cert-authority * {ca_line}\n")
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, process::Command};

    use super::*;

    fn files() -> SshFiles {
        let ssh = PathBuf::from("/home/a b/.ssh");
        SshFiles { dir: ssh.join("sallyport"), user_config: ssh.join("config") }
    }

    fn door() -> SshDoor {
        SshDoor { host: "gw.example.org".to_owned(), port: 2222 }
    }

    fn target(host: &str, users: &[&str]) -> SshTarget {
        SshTarget { host: host.to_owned(), local_users: users.iter().map(|&user| user.to_owned()).collect() }
    }

    /// What OpenSSH itself makes of it.
    fn asked(rendered: &Rendered, args: &[&str]) -> String {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("config");
        std::fs::write(&path, &rendered.text).expect("written");
        let output =
            Command::new("ssh").arg("-G").arg("-F").arg(&path).args(args).output().expect("ssh runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    #[test]
    fn openssh_understands_it() {
        let rendered = render(
            &files(),
            &door(),
            &[target("web-1", &["srv"]), target("db", &["app", "dba"])],
            Via::Direct,
        );
        assert!(rendered.left_out.is_empty());
        let shown = asked(&rendered, &["web-1"]);
        for line in [
            "hostname gw.example.org",
            "port 2222",
            "user web-1+srv",
            "identitiesonly yes",
            "identityfile /home/a b/.ssh/sallyport/key",
            "certificatefile /home/a b/.ssh/sallyport/key-cert.pub",
            "userknownhostsfile /home/a b/.ssh/sallyport/known_hosts",
            "stricthostkeychecking true",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line}\n{shown}");
        }
        assert!(
            asked(&rendered, &["db"]).contains("\nuser db\n")
                || asked(&rendered, &["db"]).starts_with("user db\n")
        );
        let named = asked(&rendered, &["dba@db"]);
        for line in ["user dba", "hostname db", "port 22", &format!("proxyjump {GATEWAY}")] {
            assert!(named.lines().any(|shown| shown == line), "{line}\n{named}");
        }
        let me = nix::unistd::User::from_uid(nix::unistd::getuid()).expect("asked").expect("known").name;
        let rendered =
            render(&files(), &door(), &[target("own", &[&me]), target("db", &["dba"])], Via::Direct);
        let own = asked(&rendered, &["own"]);
        for line in [format!("user {me}"), "hostname own".to_owned(), format!("proxyjump {GATEWAY}")] {
            assert!(own.lines().any(|shown| shown == line), "{line}\n{own}");
        }
        assert!(asked(&rendered, &["db+dba"]).contains("user db+dba\n"));
    }

    #[test]
    fn jumping_keeps_the_user_name() {
        let rendered = render(&files(), &door(), &[target("web-1", &["root", "app"])], Via::Jump);
        let shown = asked(&rendered, &["app@web-1"]);
        assert!(shown.contains("user app\n") && shown.contains(&format!("proxyjump {GATEWAY}\n")), "{shown}");
        assert!(asked(&rendered, &[GATEWAY]).contains("port 2222\n"));
    }

    #[test]
    fn hostile_names_stay_out() {
        let evil = "x\n  ProxyCommand touch /tmp/pwned";
        for host in [evil, "*", "a b", "", "-oProxyCommand=x", "!web", "a%h", GATEWAY] {
            let rendered = render(&files(), &door(), &[target(host, &["root"])], Via::Direct);
            assert_eq!(rendered.left_out, [host.to_owned()], "{host:?}");
            assert!(!rendered.text.contains("ProxyCommand"));
        }
        let rendered = render(&files(), &door(), &[target("web-1", &[evil, "root"])], Via::Direct);
        assert!(!rendered.text.contains("ProxyCommand") && rendered.text.contains("User web-1+root"));
        let bad_door = SshDoor { host: evil.to_owned(), port: 1 };
        let rendered = render(&files(), &bad_door, &[target("web-1", &["root"])], Via::Direct);
        assert!(!rendered.text.contains("Host "));
    }
}
