//! The fuzz targets of bundles and of the compiler, the same inputs in every run.

use sallyport_policy::{Bundle, Policy, fuzz_bundle, fuzz_compiler};

/// A bundle of every kind of file, at which bytes are changed below.
const SEED: &[u8] = b"name = \"x\"\nschema = 2\n\0[{\"uid\": {\"type\": \"Group\", \"id\": \"g\"}, \"attrs\": {}, \"parents\": []}]\0\
    @id(\"a\")\n@reason(\"r\")\nforbid (principal in Group::\"g\", action == Action::\"exec\", resource)\nwhen { context.path like \"/a*\" || context.args.contains(\"-x\") };\n\
    @id(\"b\") permit (principal, action, resource);\0[people.p]\nuser = \"p\"\ngroups = [\"g\"]\n[[case]]\nwho = \"p\"\nwhere = \"h\"\nas = \"u\"\nexec = \"/a\"\nexpect = \"deny\"\n";

#[test]
fn the_seed_loads() {
    let files: Vec<&[u8]> = SEED.split(|byte| *byte == 0).collect();
    let names = ["bundle.toml", "entities.json", "rules.cedar", "tests/t.toml"];
    let bundle =
        Bundle::from_files(names.into_iter().zip(files.iter().map(|file| file.to_vec()))).expect("files");
    let policy = Policy::load(&bundle).unwrap_or_else(|faults| panic!("{faults}"));
    assert!(policy.run_tests(&bundle).passed());
    fuzz_bundle(&bundle.to_archive());
}

#[test]
fn changed_bytes_never_make_it_panic() {
    fuzz_bundle(SEED);
    fuzz_bundle(b"");
    // Every seventh cut, and at every eleventh byte a few others in its place.
    for at in (0..SEED.len()).step_by(7) {
        fuzz_bundle(&SEED[..at]);
    }
    for at in (0..SEED.len()).step_by(11) {
        for byte in [b'"', b'\\', b'(', b';', 0, 0xff, b'\n', b'@', b'*'] {
            let mut changed = SEED.to_vec();
            changed[at] = byte;
            fuzz_bundle(&changed);
        }
    }
}

#[test]
fn many_sets_of_rules_agree_with_cedar_and_idle_rules_change_nothing() {
    // SplitMix64, so that every run asks the same.
    let mut state = 0x5a11_u64;
    let mut next = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut idle = 0;
    for _ in 0..150 {
        let bytes: Vec<u8> = (0..12).flat_map(|_| next().to_le_bytes()).collect();
        idle += fuzz_compiler(&bytes);
    }
    assert!(idle > 5, "only {idle} idle rules were found: the comparison hardly tried anything");
}
