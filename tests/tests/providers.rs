//! The two OpenID providers themselves, through the harness's browser: the development issuer must be no
//! easier than the certified one where Sallyport relies on it.

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sallyport_e2e::Provider;
use sallyport_e2e::browser::Browser;
use sallyport_e2e::openid::OpenId;
use sallyport_e2e::web;
use serde_json::Value;
use sha2::{Digest, Sha256};
use url::Url;

const BOTH: [Provider; 2] = [Provider::Development, Provider::Certified];

fn post(url: &str, fields: &[(&str, &str)]) -> Result<Value> {
    let fields: Vec<(String, String)> =
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let page = web::request(&Url::parse(url)?, "", Some(&fields))?;
    serde_json::from_str(&page.body).with_context(|| format!("{url} said {}", page.body))
}

fn discovery(openid: &OpenId) -> Result<Value> {
    let url = Url::parse(&format!("{}/.well-known/openid-configuration", openid.issuer))?;
    Ok(serde_json::from_str(&web::request(&url, "", None)?.body)?)
}

fn claims(token: &Value) -> Result<Value> {
    let token = token["id_token"].as_str().with_context(|| format!("no id token: {token}"))?;
    let middle = token.split('.').nth(1).context("not a token")?;
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(middle)?)?)
}

#[test]
fn both_serve_the_device_flow() -> Result<()> {
    for provider in BOTH {
        let folder = tempfile::tempdir()?;
        let openid = OpenId::start(provider, folder.path())?;
        let known = discovery(&openid)?;
        let at = |name: &str| known[name].as_str().unwrap_or_default().to_owned();
        let start = [("client_id", "sallyport"), ("scope", "openid email profile groups")];
        let device = post(&at("device_authorization_endpoint"), &start)?;
        let poll = || {
            post(
                &at("token_endpoint"),
                &[
                    ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
                    ("device_code", device["device_code"].as_str().unwrap_or_default()),
                    ("client_id", "sallyport"),
                ],
            )
        };
        assert_eq!(poll()?["error"], "authorization_pending", "{provider:?}");
        let link = device["verification_uri_complete"].as_str().context("no link")?;
        assert_eq!(openid.device_link(&format!("go to {link}\n")).as_deref(), Some(link));
        assert_eq!(openid.device_link(&format!("go to {link}")), None, "may be cut");
        openid.approve(link, "alice")?;
        let claims = claims(&poll()?)?;
        assert_eq!(claims["email"], "alice@example.org", "{provider:?}: {claims}");
        assert_eq!(claims["groups"], serde_json::json!(["engineers"]), "{provider:?}: {claims}");
        assert_eq!(claims["iss"], openid.issuer.as_str());
    }
    Ok(())
}

#[test]
fn both_demand_pkce_and_give_the_code_to_a_loopback_redirect() -> Result<()> {
    for provider in BOTH {
        let folder = tempfile::tempdir()?;
        let openid = OpenId::start(provider, folder.path())?;
        let known = discovery(&openid)?;
        let (verifier, nonce) = ("a-verifier-that-is-long-enough-for-rfc-7636-43c", "n-0S6");
        // Nobody listens there: the browser's last request fails, and its address has the code.
        let redirect = "http://127.0.0.1:9/callback";
        let mut address = Url::parse(known["authorization_endpoint"].as_str().context("no endpoint")?)?;
        address.query_pairs_mut().extend_pairs([
            ("response_type", "code"),
            ("client_id", "sallyport-cli"),
            ("redirect_uri", redirect),
            ("scope", "openid email groups"),
            ("state", "st"),
            ("nonce", nonce),
        ]);
        let without = Browser::new().sign_in(address.as_str(), "bob");
        assert!(without.is_err(), "{provider:?} let a client in without PKCE");
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()));
        address
            .query_pairs_mut()
            .extend_pairs([("code_challenge", challenge.as_str()), ("code_challenge_method", "S256")]);
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let redirect = format!("http://127.0.0.1:{}/callback", listener.local_addr()?.port());
        let address = address.as_str().replace(
            "127.0.0.1%3A9%2F",
            &redirect[7..].replace("/callback", "/").replace(':', "%3A").replace('/', "%2F"),
        );
        let answered = std::thread::spawn(move || -> Result<String> {
            use std::io::{BufRead, Write};
            let (mut stream, _) = listener.accept()?;
            let mut line = String::new();
            std::io::BufReader::new(stream.try_clone()?).read_line(&mut line)?;
            stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
            Ok(line)
        });
        Browser::new().sign_in(&address, "bob").with_context(|| format!("{provider:?}"))?;
        let line = answered.join().map_err(|_| anyhow::anyhow!("the listener panicked"))??;
        let target = line.split(' ').nth(1).context("no request")?;
        let query = Url::parse(&format!("http://x{target}"))?;
        let code = query.query_pairs().find(|(name, _)| name == "code").context("no code")?.1.into_owned();
        let token = post(
            known["token_endpoint"].as_str().context("no endpoint")?,
            &[
                ("grant_type", "authorization_code"),
                ("code", &code),
                ("redirect_uri", &redirect),
                ("client_id", "sallyport-cli"),
                ("code_verifier", verifier),
            ],
        )?;
        let claims = claims(&token)?;
        assert_eq!(claims["email"], "bob@example.org", "{provider:?}");
        assert_eq!(claims["nonce"], nonce, "{provider:?}");
    }
    Ok(())
}
