//! Wrong, expired, revoked, malformed, hostile: a clear error for the one, no effect on the others.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;
use sallyport_e2e::bundles;
use sallyport_e2e::child::{finish, last_lines};
use sallyport_e2e::terminal::Terminal;
use sallyport_e2e::{Stage, StageOptions, events, wait};

const TARGET: &str = "web-1+root";

fn stage() -> Result<Stage> {
    let bundle = bundles::small()?;
    Stage::start(&StageOptions { bundle, ..StageOptions::default() })
}

/// A session that runs while others misbehave, and must not notice.
fn bystander(stage: &mut Stage) -> Result<Terminal> {
    let alice = stage.signed_in("alice")?;
    stage.wait_for_sensor(&alice)?;
    let mut shell = stage.ssh_with_certificate(&alice)?.shell(TARGET)?;
    shell.type_keys("PS1='rea''dy$ '\r")?;
    shell.expect(0, "ready$ ")?;
    Ok(shell)
}

fn is_well(shell: &mut Terminal) -> Result<()> {
    let mark = shell.mark();
    shell.type_keys("echo well-$((40+2))\r")?;
    shell.expect(mark, "well-42").map(drop)
}

#[test]
fn a_wrong_or_used_token_joins_nobody() -> Result<()> {
    let stage = stage()?;
    let token = stage.folder().join("some-token");
    let gateway = format!("https://{}", stage.addresses.grpc);
    let mut tries = 0;
    let mut join = |text: &str, ca: &str| -> Result<(i32, String)> {
        std::fs::write(&token, text)?;
        // A computer that has never joined, each time.
        tries += 1;
        let config = stage.folder().join(format!("other-{tries}.toml"));
        let state = stage.folder().join(format!("other-{tries}"));
        std::fs::write(&config, format!("state_dir = {state:?}\nrun_dir = {:?}\n", state.join("run")))?;
        let mut command = std::process::Command::new(sallyport_e2e::programs::path("sallyport-sensor")?);
        command.args(["join", "--gateway", &gateway, "--ca-sha256", ca, "--token-file"]).arg(&token);
        command.arg("--config").arg(&config);
        let done = finish(&mut command, b"", Duration::from_secs(60))?;
        Ok((done.code(), done.err()))
    };
    let (code, said) = join("not-a-token", &stage.ca_sha256)?;
    assert_ne!(code, 0);
    assert!(said.contains("token"), "says what is wrong: {said}");
    // The right token, but another gateway's certificate: nothing is sent to it.
    let fresh = stage.join_token("web-2")?;
    let (code, said) = join(&fresh, &"0".repeat(64))?;
    assert_ne!(code, 0);
    assert!(said.to_lowercase().contains("ca") || said.contains("certificate"), "{said}");
    // So it is still good, once.
    let (code, said) = join(&fresh, &stage.ca_sha256)?;
    assert_eq!(code, 0, "{said}");
    let (code, said) = join(&fresh, &stage.ca_sha256)?;
    assert_ne!(code, 0, "a token works once");
    assert!(said.contains("token"), "{said}");
    Ok(())
}

#[test]
fn an_expired_certificate_lets_nobody_in() -> Result<()> {
    const LIFE: Duration = Duration::from_secs(30);
    let certificate = format!("{}s", LIFE.as_secs());
    let options = StageOptions { bundle: bundles::small()?, certificate, ..StageOptions::default() };
    let mut stage = Stage::start(&options)?;
    let alice = stage.signed_in("alice")?;
    let signed_in = std::time::Instant::now();
    stage.wait_for_sensor(&alice)?;
    let ssh = stage.ssh_with_certificate(&alice)?;
    let good = ssh.run(TARGET, "id -un")?;
    assert_eq!((good.code(), good.out().as_str()), (0, "root\n"), "the control: {}", good.err());
    // Time is what is being tested: nothing else can be waited for.
    std::thread::sleep((LIFE + Duration::from_secs(2)).saturating_sub(signed_in.elapsed()));
    let late = ssh.run(TARGET, "id -un")?;
    assert_ne!(late.code(), 0);
    assert_eq!(late.out(), "", "nothing ran");
    let asked = alice.run(&["targets"])?;
    assert_eq!(asked.code(), 3, "says to sign in again: {}", asked.err());
    // Signing in again mends both.
    alice.login(&stage.ca_sha256)?;
    assert_eq!(ssh.run(TARGET, "id -un")?.out(), "root\n");
    assert_eq!(alice.run(&["targets"])?.code(), 0);
    Ok(())
}

#[test]
fn a_malformed_policy_is_refused_with_every_fault_and_the_old_one_stays() -> Result<()> {
    let mut stage = stage()?;
    let sam = stage.signed_in("sam")?;
    let mut shell = bystander(&mut stage)?;
    let folder = stage.work("bad-policy")?;
    bundles::write_changed(&folder)?;
    std::fs::write(
        folder.join("one.cedar"),
        "@id(\"a\")\nforbid (principal, action == Action::\"exce\", resource);\n",
    )?;
    std::fs::write(
        folder.join("two.cedar"),
        "@id(\"b\")\nforbid (principal, action == Action::\"exec\", resource)\nwhen { context.pth == 3 };\n",
    )?;
    let path = folder.to_string_lossy().into_owned();
    for command in [&["policy", "check", &path][..], &["policy", "push", &path][..]] {
        let refused = sam.run(command)?;
        let said = format!("{}{}", refused.out(), refused.err());
        assert_ne!(refused.code(), 0, "{command:?}");
        for part in ["one.cedar", "two.cedar", "exce", "pth"] {
            assert!(said.contains(part), "{command:?}: `{part}` in: {said}");
        }
    }
    // The last good version stays in force: `truncate` is still allowed, `dd` still forbidden.
    let work = stage.work("bad-policy-effect")?;
    let mark = shell.mark();
    shell
        .type_keys(&format!("truncate -s 0 {0}/a; dd if=/dev/null of={0}/b; echo e''nd\r", work.display()))?;
    shell.expect(mark, "end\r")?;
    assert!(work.join("a").exists() && !work.join("b").exists());
    is_well(&mut shell)
}

#[test]
fn a_revoked_sensor_is_shut_out_and_says_so() -> Result<()> {
    let mut stage = stage()?;
    let sam = stage.signed_in("sam")?;
    let alice = stage.signed_in("alice")?;
    stage.wait_for_sensor(&alice)?;
    let ssh = stage.ssh_with_certificate(&alice)?;
    assert_eq!(ssh.run(TARGET, "true")?.code(), 0, "the control");
    let revoked = sam.run(&["sensor", "revoke", "web-1", "-r", "stolen"])?;
    assert_eq!(revoked.code(), 0, "{}", revoked.err());
    wait::until("new sessions to be refused", wait::PATIENCE, || {
        let refused = ssh.run(TARGET, "true")?;
        Ok((refused.code() != 0 && refused.err().contains("web-1")).then_some(()))
    })?;
    // It does not come back, not after a restart either.
    stage.sensor()?.kill_hard()?;
    stage.start_sensor()?;
    wait::until("the sensor to say that it was shut out", wait::PATIENCE, || {
        let log = stage.sensor_log(40).to_lowercase();
        Ok((log.contains("revoked") || log.contains("refused")).then_some(()))
    })?;
    assert_ne!(ssh.run(TARGET, "true")?.code(), 0);
    let told = events::all(&sam, &[])?;
    let reason =
        told.iter().filter_map(|entry| entry.record.message.as_deref()).any(|text| text.contains("stolen"));
    assert!(reason, "the log has the reason");
    Ok(())
}

#[test]
fn hostile_peers_harm_nobody_else() -> Result<()> {
    let mut stage = stage()?;
    let mut shell = bystander(&mut stage)?;
    let (ssh, grpc) = (stage.addresses.ssh, stage.addresses.grpc);
    let long = vec![b'A'; 1 << 20];
    let mut packet = b"SSH-2.0-hostile\r\n".to_vec();
    packet.extend_from_slice(&u32::MAX.to_be_bytes());
    packet.extend_from_slice(&[0xff; 4096]);
    let random: Vec<u8> = (0..65_536u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    // A TLS record that announces more than comes; a ClientHello cut in the middle; HTTP/2 without TLS.
    let tls = [&[0x16, 3, 1, 0x40, 0][..], &[1; 100]].concat();
    let http2 = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0xff; 9]].concat();
    for door in [ssh, grpc] {
        for bytes in [&b""[..], b"\r\n", &long, &packet, &random, &tls, &http2, b"GET / HTTP/1.1\r\n\r\n"] {
            poke(door, bytes)?;
        }
    }
    // Behind TLS, which everybody may set up: frames that are none, a stream of a service that needs a client
    // certificate, a header block that never ends. (openssl comes with ca-certificates.)
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let endless =
        [preface.as_slice(), b"\0\0\x01\x01\0\0\0\0\x01\x82", &b"\0\0\x01\x09\0\0\0\0\x01\x82".repeat(5000)]
            .concat();
    let oversize = [preface.as_slice(), b"\xff\xff\xff\x01\x05\0\0\0\x01", &random].concat();
    for bytes in [&random[..], preface, &endless, &oversize] {
        let mut tls = std::process::Command::new("openssl");
        tls.args(["s_client", "-quiet", "-alpn", "h2", "-connect", &grpc.to_string()]);
        let _ = finish(&mut tls, bytes, Duration::from_secs(5));
    }
    // Many at once that say nothing and stay.
    let silent: Vec<TcpStream> = (0..64).map_while(|_| TcpStream::connect(grpc).ok()).collect();
    let silent_ssh: Vec<TcpStream> = (0..16).map_while(|_| TcpStream::connect(ssh).ok()).collect();
    is_well(&mut shell)?;
    let alice = stage.person("alice")?;
    let done = stage.ssh_with_certificate(&alice)?.run(TARGET, "id -un")?;
    assert_eq!((done.code(), done.out().as_str()), (0, "root\n"), "{}", done.err());
    assert_eq!(alice.run(&["targets"])?.code(), 0);
    drop((silent, silent_ssh));
    stage.check()?;
    let log = stage.gateway_log(10_000);
    assert!(!log.contains("panicked"), "{}", last_lines(&log, 20));
    is_well(&mut shell)
}

/// Sends bytes, reads what comes back until the peer hangs up or says nothing more.
fn poke(address: SocketAddr, bytes: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_millis(300)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    // The peer may hang up in the middle, as it should.
    let _ = stream.write_all(bytes);
    let mut answer = [0; 4096];
    while let Ok(1..) = stream.read(&mut answer) {}
    Ok(())
}
