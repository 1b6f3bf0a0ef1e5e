//! The SSH door with the real OpenSSH client in front of it. Sign-in is real, against a provider in this process; hosts are local
//! processes.

mod desk;
mod host;
mod hostile;
mod provider;
mod rig;
mod sessions;
mod sign_in;
mod stalls;

/// For trying by hand: `cargo test -p sallyport-gateway --test ssh_door by_hand -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "serves until it is interrupted"]
async fn by_hand() {
    let rig = rig::Rig::start().await;
    let key = rig.key("key");
    println!("ssh {} -p {} web-1@127.0.0.1", rig.options(Some(&key)).join(" "), rig.port);
    std::future::pending::<()>().await;
}
