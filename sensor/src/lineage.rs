//! Who is whose child: parents of tagged processes, learnt from fork events and kept while they are alive.

use std::collections::HashMap;

use sallyport_sensor_abi::MAX_TASKS;

/// A process: number and start time.
pub type Key = (u32, u64);

/// Tagged processes and their parents. Bounded: exits that were lost with a full ring must not make it grow.
#[derive(Debug, Default)]
pub struct Lineage {
    started: HashMap<u32, u64>,
    parents: HashMap<Key, Key>,
}

impl Lineage {
    /// With the tagged processes that are alive now.
    #[must_use]
    pub fn of(alive: impl IntoIterator<Item = Key>) -> Self {
        Self { started: alive.into_iter().collect(), parents: HashMap::new() }
    }

    /// A process made a child.
    pub fn forked(&mut self, parent: Key, child: Key) {
        let most = 2 * MAX_TASKS as usize;
        if self.parents.len() >= most || self.started.len() >= most {
            // Twice what the kernel can have: most of it is dead. Parents are learnt again from exec events.
            self.parents.clear();
            self.started.clear();
        }
        self.started.insert(parent.0, parent.1);
        self.started.insert(child.0, child.1);
        self.parents.insert(child, parent);
    }

    /// A process is alive.
    pub fn seen(&mut self, tgid: u32, started: u64) {
        if self.started.len() < 2 * MAX_TASKS as usize {
            self.started.insert(tgid, started);
        }
    }

    /// A process ended.
    pub fn exited(&mut self, tgid: u32, started: u64) {
        self.parents.remove(&(tgid, started));
        if self.started.get(&tgid) == Some(&started) {
            self.started.remove(&tgid);
        }
    }

    /// The parent, if its fork was seen.
    #[must_use]
    pub fn parent(&self, tgid: u32, started: u64) -> Option<Key> {
        self.parents.get(&(tgid, started)).copied()
    }

    /// When the living process with this number started.
    #[must_use]
    pub fn started(&self, tgid: u32) -> Option<u64> {
        self.started.get(&tgid).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_apart_by_start() {
        let mut lineage = Lineage::of([(10, 1)]);
        lineage.forked((10, 1), (11, 2));
        assert_eq!(lineage.parent(11, 2), Some((10, 1)));
        lineage.exited(11, 2);
        lineage.forked((10, 1), (11, 9));
        // A late exit of the first 11 does not forget the second.
        lineage.exited(11, 2);
        assert_eq!(lineage.started(11), Some(9));
        assert_eq!(lineage.parent(11, 2), None);
    }

    #[test]
    fn it_is_bounded() {
        let mut lineage = Lineage::default();
        for n in 0..3 * MAX_TASKS {
            lineage.forked((1, 1), (n + 2, u64::from(n)));
        }
        assert!(lineage.parents.len() <= 2 * MAX_TASKS as usize);
    }
}
