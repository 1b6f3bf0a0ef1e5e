//! What a technique is.

use crate::stage::{Outcome, Stage};

/// For whom the thing is forbidden: a person of the bundle `tests/bundles/battery`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Person {
    /// May do everything.
    Permitted,
    /// May do everything but what is listed, by path, argument, port and address.
    Listed,
    /// May do only what is listed.
    Allowlisted,
    /// May do everything but ask the kernel for what reaches beyond the session.
    Confined,
}

impl Person {
    pub(crate) const ALL: [Self; 4] = [Self::Permitted, Self::Listed, Self::Allowlisted, Self::Confined];

    /// In Cedar.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Permitted => "permitted",
            Self::Listed => "listed",
            Self::Allowlisted => "allowlisted",
            Self::Confined => "confined",
        }
    }
}

/// Whether the threat model (SECURITY.md) says that this is prevented, by mode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) lsm: bool,
    pub(crate) tracepoint: bool,
    /// Why not, where it is not.
    pub(crate) why: &'static str,
}

/// A way around.
#[derive(Clone, Copy)]
pub(crate) struct Technique {
    pub(crate) group: &'static str,
    pub(crate) name: &'static str,
    pub(crate) person: Person,
    pub(crate) claim: Claim,
    /// Refused whatever policy says, so there is no session that may.
    pub(crate) always: bool,
    /// The same, where sessions give it up.
    pub(crate) always_traced: bool,
    /// The victim counts among the sensor's own processes.
    pub(crate) guarded: bool,
    /// By an ordinary user; all others are by root.
    pub(crate) as_nobody: bool,
    /// Changes a machine for others too: only in a virtual machine of its own.
    pub(crate) guest_only: bool,
    /// What is there before, made by an untagged process.
    pub(crate) prepare: fn(&Stage) -> Outcome,
    /// What the process does before it is tagged.
    pub(crate) before: fn(&Stage) -> Outcome,
    /// What the tagged process does.
    pub(crate) attack: fn(&Stage) -> Outcome,
    /// Whether the forbidden thing happened, judged from outside. Not the technique's own word.
    pub(crate) happened: fn(&Stage) -> bool,
}

const BOTH: Claim = Claim { lsm: true, tracepoint: true, why: "" };

impl Technique {
    const fn new(group: &'static str, name: &'static str, attack: fn(&Stage) -> Outcome) -> Self {
        Self {
            group,
            name,
            person: Person::Listed,
            claim: BOTH,
            always: false,
            always_traced: false,
            guarded: false,
            as_nobody: false,
            guest_only: false,
            prepare: |_| Ok(()),
            before: |_| Ok(()),
            attack,
            happened: |stage| stage.marker().exists(),
        }
    }

    /// A program that must not start.
    pub(crate) const fn exec(name: &'static str, attack: fn(&Stage) -> Outcome) -> Self {
        Self::new("exec", name, attack)
    }

    /// Code that must not be mapped. Tracepoint mode has no hook for that.
    pub(crate) const fn code(name: &'static str, attack: fn(&Stage) -> Outcome) -> Self {
        Self::new("code", name, attack).lsm_only("mapping code has no hook in tracepoint mode")
    }

    /// Something that must not arrive.
    pub(crate) const fn network(name: &'static str, attack: fn(&Stage) -> Outcome) -> Self {
        let mut technique = Self::new("network", name, attack);
        technique.happened = Stage::heard;
        technique
    }

    /// A Unix socket that must not be reached.
    pub(crate) const fn unix(name: &'static str, attack: fn(&Stage) -> Outcome) -> Self {
        let mut technique = Self::new("unix", name, attack);
        technique.happened = Stage::heard_unix;
        technique.lsm_only("Unix sockets have no hook in tracepoint mode")
    }

    /// A file that must not be read: the attack writes what it read into `work/out`.
    pub(crate) const fn read(name: &'static str, attack: fn(&Stage) -> Outcome) -> Self {
        let mut technique = Self::new("files", name, attack);
        technique.happened = Stage::leaked;
        technique.lsm_only("files have no hook in tracepoint mode that comes in time")
    }

    /// A file or folder that must stay as it is.
    pub(crate) const fn change(name: &'static str, attack: fn(&Stage) -> Outcome) -> Self {
        let mut technique = Self::new("files", name, attack);
        technique.happened = Stage::changed;
        technique.lsm_only("files have no hook in tracepoint mode that comes in time")
    }

    /// Something that reaches beyond the session.
    pub(crate) const fn system(name: &'static str, attack: fn(&Stage) -> Outcome) -> Self {
        let mut technique = Self::new("system", name, attack);
        technique.person = Person::Confined;
        technique
    }

    /// Something against the sensor itself: whatever policy says.
    pub(crate) const fn guard(name: &'static str, attack: fn(&Stage) -> Outcome) -> Self {
        let mut technique = Self::new("guard", name, attack);
        technique.guarded = true;
        technique.always = true;
        technique
    }

    pub(crate) const fn group(mut self, group: &'static str) -> Self {
        self.group = group;
        self
    }

    pub(crate) const fn by(mut self, person: Person) -> Self {
        self.person = person;
        self
    }

    pub(crate) const fn lsm_only(mut self, why: &'static str) -> Self {
        self.claim = Claim { lsm: true, tracepoint: false, why };
        self
    }

    pub(crate) const fn both(mut self) -> Self {
        self.claim = BOTH;
        self
    }

    pub(crate) const fn unclaimed(mut self, why: &'static str) -> Self {
        self.claim = Claim { lsm: false, tracepoint: false, why };
        self
    }

    /// What cannot be judged is refused, whatever policy says.
    pub(crate) const fn always(mut self) -> Self {
        self.always = true;
        self
    }

    /// Every session gives up in tracepoint mode what this needs (`io_uring`, `userfaultfd`, 32-bit calls), and on a kernel
    /// whose `io_uring` works without the session's tag.
    pub(crate) const fn given_up(mut self) -> Self {
        self.always_traced = true;
        self.claim.tracepoint = self.claim.lsm;
        self
    }

    pub(crate) const fn as_nobody(mut self) -> Self {
        self.as_nobody = true;
        self
    }

    pub(crate) const fn guest_only(mut self) -> Self {
        self.guest_only = true;
        self
    }

    pub(crate) const fn prepare(mut self, prepare: fn(&Stage) -> Outcome) -> Self {
        self.prepare = prepare;
        self
    }

    pub(crate) const fn before(mut self, before: fn(&Stage) -> Outcome) -> Self {
        self.before = before;
        self
    }

    pub(crate) const fn happened(mut self, happened: fn(&Stage) -> bool) -> Self {
        self.happened = happened;
        self
    }
}
