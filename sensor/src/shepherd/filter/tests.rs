//! The programs, run by an interpreter of the instructions that they are made of.

use super::*;

const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;
const KILLED: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_I386`, or of this processor and another one.
const OWN: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
const OTHER: u32 = 0x4000_0003;

const ALL: Refusals = Refusals { operations: u32::MAX, enclosed: true, judgement: true };

/// What the kernel makes of one program.
fn run(program: &BpfProgram, arch: u32, number: u32, arguments: &[u64]) -> u32 {
    let mut data = [0_u32; 16];
    (data[0], data[1]) = (number, arch);
    for (n, argument) in arguments.iter().enumerate() {
        (data[4 + n * 2], data[5 + n * 2]) = (*argument as u32, (argument >> 32) as u32);
    }
    let (mut at, mut register) = (0, 0);
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        let jump = |holds: bool| usize::from(if holds { jt } else { jf });
        match code {
            0x20 => register = data[k as usize / 4],
            0x54 => register &= k,
            0x05 => at += k as usize,
            0x15 => at += jump(register == k),
            0x25 => at += jump(register > k),
            0x35 => at += jump(register >= k),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// What the kernel makes of all of them: the strictest, as signed numbers, is the least.
fn verdict(refusals: Refusals, arch: u32, number: i64, arguments: &[u64]) -> u32 {
    let filter = compile(refusals, 1_000, 100).expect("it compiles");
    let all = filter.as_root.iter().chain(&filter.as_user);
    let verdicts = all.map(|program| run(program, arch, number as u32, arguments));
    verdicts.min_by_key(|verdict| (*verdict & 0xffff_0000).cast_signed()).unwrap_or(ALLOWED)
}

fn of(operation: u32) -> Refusals {
    Refusals { operations: bit(operation), ..Refusals::default() }
}

#[test]
fn nothing_refused_is_no_filter() {
    for refusals in [
        Refusals::default(),
        // Neither has a call that could be refused without breaking shells.
        Refusals {
            operations: bit(operation::SIGNAL) | bit(operation::RECEIVE_SOCKET),
            ..Refusals::default()
        },
        Refusals { enclosed: true, ..Refusals::default() },
        of(operation::NETWORK_ADMIN),
    ] {
        let filter = compile(refusals, 0, 0).expect("nothing");
        assert!(filter.as_root.is_empty() && filter.as_user.is_none(), "{refusals:?}");
    }
}

#[test]
fn everything_that_can_be_refused_has_a_call() {
    let plain = verdict_of_all(Refusals { judgement: true, ..Refusals::default() });
    for n in (0..operation::COUNT).filter(|n| FILTERED & bit(*n) != 0) {
        let with = verdict_of_all(Refusals { judgement: true, ..of(n) });
        assert_ne!(plain, with, "{}", operation::NAMES[n as usize]);
    }
}

fn verdict_of_all(refusals: Refusals) -> Vec<u32> {
    let requests = [0x5412, 0x586b];
    let filter = compile(refusals, 1_000, 100).expect("it compiles");
    let programs: Vec<_> = filter.as_root.iter().chain(&filter.as_user).collect();
    let run = |number, request| programs.iter().map(|p| run(p, OWN, number, &[0, request])).min();
    let all = (0..=LAST).flat_map(|number| requests.map(|request| run(number, request)));
    all.map(|verdict| verdict.unwrap_or(ALLOWED)).collect()
}

#[test]
fn ordinary_calls_pass_whatever_is_refused() {
    for (call, arguments) in [
        (libc::SYS_read, [0, 0, 0]),
        (libc::SYS_openat, [0, 0, 0]),
        (libc::SYS_execve, [0, 0, 0]),
        (libc::SYS_kill, [1, 9, 0]),
        (libc::SYS_prctl, [u64::from(libc::PR_SET_NAME.cast_unsigned()), 0, 0]),
        (libc::SYS_rseq, [0, 0, 0]),
        (libc::SYS_openat2, [0, 0, 0]),
        (libc::SYS_clone, [thread_flags(), 0, 0]),
        (libc::SYS_clone, [17, 0, 0]),
        (libc::SYS_unshare, [u64::from(libc::CLONE_FILES.cast_unsigned()), 0, 0]),
        // TCGETS and TIOCSWINSZ.
        (libc::SYS_ioctl, [0, 0x5401, 0]),
        (libc::SYS_ioctl, [0, 0x5414, 0]),
        (libc::SYS_setuid, [1_000, 0, 0]),
        (libc::SYS_setresgid, [100, u64::MAX, 0xffff_ffff]),
    ] {
        assert_eq!(verdict(ALL, OWN, call, &arguments), ALLOWED, "{call} {arguments:x?}");
    }
}

/// As glibc's `pthread_create` asks for it without `clone3`.
fn thread_flags() -> u64 {
    0x003d_0f00
}

#[test]
fn every_namespace_is_refused_in_every_spelling() {
    let only = of(operation::NAMESPACE);
    let flags = [0x2_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];
    for flag in flags {
        assert_eq!(verdict(only, OWN, libc::SYS_clone, &[flag | 17]), EPERM, "{flag:x}");
        // The upper half does not count to the kernel.
        assert_eq!(verdict(only, OWN, libc::SYS_clone, &[flag | 7 << 32]), EPERM, "{flag:x}");
        assert_eq!(verdict(only, OWN, libc::SYS_unshare, &[flag | 0x400]), EPERM, "{flag:x}");
    }
    // A time namespace, and flags that no kernel knows yet.
    for flag in [0x80, 1 << 20, 1 << 40] {
        assert_eq!(verdict(only, OWN, libc::SYS_unshare, &[flag]), EPERM, "{flag:x}");
    }
    assert_eq!(verdict(only, OWN, libc::SYS_clone3, &[0, 0]), ENOSYS);
    assert_eq!(verdict(only, OWN, libc::SYS_setns, &[3, 0]), EPERM);
    assert_eq!(verdict(only, OWN, libc::SYS_open_tree, &[0, 0, 2]), EPERM);
    assert_eq!(verdict(only, OWN, libc::SYS_open_tree, &[0, 0, 1]), ALLOWED);
    // Control: only where it is asked for.
    let other = of(operation::BPF);
    for (call, argument) in
        [(libc::SYS_clone3, 0), (libc::SYS_clone, 0x1000_0000), (libc::SYS_unshare, 0x1000_0000)]
    {
        assert_eq!(verdict(other, OWN, call, &[argument]), ALLOWED, "{call}");
    }
}

#[test]
fn requests_are_compared_as_the_kernel_does() {
    for request in [0x5412, 0xffff_ffff_0000_5412, 0x541c, 0x541d, 0xc038_586b, 0x1234_586b] {
        assert_eq!(verdict(ALL, OWN, libc::SYS_ioctl, &[0, request]), EPERM, "{request:x}");
    }
    let only = of(operation::TERMINAL_INPUT);
    assert_eq!(verdict(only, OWN, libc::SYS_ioctl, &[0, 0xc038_586b]), ALLOWED);
    // Another request with the same low half.
    assert_eq!(verdict(only, OWN, libc::SYS_ioctl, &[0, 0x1_5412]), ALLOWED);
}

#[test]
fn ids_can_be_set_to_what_they_are_and_no_other() {
    let only = of(operation::SET_USER);
    for (call, arguments) in [
        (libc::SYS_setuid, [0, 0, 0]),
        (libc::SYS_setgid, [1_000, 0, 0]),
        (libc::SYS_setreuid, [1_000, 0, 0]),
        (libc::SYS_setresuid, [1_000, 1_000, 0]),
        (libc::SYS_setresuid, [1_000, 7 << 32, 1_000]),
        (libc::SYS_setfsuid, [0, 0, 0]),
        (libc::SYS_setgroups, [0, 0, 0]),
    ] {
        assert_eq!(verdict(only, OWN, call, &arguments), EPERM, "{call} {arguments:x?}");
        assert_eq!(verdict(of(operation::MOUNT), OWN, call, &arguments), ALLOWED, "control");
    }
}

#[test]
fn the_program_that_runs_cannot_be_renamed() {
    let only = Refusals { judgement: true, ..Refusals::default() };
    let set_mm = u64::from(libc::PR_SET_MM.cast_unsigned());
    for (what, expected) in [(13, EPERM), (14, EPERM), (8, ALLOWED)] {
        assert_eq!(verdict(only, OWN, libc::SYS_prctl, &[set_mm, what]), expected, "{what}");
    }
    assert_eq!(verdict(only, OWN, libc::SYS_userfaultfd, &[0]), EPERM);
    assert_eq!(verdict(of(operation::MOUNT), OWN, libc::SYS_userfaultfd, &[0]), ALLOWED, "control");
}

#[test]
fn other_numbers_are_no_way_around() {
    let only = of(operation::MOUNT);
    // Even what would be harmless: nothing of another ABI can be told.
    for number in [20, 21] {
        assert_eq!(verdict(only, OTHER, number, &[]), KILLED, "{number}");
    }
    for number in [39, 165, 539] {
        assert_eq!(verdict(only, OWN, i64::from(X32) | number, &[]), EPERM, "{number}");
    }
    for number in [470, 512, 520, 547, 100_000, i64::from(X32) - 1] {
        assert_eq!(verdict(only, OWN, number, &[]), ENOSYS, "{number}");
    }
    if cfg!(target_arch = "x86_64") {
        for (number, expected) in
            [(336, ALLOWED), (337, ENOSYS), (423, ENOSYS), (424, ALLOWED), (469, ALLOWED)]
        {
            assert_eq!(verdict(only, OWN, number, &[]), expected, "{number}");
        }
    }
}

#[test]
fn it_is_small_enough_for_the_kernel() {
    let filter = compile(ALL, 1_000, 100).expect("it compiles");
    let sizes: Vec<usize> = filter.as_root.iter().chain(&filter.as_user).map(Vec::len).collect();
    assert!(sizes.iter().all(|size| *size < 1_024), "{sizes:?}");
}
