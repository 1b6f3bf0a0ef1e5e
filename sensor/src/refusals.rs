//! Which operations a session's leader gives up for good, from the compiled policy and from what the kernel programs can refuse
//! on this host; and in words what is refused that way and what is forbidden but not enforced.
//!
//! It is settled when a channel starts. [`crate::shepherd::filter`] says how it is done.

use sallyport_policy::SystemDenials;
use sallyport_sensor_abi::policy::operation;

use crate::kernel::{Mode, is_before, uring_has_threads};
use crate::shepherd::enclosure;
use crate::shepherd::filter::{REFUSABLE, Refusals, bit};

/// What this host can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Means {
    /// How the kernel programs enforce.
    pub mode: Mode,
    /// There is a hook for new user namespaces: Linux 6.1.
    pub sees_namespaces: bool,
    /// `io_uring` works in threads of the process that asks, which have its tag: Linux 5.12, and 5.10 since it has 5.15's.
    pub sees_uring: bool,
    /// There are hooks for `io_uring`'s own privileges: Linux 5.16.
    pub sees_uring_privileges: bool,
    /// Processes outside can be closed off.
    pub can_enclose: bool,
}

impl Means {
    /// Of the running kernel.
    #[must_use]
    pub fn of(mode: Mode) -> Self {
        Self {
            mode,
            sees_namespaces: !is_before(6, 1),
            sees_uring: uring_has_threads(),
            sees_uring_privileges: !is_before(5, 16),
            can_enclose: enclosure::is_possible(),
        }
    }
}

/// What a leader gives up, and what is left open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// For the leader.
    pub refusals: Refusals,
    /// Operations that policy forbids, always or to some programs, and that nothing on this host refuses.
    pub gaps: Vec<String>,
}

/// What a session gives up under this policy on this host.
#[must_use]
pub fn plan(denials: &SystemDenials, means: &Means) -> Plan {
    match means.mode {
        Mode::Lsm => beside_hooks(denials, means),
        Mode::Tracepoint => alone(denials, means),
    }
}

/// LSM mode: what has no hook on this kernel.
fn beside_hooks(denials: &SystemDenials, means: &Means) -> Plan {
    let mut unseen = 0;
    if !means.sees_namespaces {
        unseen |= bit(operation::NAMESPACE);
    }
    if !means.sees_uring_privileges {
        unseen |= bit(operation::IO_URING);
    }
    let mut operations = denials.inside.always & unseen;
    if !means.sees_uring {
        // Whatever policy says: it would act without a tag.
        operations |= bit(operation::IO_URING);
    }
    let gaps = names(denials.inside.sometimes & unseen & !operations).map(str::to_owned).collect();
    Plan { refusals: Refusals { operations, ..Refusals::default() }, gaps }
}

/// Tracepoint mode: everything of action `system`.
fn alone(denials: &SystemDenials, means: &Means) -> Plan {
    const TRACE: u32 = bit(operation::TRACE);
    const SIGNAL: u32 = bit(operation::SIGNAL);
    let (inside, outside) = (denials.inside, denials.outside);
    // A domain does both.
    let enclosed = means.can_enclose && outside.always & (TRACE | SIGNAL) == TRACE | SIGNAL;
    let mut operations = inside.always & REFUSABLE | bit(operation::IO_URING);
    if outside.always & TRACE != 0 && !enclosed {
        // The call does not say whose process it is.
        operations |= TRACE;
    }
    let at_all = inside.sometimes | outside.sometimes & (TRACE | SIGNAL | bit(operation::RECEIVE_SOCKET));
    let open = |name: &'static str, n| {
        let (bit, refused) = (bit(n), operations & bit(n) != 0);
        if at_all & bit == 0 {
            return None;
        }
        match n {
            operation::TRACE if enclosed && (refused || inside.sometimes & bit == 0) => None,
            operation::TRACE if enclosed => Some("trace (inside the session)".to_owned()),
            operation::TRACE if refused => Some("trace (by /proc/PID/mem)".to_owned()),
            operation::SIGNAL if enclosed && inside.sometimes & bit == 0 => None,
            operation::SIGNAL if enclosed => Some("signal (inside the session)".to_owned()),
            operation::KERNEL_ACCESS if refused => {
                Some("kernel_access (but for raw memory and ports)".to_owned())
            }
            _ if refused => None,
            _ => Some(name.to_owned()),
        }
    };
    let gaps = operation::NAMES.into_iter().zip(0..).filter_map(|(name, n)| open(name, n)).collect();
    Plan { refusals: Refusals { operations, enclosed, judgement: true }, gaps }
}

impl Plan {
    /// For the session's first line; empty if there is nothing to say.
    #[must_use]
    pub fn text(&self) -> String {
        let mut given_up: Vec<&str> = names(self.refusals.operations & REFUSABLE).collect();
        if self.refusals.enclosed {
            given_up.push("signal and trace (outside of this channel)");
        }
        let part = |what: &str, list: String| {
            if list.is_empty() { String::new() } else { format!("; {what}: {list}") }
        };
        part("refused to all programs until the end", given_up.join(", "))
            + &part("forbidden but not enforced here", self.gaps.join(", "))
    }
}

/// What `doctor` says of it.
#[must_use]
pub fn limits(means: &Means) -> Vec<String> {
    let mut limits = Vec::new();
    if *means == (Means { can_enclose: means.can_enclose, ..Means::seeing_all(Mode::Lsm) }) {
        return limits;
    }
    match means.mode {
        Mode::Lsm => {
            if !means.sees_namespaces {
                limits.push("before Linux 6.1 there is no hook for new user namespaces: where policy forbids them to every program, the session gives up namespaces by a seccomp filter; where it forbids them to some programs, that is not enforced".to_owned());
            }
            if !means.sees_uring {
                limits.push("this kernel's io_uring works in kernel threads, which do not carry the session's tag (before Linux 5.12): sessions cannot use it".to_owned());
            } else if !means.sees_uring_privileges {
                limits.push("before Linux 5.16 there are no hooks for io_uring's privileges: where policy forbids them to every program, the session gives up io_uring".to_owned());
            }
        }
        Mode::Tracepoint => {
            limits.push("what policy forbids of action `system` is given up by the session's first process (seccomp, Landlock, capabilities): for all programs alike, not by calling program; what cannot be given up (receive_socket, signals inside the session, most of kernel_access) is named at the start of the session".to_owned());
            limits.push("sessions cannot use io_uring or userfaultfd".to_owned());
            limits.push("a file is refused by no means: Landlock can only permit whole folders, not forbid single files".to_owned());
            limits.push(if means.can_enclose {
                "where policy forbids to signal and trace processes outside, the session's other channels count as outside".to_owned()
            } else {
                "without Landlock of Linux 6.12 signals to processes outside are not refused, nor is tracing them by /proc/PID/mem; ptrace and the like are refused altogether where tracing processes outside is forbidden".to_owned()
            });
        }
    }
    limits.push("what a session gave up stays so until it ends: a policy that is pushed meanwhile changes the rest, not that".to_owned());
    limits.push("where a session gives something up by seccomp, 32-bit programs are killed, and system calls newer than Linux 6.18's do not exist; such refusals are not recorded".to_owned());
    limits
}

impl Means {
    /// A kernel with all hooks.
    const fn seeing_all(mode: Mode) -> Self {
        Self { mode, sees_namespaces: true, sees_uring: true, sees_uring_privileges: true, can_enclose: true }
    }
}

fn names(operations: u32) -> impl Iterator<Item = &'static str> {
    operation::NAMES
        .into_iter()
        .zip(0..)
        .filter(move |(_, n)| operations & bit(*n) != 0)
        .map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use sallyport_policy::Denials;

    use super::*;

    const TRACEPOINT: Means = Means::seeing_all(Mode::Tracepoint);

    fn bits(operations: &[u32]) -> u32 {
        operations.iter().map(|n| bit(*n)).sum()
    }

    fn denials(always_inside: &[u32], always_outside: &[u32], sometimes: &[u32]) -> SystemDenials {
        let of = |always: u32| Denials { always, sometimes: always | bits(sometimes) };
        SystemDenials {
            inside: of(bits(always_inside)),
            outside: of(bits(always_outside) | bits(always_inside)),
        }
    }

    #[test]
    fn with_all_hooks_nothing_is_given_up() {
        let everything = SystemDenials {
            inside: Denials { always: u32::MAX, sometimes: u32::MAX },
            outside: Denials { always: u32::MAX, sometimes: u32::MAX },
        };
        let means = Means::seeing_all(Mode::Lsm);
        assert_eq!(plan(&everything, &means), Plan::default());
        assert_eq!((plan(&everything, &means).text(), limits(&means).len()), (String::new(), 0));
    }

    #[test]
    fn what_old_kernels_have_no_hook_for_is_given_up() {
        let old = Means {
            sees_namespaces: false,
            sees_uring: false,
            sees_uring_privileges: false,
            ..Means::seeing_all(Mode::Lsm)
        };
        let found = plan(&denials(&[operation::NAMESPACE, operation::MOUNT], &[], &[]), &old);
        assert_eq!(found.refusals.operations, bits(&[operation::NAMESPACE, operation::IO_URING]));
        assert!(!found.refusals.judgement && found.gaps.is_empty());
        // The rules of some programs cannot be kept there.
        let found = plan(&denials(&[], &[], &[operation::NAMESPACE, operation::MOUNT]), &old);
        assert_eq!(found.refusals.operations, bit(operation::IO_URING));
        assert_eq!(found.gaps, ["namespace"]);
        assert_eq!(
            found.text(),
            "; refused to all programs until the end: io_uring; forbidden but not enforced here: namespace"
        );
    }

    #[test]
    fn without_hooks_all_that_can_be_is_given_up_and_the_rest_is_named() {
        let found = plan(&SystemDenials::default(), &TRACEPOINT);
        assert_eq!(
            found.refusals,
            Refusals { operations: bit(operation::IO_URING), enclosed: false, judgement: true }
        );
        assert!(found.gaps.is_empty());

        let everything: Vec<u32> = (0..operation::COUNT).collect();
        let found = plan(&denials(&everything, &everything, &[]), &TRACEPOINT);
        assert_eq!(found.refusals.operations, REFUSABLE);
        assert_eq!(
            found.gaps,
            ["signal (inside the session)", "receive_socket", "kernel_access (but for raw memory and ports)"]
        );

        let found = plan(&denials(&[], &[], &[operation::MOUNT, operation::TRACE]), &TRACEPOINT);
        assert_eq!(found.gaps, ["trace", "mount"], "what depends on the program is not enforced");
    }

    #[test]
    fn processes_outside_are_closed_off_only_where_both_are_forbidden() {
        let (trace, signal) = (operation::TRACE, operation::SIGNAL);
        let of = |outside: &[u32], means| plan(&denials(&[], outside, &[]), &means);
        let both = of(&[trace, signal], TRACEPOINT);
        assert!(both.refusals.enclosed && !both.refusals.has(trace) && both.gaps.is_empty());
        assert!(both.text().contains("signal and trace (outside of this channel)"), "{}", both.text());
        let one = of(&[trace], TRACEPOINT);
        assert!(!one.refusals.enclosed && one.refusals.has(trace));
        assert_eq!(one.gaps, ["trace (by /proc/PID/mem)"]);
        let other = of(&[signal], TRACEPOINT);
        assert!(!other.refusals.enclosed && !other.refusals.has(trace));
        assert_eq!(other.gaps, ["signal"]);
        let old = of(&[trace, signal], Means { can_enclose: false, ..TRACEPOINT });
        assert!(!old.refusals.enclosed && old.refusals.has(trace));
        assert_eq!(old.gaps, ["trace (by /proc/PID/mem)", "signal"]);
    }

    #[test]
    fn a_bundle_becomes_a_plan() {
        const RULES: &str = "
            @id(\"all\") permit (principal, action == Action::\"system\", resource);
            @id(\"others\") @reason(\"r\") forbid (principal, action == Action::\"system\", resource)
            when { [\"trace\", \"signal\"].contains(context.operation) && context.outside };
            @id(\"kernel\") @reason(\"r\") forbid (principal, action == Action::\"system\", resource)
            when { [\"bpf\", \"module\"].contains(context.operation) };
            @id(\"mounts\") @reason(\"r\") forbid (principal, action == Action::\"system\", resource)
            when { context.operation == \"mount\" && context.caller != \"/usr/bin/mount\" };
            @id(\"watch\") @reason(\"r\") @mode(\"monitor\") forbid (principal, action == Action::\"system\", resource)
            when { context.operation == \"perf\" };";
        let files = [("bundle.toml", "name = \"t\"\nschema = 2\n"), ("rules.cedar", RULES)];
        let bundle = sallyport_policy::Bundle::from_files(files).expect("a bundle");
        let policy = sallyport_policy::Policy::load(&bundle).unwrap_or_else(|faults| panic!("{faults}"));
        let who = sallyport_policy::Principal::default();
        let denials = policy.compile(&who, "web-1", "root").expect("compiles").system_denials();
        let found = plan(&denials, &TRACEPOINT);
        let expected = bits(&[operation::BPF, operation::MODULE, operation::IO_URING]);
        assert_eq!(
            found.refusals,
            Refusals { operations: expected, enclosed: true, judgement: true },
            "{found:?}"
        );
        assert_eq!(found.gaps, ["mount"]);
        assert_eq!(plan(&denials, &Means::seeing_all(Mode::Lsm)), Plan::default());
    }
}
