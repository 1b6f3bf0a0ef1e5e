//! The hooks of action `system`, of sockets and of the guards: which program, where, and what is not judged without it.

use std::sync::OnceLock;

use btf_rs::{Btf, Type};

use super::attach::Hook;
use super::offsets::VMLINUX;

/// The hooks of action `system`, of sockets and of the guards.
pub(super) const SYSTEM: &[(&str, Hook)] = &[];

impl Hook {
    /// The name of its LSM hook.
    pub(super) fn lsm(self) -> Option<&'static str> {
        match self {
            Self::Lsm(name) | Self::OptionalLsm(name, _) => Some(name),
            _ => None,
        }
    }

    /// An optional hook that the running kernel does not have.
    pub(super) fn is_missing(self) -> bool {
        matches!(self, Self::OptionalLsm(name, _) if missing().contains(&name))
    }
}

/// The optional hooks that the running kernel does not have. Without type information, all of them.
fn missing() -> &'static [&'static str] {
    static MISSING: OnceLock<Vec<&str>> = OnceLock::new();
    MISSING.get_or_init(|| {
        let btf = Btf::from_file(VMLINUX).ok();
        let has = |name: &str| {
            let function = format!("bpf_lsm_{name}");
            let types = btf.as_ref().and_then(|btf| btf.resolve_types_by_name(&function).ok());
            types.is_some_and(|types| types.iter().any(|found| matches!(found, Type::Func(_))))
        };
        super::attach::programs()
            .filter_map(|(_, hook)| match hook {
                Hook::OptionalLsm(name, _) if !has(name) => Some(name),
                _ => None,
            })
            .collect()
    })
}

/// What the running kernel lets nobody judge in LSM mode, one phrase for each hook that it lacks.
pub(super) fn not_judged() -> Vec<&'static str> {
    super::attach::programs()
        .filter(|(_, hook)| hook.is_missing())
        .filter_map(|(_, hook)| match hook {
            Hook::OptionalLsm(_, what) if !what.is_empty() => Some(what),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn programs_and_hooks_are_there_once() {
        let mut seen = HashSet::new();
        for (name, _) in super::super::attach::programs() {
            assert!(seen.insert(name), "{name}");
        }
    }

    /// Each program carries the attribute of the hook that it is attached to, in `sensor-ebpf/src/hooks`.
    #[test]
    fn the_sources_agree() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../sensor-ebpf/src/hooks");
        let mut text = String::new();
        for file in std::fs::read_dir(folder).expect("hooks") {
            text += &std::fs::read_to_string(file.expect("a file").path()).expect("source");
        }
        for (name, hook) in SYSTEM {
            if let Some(lsm) = hook.lsm() {
                let attribute = format!("#[lsm(hook = \"{lsm}\")]\npub fn {name}(");
                assert!(text.contains(&attribute), "{attribute}");
            }
        }
    }
}
