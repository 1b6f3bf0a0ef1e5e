//! The default is valid; every fault is listed with its key.

use super::*;

#[test]
fn the_default_is_valid() {
    let config = Config::parse(&default_text()).unwrap();
    assert_eq!(config.grpc.names, ["gateway.example.org"]);
    assert_eq!(config.session_limit, Duration::from_secs(12 * 3600));
}

#[test]
fn every_fault_is_listed_with_its_key() {
    let text = default_text()
        .replace("name = \"gateway.example.org\"", "name = \"not a name\"\ncolour = \"blue\"")
        .replace("/var/lib/sallyport-gateway", "relative")
        .replace("session_limit = \"12h\"", "session_limit = \"soon\"")
        .replace("listen = \"0.0.0.0:8443\"", "listne = \"0.0.0.0:8443\"\nnames = [\"a b\"]")
        .replace("listen = \"0.0.0.0:2222\"", "listen = 2222")
        .replace("[policy]", "[policy]\nbundle = \"/does/not/exist\"\nextra = 1");
    let Err(ConfigError::Faults(faults)) = Config::parse(&text) else { panic!("accepted") };
    let text = faults.to_string();
    for key in [
        "  name:",
        "  colour:",
        "  state_dir:",
        "  session_limit:",
        "  grpc.listne:",
        "  grpc.listen:",
        "  grpc.names:",
        "  ssh.listen:",
        "  policy.bundle:",
        "  policy.extra:",
    ] {
        assert_eq!(text.matches(key).count(), 1, "{key} in:\n{text}");
    }
    assert!(text.contains("grpc.listen: is missing; write for example listen = \"0.0.0.0:8443\""), "{text}");
    assert_eq!(faults.len(), 10, "{text}");
}

#[test]
fn nothing_at_all_and_no_toml() {
    let Err(ConfigError::Faults(faults)) = Config::parse("") else { panic!("accepted") };
    assert!(faults.to_string().contains("state_dir: is missing"));
    assert!(matches!(Config::parse("= ="), Err(ConfigError::Syntax(_))));
    let Err(ConfigError::Faults(faults)) = Config::parse("ssh = 3") else { panic!("accepted") };
    assert!(faults.to_string().contains("ssh: must be a section"));
}

#[test]
fn durations() {
    assert_eq!(parse_duration("90s"), Some(Duration::from_secs(90)));
    assert_eq!(parse_duration("7d"), Some(Duration::from_secs(604_800)));
    for bad in ["", "s", "0s", "-1s", "1", "1w", "99999999999999999999d", "1é"] {
        assert_eq!(parse_duration(bad), None, "{bad}");
    }
}
