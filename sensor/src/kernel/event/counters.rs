//! How many events there were, and how many of them were lost.

/// Events of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct KindCounters {
    /// Happened.
    pub seen: u64,
    /// Of those, not reported: the ring was full.
    pub lost: u64,
}

/// Events since the maps were made. For each kind: seen = received + lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// [`super::Event::Fork`].
    pub fork: KindCounters,
    /// [`super::Event::Exec`].
    pub exec: KindCounters,
    /// [`super::Event::Exit`].
    pub exit: KindCounters,
    /// [`super::Event::Connect`].
    pub connect: KindCounters,
    /// [`super::Event::File`].
    pub file: KindCounters,
    /// [`super::Event::System`].
    pub system: KindCounters,
}
