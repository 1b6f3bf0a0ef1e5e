//! The tests of the kernel programs on Debian kernels in QEMU: in LSM mode, which not every machine that runs tests has, and on
//! a kernel without it. `xtask` boots them; the guest's verdict decides.
//!
//! Software emulation is slow, so this is a choice of them. `cargo xtask vm --program FILE` runs all of a test program, its races
//! with as many calls as `--flips` says.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The folder of the test programs: this one's own.
fn folder() -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    own.parent().expect("a folder").to_owned()
}

/// The test program that was built last under this name.
fn program(name: &str) -> PathBuf {
    let is_it = |path: &Path| {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let hash = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
        hash.is_some_and(|hash| hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    let found = std::fs::read_dir(folder()).expect("test programs").flatten().map(|entry| entry.path());
    let newest = found.filter(|path| is_it(path)).max_by_key(|path| {
        std::fs::metadata(path).and_then(|data| data.modified()).expect("when it was built")
    });
    newest.unwrap_or_else(|| panic!("`{name}` has not been built: `cargo build --workspace --tests`"))
}

/// `cargo xtask test` says where xtask is; a bare `cargo nextest run` finds it beside the programs.
fn xtask() -> PathBuf {
    match std::env::var_os("SALLYPORT_XTASK") {
        Some(path) => path.into(),
        None => folder().parent().expect("a folder").join("xtask"),
    }
}

/// Runs test programs in a guest. How many tests passed there.
fn in_guest(kernel: &str, programs: &[&str], arguments: &[&str], boot_parameter: Option<&str>) -> u64 {
    let mut vm = Command::new(xtask());
    vm.args(["vm", "--no-build", "--kernel", kernel]);
    for name in programs {
        vm.arg("--program").arg(program(name));
    }
    for argument in arguments {
        vm.args(["--argument", argument]);
    }
    if let Some(parameter) = boot_parameter {
        vm.args(["--boot-parameter", parameter]);
    }
    let mut vm = vm.stdout(Stdio::piped()).spawn().expect("xtask; build it: `cargo build --workspace`");
    let mut passed = 0;
    let mut results = 0;
    for line in BufReader::new(vm.stdout.take().expect("stdout")).lines() {
        let line = line.expect("text");
        println!("{line}");
        // `test result: ok. 12 passed; 0 failed; …`
        if let Some((_, result)) = line.split_once("test result: ok. ") {
            passed +=
                result.split(' ').next().and_then(|number| number.parse::<u64>().ok()).expect("a number");
            results += 1;
        }
    }
    assert!(
        vm.wait().expect("wait").success(),
        "tests failed on kernel {kernel}; see the lines that begin with ==="
    );
    assert_eq!(results, programs.len(), "not every test program came to its end");
    println!("{passed} tests of {programs:?} passed on kernel {kernel}");
    passed
}

#[test]
fn programs_files_tags_and_guards_hold_on_debian_6_12_with_lsm() {
    let tests = [
        "exec::",
        "files::",
        "guard::",
        "double_fork_and_new_session",
        "nobody_waits_for_have_a_limit",
        "tags_and_counts_are_gone",
        "a_tag_that_was_left_behind",
    ];
    let passed = in_guest("6.12", &["kernel"], &tests, None);
    assert!(passed >= 28, "only {passed} tests ran: have they been renamed?");
}

#[test]
fn without_bpf_among_the_security_modules_debian_6_1_enforces_and_says_why() {
    let parameter = "lsm=lockdown,capability,yama,apparmor";
    let passed = in_guest("6.1", &["kernel"], &["on_a_kernel_booted_without_bpf"], Some(parameter));
    assert_eq!(passed, 1, "the test did not run: has it been renamed?");
}
