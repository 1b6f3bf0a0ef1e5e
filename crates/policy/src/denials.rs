//! What of action `system` a compiled policy denies, as a whole: for what can only be refused to a session once and for all.

use sallyport_sensor_abi::policy::{DENY, operation};

use crate::kernel::KernelPolicy;

/// Operations by bit (`1 << number` of [`operation`]). Monitored rules deny nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Denials {
    /// Denied whatever the calling program is.
    pub always: u32,
    /// Denied to some calling programs, or to all.
    pub sometimes: u32,
}

/// The denials of one compiled policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SystemDenials {
    /// When it is done to a process of the session, or to none.
    pub inside: Denials,
    /// When it is done to a process outside of the session.
    pub outside: Denials,
}

const _: () = assert!(operation::COUNT <= u32::BITS, "an operation for each bit");

impl KernelPolicy {
    /// What of action `system` it denies. What the tables do not hold is denied.
    pub fn system_denials(&self) -> SystemDenials {
        let classes = self.header.caller.classes.max(1);
        let denies = |number: u32, outside: u32, class: u32| {
            let entry = (number * 2 + outside) * classes + class;
            let at = self.header.system_table.checked_add(entry);
            at.and_then(|at| self.arena.get(at as usize)).is_none_or(|word| word & DENY != 0)
        };
        let denials = |outside| {
            let mut denials = Denials::default();
            for number in 0..operation::COUNT {
                let n_denied = (0..classes).filter(|class| denies(number, outside, *class)).count();
                denials.sometimes |= u32::from(n_denied > 0) << number;
                denials.always |= u32::from(n_denied == classes as usize) << number;
            }
            denials
        };
        SystemDenials { inside: denials(0), outside: denials(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bundle, Policy, Principal};

    fn denials(rules: &str) -> SystemDenials {
        let files = [("bundle.toml", "name = \"t\"\nschema = 2\n"), ("rules.cedar", rules)];
        let bundle = Bundle::from_files(files).expect("a bundle");
        let policy = Policy::load(&bundle).unwrap_or_else(|faults| panic!("{faults}"));
        policy.compile(&Principal::default(), "web-1", "root").expect("compiles").system_denials()
    }

    fn names(bits: u32) -> Vec<&'static str> {
        operation::NAMES
            .into_iter()
            .zip(0..)
            .filter(|(_, n)| bits >> n & 1 == 1)
            .map(|(name, _)| name)
            .collect()
    }

    const PERMIT_ALL: &str = "@id(\"all\") permit (principal, action == Action::\"system\", resource);\n";

    #[test]
    fn without_rules_everything_is_denied_and_with_one_nothing() {
        let nothing = denials("@id(\"a\") permit(principal, action == Action::\"exec\", resource);");
        for side in [nothing.inside, nothing.outside] {
            assert_eq!(names(side.always), operation::NAMES);
            assert_eq!(side.always, side.sometimes);
        }
        assert_eq!(denials(PERMIT_ALL), SystemDenials::default());
    }

    #[test]
    fn outside_callers_and_monitoring_are_told_apart() {
        let found = denials(&format!(
            "{PERMIT_ALL}\
            @id(\"o\") @reason(\"r\") forbid (principal, action == Action::\"system\", resource) \
                when {{ context.operation == \"trace\" && context.outside }};\n\
            @id(\"c\") @reason(\"r\") forbid (principal, action == Action::\"system\", resource) \
                when {{ context.operation == \"mount\" && context.caller != \"/usr/bin/mount\" }};\n\
            @id(\"e\") @reason(\"r\") forbid (principal, action == Action::\"system\", resource) \
                when {{ context.operation == \"bpf\" }};\n\
            @id(\"m\") @reason(\"r\") @mode(\"monitor\") forbid (principal, action == Action::\"system\", resource) \
                when {{ context.operation == \"perf\" }};\n"
        ));
        assert_eq!(names(found.inside.always), ["bpf"]);
        assert_eq!(names(found.inside.sometimes), ["mount", "bpf"]);
        assert_eq!(names(found.outside.always), ["trace", "bpf"]);
        assert_eq!(names(found.outside.sometimes), ["trace", "mount", "bpf"]);
    }
}
