//! `sallyport login` and the door, before a real gateway with the demonstration policy. No host is connected to it.

use crate::rig::{Rig, text};
use sallyport_contract::v1::SignInRequest;
use sallyport_gateway::Gateway;
use sallyport_gateway::config::Config;
use sallyport_gateway::console::SignIn;
use sallyport_gateway::identity::desk::Desk;
use serde_json::json;
use std::net::SocketAddr;

async fn gateway(dir: &std::path::Path) -> Gateway {
    let bundle = concat!(env!("CARGO_MANIFEST_DIR"), "/../policies/demo");
    let config = format!(
        "name = \"gw.test\"\nstate_dir = \"{}\"\n[ssh]\nlisten = \"127.0.0.1:2222\"\n[grpc]\nlisten = \"127.0.0.1:2223\"\nnames = [\"localhost\"]\n[openid]\nissuer = \"https://unused.test\"\nclient_id = \"x\"\n[policy]\nbundle = \"{bundle}\"\n",
        dir.join("state").display()
    );
    Gateway::start(Config::parse(&config).expect("valid")).await.expect("starts")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_leaves_a_certificate_that_policy_then_judges() {
    let dir = tempfile::tempdir().expect("temp dir");
    let gateway = gateway(dir.path()).await;
    let rig = Rig::before(&gateway).await;
    rig.provider.state.lock().expect("lock").userinfo = json!({"sub": "u1", "groups": ["engineers"]});
    let desk = Desk {
        openid: rig.door.openid.clone(),
        credentials: rig.door.credentials.clone(),
        authority: rig.door.authority.clone(),
        authorizer: gateway.authorizer.clone(),
        ssh: rig.door.config.clone(),
        gateway_name: "gw.test".to_owned(),
    };
    let options = desk.options();
    assert_eq!((options.client_id.as_str(), options.ssh_host.as_str()), ("sallyport-cli", "gw.test"));
    let key = rig.key("login");
    let client: SocketAddr = "192.0.2.1:7".parse().expect("address");
    let request = SignInRequest {
        id_token: rig.provider.token("sallyport-cli", &json!({"nonce": "n"})),
        nonce: "n".to_owned(),
        access_token: "at".to_owned(),
        ssh_public_key: std::fs::read_to_string(key.with_extension("pub")).expect("reads"),
    };
    for wrong in [
        SignInRequest { nonce: "other".to_owned(), ..request.clone() },
        SignInRequest { id_token: "x".repeat(100_000), ..request.clone() },
        SignInRequest { ssh_public_key: "ssh-ed25519 nonsense".to_owned(), ..request.clone() },
        SignInRequest { ssh_public_key: "x".repeat(100_000), ..request.clone() },
    ] {
        assert!(desk.sign_in(&wrong, client).await.is_err());
    }
    let signed_in = desk.sign_in(&request, client).await.expect("good");
    assert_eq!(signed_in.identity.groups, ["engineers"]);
    std::fs::write(rig.path("login-cert.pub"), &signed_in.ssh_certificate).expect("writes");
    let try_it = |target: &'static str| {
        let key = key.clone();
        let rig = &rig;
        async move { rig.ssh(&key, &["-o", "BatchMode=yes", "-l", target, "127.0.0.1", "id"]).await }
    };
    // Permitted, but its sensor is not there.
    let out = try_it("web-1+root").await;
    assert_eq!(out.status.code(), Some(255), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("sallyport: web-1"), "{}", text(&out.stderr));
    // Not permitted.
    for target in ["db-1+root", "web-1+postgres", "nowhere+root"] {
        let out = try_it(target).await;
        assert_eq!(out.status.code(), Some(126), "{target}: {}", text(&out.stderr));
        assert!(out.stdout.is_empty());
    }
    gateway.stop().await;
}
