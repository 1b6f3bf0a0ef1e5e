//! `sallyport-dev-issuer`: a small OpenID provider for the demo and for tests. **Never for production.**
//!
//! Anybody who can reach it may sign in as anybody: there are no passwords. It therefore serves loopback
//! addresses only and refuses every other one, is no part of the programs that ship, and says what it is on
//! each page and in its tokens' issuer. It speaks what Sallyport needs: discovery, ES256 keys, the
//! authorization code flow with PKCE (RFC 7636, S256 only), the device flow (RFC 8628), userinfo, and the tokens of CI jobs
//! as GitHub and GitLab give them (RS256).

mod config;
mod grants;
mod jobs;
mod pages;
mod rsa;
mod server;
mod tokens;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;

#[derive(Parser)]
#[command(
    name = "sallyport-dev-issuer",
    about = "A development OpenID provider without passwords: loopback only, never for production"
)]
struct Arguments {
    /// JSON: { "listen": "127.0.0.1:0", "users": {…}, "gateway": {…}, "cli": {…} }
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let text = std::fs::read_to_string(&arguments.config)
        .with_context(|| format!("read {}", arguments.config.display()))?;
    let config = config::Config::parse(&text)?;
    let listener = tokio::net::TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("listen on {}", config.listen))?;
    let issuer = format!("http://{}", listener.local_addr()?);
    eprintln!("DEVELOPMENT identity provider: anybody may sign in as anybody. Never for production.");
    println!("{}", serde_json::json!({ "issuer": issuer }));
    server::serve(listener, server::Issuer::new(issuer, config)?).await
}
