//! The kinds of findings, each named here and nowhere else, so that the tests know when one has no planted mistake.

/// Makes the kinds with their codes.
macro_rules! kinds {
    ($($name:ident $code:literal,)*) => {
        /// A kind of finding; docs/policy-check.md says what each means.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Kind {
            $($name,)*
        }

        impl Kind {
            /// As it is told; stable, for filters.
            pub(crate) const fn code(self) -> &'static str {
                match self {
                    $(Self::$name => $code,)*
                }
            }
        }

        /// The codes of all findings. `fault` is what loading finds.
        pub const FINDING_CODES: &[&str] = &["fault", $($code,)*];
    };
}

kinds! {
    NeverApplies "never-applies",
    NeverForAction "never-for-action",
    NeverHolds "never-holds",
    AlwaysHolds "always-holds",
    IdlePermit "idle-permit",
    IdleForbid "idle-forbid",
    ShadowedPermit "shadowed-permit",
    WidePermit "wide-permit",
    NeedlessWide "needless-wide",
    ForbidsEverything "forbids-everything",
    RelativePath "relative-path",
    TrailingSlash "trailing-slash",
    UnresolvedPath "unresolved-path",
    LinkedFolder "linked-folder",
    LinkedProgram "linked-program",
    LiteralStar "literal-star",
    NoStar "no-star",
    OpenEnded "open-ended",
    TwiceInSet "twice-in-set",
    NameOnlyPermit "name-only-permit",
    NameOnlyForbid "name-only-forbid",
    DodgedOptions "dodged-options",
    PathInArguments "path-in-arguments",
    WholeCommandLine "whole-command-line",
    OwnNameInArguments "own-name-in-arguments",
    HostBits "host-bits",
    UnspecifiedAddress "unspecified-address",
    MappedAddress "mapped-address",
    UnknownRule "unknown-rule",
    UnknownGroup "unknown-group",
    UnknownHost "unknown-host",
    UnknownLabel "unknown-label",
    UnusedGroup "unused-group",
    EmptyHostGroup "empty-host-group",
    SessionsCannotBegin "sessions-cannot-begin",
    SessionsWithoutPrograms "sessions-without-programs",
    NobodyPushes "nobody-pushes",
}
