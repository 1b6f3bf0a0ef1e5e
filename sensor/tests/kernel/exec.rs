//! Programs: what is denied leaves no trace, what is allowed runs, and nobody else notices.

use sallyport_sensor_abi::policy::DENY;

use crate::host::Host;
use crate::tables::{BY_ARGS, Tables};

#[tokio::test]
async fn a_forbidden_path_leaves_no_trace() {
    let mut host = Host::start();
    host.session(1, &Tables::allow_all().path("/usr/bin/touch", DENY | 3));
    let script = "/usr/bin/touch made; true";
    assert!(host.run(Some(1), script).ok());
    assert!(!host.file("made").exists(), "the forbidden program ran");
    assert!(host.run(Some(1), "/usr/bin/mkdir dir").ok());
    assert!(host.file("dir").exists(), "an allowed program did not run");
    assert!(host.run(None, script).ok());
    assert!(host.file("made").exists(), "an untagged process was denied");
    for event in host.drain().await {
        println!("{event:?}");
    }
    println!("{:?}", host.kernel.counters());
    host.finish();
}

#[tokio::test]
async fn arguments_are_judged_before_the_first_instruction() {
    let host = Host::start();
    host.session(1, &Tables::allow_all().path("/usr/bin/touch", BY_ARGS).argument("forbidden", DENY | 1));
    assert!(host.run(Some(1), "touch a forbidden b; touch ok").ok());
    assert!(!host.file("a").exists() && !host.file("forbidden").exists(), "it ran");
    assert!(host.file("ok").exists(), "other arguments are allowed");
    assert!(host.run(None, "touch a forbidden b").ok());
    assert!(host.file("forbidden").exists());
    host.finish();
}
