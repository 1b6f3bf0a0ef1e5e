//! What a person may reach, as text.

use crate::authorize::TargetInfo;
use std::fmt::Write;

/// The table, with commands to paste. `port` 22 is left out of them.
#[must_use]
pub fn table(user: &str, targets: &[TargetInfo], gateway_host: &str, port: u16) -> String {
    let mut text = String::new();
    if targets.is_empty() {
        // Writing to a string cannot fail, here and below.
        let _ =
            writeln!(text, "Signed in as {user}. Policy lets you reach no host; ask whoever looks after it.");
        return text;
    }
    let _ = writeln!(text, "Signed in as {user}. You may reach:\n");
    let port = if port == 22 { String::new() } else { format!("-p {port} ") };
    let mut rows = vec![["HOST", "USER", "STATE", "ENFORCEMENT", "COMMAND"].map(str::to_owned)];
    for target in targets {
        let state = if target.connected { "connected" } else { "offline" };
        let mode = if target.mode.is_empty() { "-" } else { &target.mode };
        for local_user in &target.local_users {
            rows.push([
                target.host.clone(),
                local_user.clone(),
                state.to_owned(),
                mode.to_owned(),
                format!("ssh {port}{}+{local_user}@{gateway_host}", target.host),
            ]);
        }
    }
    let mut widths = [0; 5];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in &rows {
        let mut line = String::from(" ");
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, " {cell:width$} ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted() {
        let targets = [TargetInfo {
            host: "web-1".into(),
            local_users: vec!["root".into(), "deploy".into()],
            connected: true,
            mode: "lsm".into(),
            kernel: "6.1".into(),
            policy_version: String::new(),
            policy_trouble: String::new(),
        }];
        let text = table("alice", &targets, "gw.example.org", 2222);
        assert!(text.contains("ssh -p 2222 web-1+root@gw.example.org\n"), "{text}");
        assert!(table("alice", &targets, "gw", 22).contains("ssh web-1+deploy@gw\n"));
        assert!(table("alice", &[], "gw", 22).contains("no host"));
    }
}
