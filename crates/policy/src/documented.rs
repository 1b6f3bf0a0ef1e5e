//! The limits in docs/policy.md are those of the code.

use sallyport_sensor_abi::{ARENA_WORDS, PATH_BYTES, names::MAX_NAMES};

use crate::{archive, compile, entities, load, residual, rule};

/// `20000` as `20,000`.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let parts: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|chunk| std::str::from_utf8(chunk).expect("digits")).collect();
    parts.join(",")
}

#[test]
fn the_guide_knows_the_limits() {
    let page = include_str!("../../../docs/policy.md");
    assert_eq!(compile::limits::MAX_WORDS, ARENA_WORDS as usize / 2);
    for (what, limit) in [
        ("size of a bundle", format!("{} MiB", archive::MAX_BYTES >> 20)),
        ("files in a bundle", grouped(archive::MAX_FILES)),
        ("depth of folders", grouped(archive::MAX_DEPTH)),
        ("rules", grouped(load::MAX_RULES)),
        ("groups, host groups and hosts", grouped(entities::MAX_ENTITIES)),
        ("depth of a condition", grouped(residual::MAX_NESTING)),
        ("length of an id", format!("{} bytes", rule::MAX_ID)),
        ("length of a reason or contact", format!("{} characters", rule::MAX_TEXT)),
        (
            "tables for one person on one host as one local user",
            format!("{} MiB", (compile::limits::MAX_WORDS * 4) >> 20),
        ),
        ("names of files that forbids register on a host", grouped(MAX_NAMES as usize)),
        ("length of a path that is judged", format!("{} bytes", grouped(PATH_BYTES))),
    ] {
        let row = format!("| {what} | {limit} |");
        assert!(page.contains(&row), "docs/policy.md does not say `{row}`");
    }
}
