//! Who is whose child and runs what: learnt from fork and exec events, kept while the process is alive.
//!
//! A process carries its ancestors' keys with it, so that a parent's end takes nothing from its children. What an earlier
//! sensor knew is read again from `/proc`.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use sallyport_evidence::record::limits;
use sallyport_sensor_abi::MAX_TASKS;

use crate::enrich::{Cgroup, Folder};

/// A process: number and start time.
pub type Key = (u32, u64);

/// Twice what the kernel can have: when there are more, exits were lost with a full ring, and most of it is dead.
const MOST: usize = 2 * MAX_TASKS as usize;

/// The program that a process runs. What came by its last exec; a child has its parent's until it executes something itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Resolved path.
    pub path: String,
    /// The path is incomplete.
    pub path_cut: bool,
    /// Arguments.
    pub args: Vec<String>,
    /// They were cut from so many bytes.
    pub args_cut_from: Option<u32>,
    /// Device and inode, as in records.
    pub inode: String,
    /// The file has no name.
    pub fileless: bool,
    /// The file is set-uid or set-gid.
    pub setuid: bool,
    /// The path is the registered name of a file that was reached by another one.
    pub other_name: bool,
    /// SHA-256; empty: not known.
    pub sha256: String,
    /// Current folder at the exec.
    pub folder: Option<Folder>,
    /// Mount namespace; 0: not known.
    pub mount_namespace: u32,
    /// Pid namespace; 0: not known.
    pub pid_namespace: u32,
    /// Audit session.
    pub audit_session: Option<u32>,
}

/// A process that is alive.
#[derive(Clone, Debug, Default)]
struct Node {
    started: u64,
    /// Nearest first, at most [`limits::ANCESTORS`].
    ancestors: Vec<Key>,
    image: Option<Arc<Image>>,
}

/// Tagged processes. Bounded: exits that were lost must not make it grow.
#[derive(Debug, Default)]
pub struct Lineage {
    alive: HashMap<u32, Node>,
    cgroups: HashMap<u64, Cgroup>,
}

impl Lineage {
    /// With the tagged processes that are alive now.
    #[must_use]
    pub fn of(alive: impl IntoIterator<Item = Key>) -> Self {
        let node = |started| Node { started, ..Node::default() };
        Self {
            alive: alive.into_iter().map(|(tgid, started)| (tgid, node(started))).collect(),
            cgroups: HashMap::new(),
        }
    }

    /// Reads from `/proc` what an earlier sensor knew of them: parents, programs, arguments, folders. Not their hashes.
    #[must_use]
    pub fn learn(mut self) -> Self {
        let parents: HashMap<u32, Key> = self
            .alive
            .keys()
            .filter_map(|tgid| {
                let parent = parent_of(*tgid)?;
                Some((*tgid, (parent, self.alive.get(&parent)?.started)))
            })
            .collect();
        for (tgid, node) in &mut self.alive {
            let mut next = *tgid;
            while let Some(parent) = parents.get(&next)
                && node.ancestors.len() < limits::ANCESTORS
                && !node.ancestors.contains(parent)
            {
                node.ancestors.push(*parent);
                next = parent.0;
            }
            node.image = image_of(*tgid).map(Arc::new);
        }
        self
    }

    /// A process made a child.
    pub fn forked(&mut self, parent: Key, child: Key) {
        self.make_room();
        let (mut ancestors, image) = match self.node(parent) {
            Some(node) => (node.ancestors.clone(), node.image.clone()),
            None => (Vec::new(), None),
        };
        ancestors.insert(0, parent);
        ancestors.truncate(limits::ANCESTORS);
        self.seen(parent.0, parent.1);
        self.alive.insert(child.0, Node { started: child.1, ancestors, image });
    }

    /// A process is alive.
    pub fn seen(&mut self, tgid: u32, started: u64) {
        if self.node((tgid, started)).is_none() {
            self.make_room();
            self.alive.insert(tgid, Node { started, ..Node::default() });
        }
    }

    /// A process runs a program now.
    pub fn executed(&mut self, key: Key, image: Image) {
        self.seen(key.0, key.1);
        if let Some(node) = self.alive.get_mut(&key.0) {
            node.image = Some(Arc::new(image));
        }
    }

    /// The hash of the program that a process was seen to run, if it still does. Its children have it from their own execs.
    pub fn hashed(&mut self, key: Key, inode: &str, sha256: &str) {
        let Some(node) = self.alive.get_mut(&key.0).filter(|node| node.started == key.1) else { return };
        if let Some(image) = &mut node.image
            && image.inode == inode
        {
            Arc::make_mut(image).sha256 = sha256.into();
        }
    }

    /// A process ended.
    pub fn exited(&mut self, tgid: u32, started: u64) {
        if self.node((tgid, started)).is_some() {
            self.alive.remove(&tgid);
        }
    }

    /// The parent, if its fork was seen.
    #[must_use]
    pub fn parent(&self, tgid: u32, started: u64) -> Option<Key> {
        self.ancestors((tgid, started)).first().copied()
    }

    /// Parent, grandparent and so on, as far as they are known.
    #[must_use]
    pub fn ancestors(&self, key: Key) -> &[Key] {
        self.node(key).map_or(&[], |node| &node.ancestors)
    }

    /// What a process runs.
    #[must_use]
    pub fn image(&self, key: Key) -> Option<&Arc<Image>> {
        self.node(key)?.image.as_ref()
    }

    /// When the living process with this number started.
    #[must_use]
    pub fn started(&self, tgid: u32) -> Option<u64> {
        self.alive.get(&tgid).map(|node| node.started)
    }

    /// A cgroup that was looked up.
    pub fn remember_cgroup(&mut self, id: u64, cgroup: Cgroup) {
        if self.cgroups.len() >= 4_096 {
            self.cgroups.clear();
        }
        self.cgroups.insert(id, cgroup);
    }

    /// The cgroup with an id, if it was looked up.
    #[must_use]
    pub fn cgroup(&self, id: u64) -> Option<&Cgroup> {
        self.cgroups.get(&id)
    }

    fn node(&self, (tgid, started): Key) -> Option<&Node> {
        self.alive.get(&tgid).filter(|node| node.started == started)
    }

    fn make_room(&mut self) {
        if self.alive.len() >= MOST {
            // Parents are learnt again from exec events.
            self.alive.clear();
        }
    }
}

fn parent_of(tgid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{tgid}/stat")).ok()?;
    // The name, in parentheses, can hold anything; the parent is the second field after it.
    stat.get(stat.rfind(')')? + 2..)?.split(' ').nth(1)?.parse().ok()
}

fn image_of(tgid: u32) -> Option<Image> {
    let path = std::fs::read_link(format!("/proc/{tgid}/exe")).ok()?;
    let bytes = path.as_os_str().as_bytes();
    // The kernel marks a file without a name so.
    let (bytes, fileless) = match bytes.strip_suffix(b" (deleted)") {
        Some(bytes) => (bytes, true),
        None => (bytes, false),
    };
    let args = std::fs::read(format!("/proc/{tgid}/cmdline")).unwrap_or_default();
    let (args, args_cut_from) =
        crate::records::arguments(&args, u32::try_from(args.len()).unwrap_or(u32::MAX));
    let cwd = std::fs::read_link(format!("/proc/{tgid}/cwd")).ok();
    let namespace = |name: &str| {
        let link = std::fs::read_link(format!("/proc/{tgid}/ns/{name}")).ok()?;
        link.to_str()?.strip_suffix(']')?.rsplit_once('[')?.1.parse::<u32>().ok()
    };
    let session = std::fs::read_to_string(format!("/proc/{tgid}/sessionid")).ok();
    Some(Image {
        path: String::from_utf8_lossy(bytes).into_owned(),
        args,
        args_cut_from,
        fileless,
        folder: cwd.map(|cwd| crate::enrich::folder(cwd.as_os_str().as_bytes())),
        mount_namespace: namespace("mnt").unwrap_or(0),
        pid_namespace: namespace("pid_for_children").unwrap_or(0),
        audit_session: session.and_then(|id| id.trim().parse().ok()).filter(|id| *id != u32::MAX),
        ..Image::default()
    })
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
    fn ancestors_outlive_themselves_and_are_at_most_eight() {
        let mut lineage = Lineage::of([(1, 1)]);
        let image = Image { path: "/bin/sh".into(), ..Image::default() };
        lineage.executed((1, 1), image.clone());
        for n in 1..=20 {
            lineage.forked((n, 1), (n + 1, 1));
            lineage.exited(n, 1);
        }
        let expected: Vec<Key> = (13..=20).rev().map(|n| (n, 1)).collect();
        assert_eq!(lineage.ancestors((21, 1)), expected);
        assert_eq!(lineage.image((21, 1)).map(|image| &**image), Some(&image), "inherited until it executes");
        lineage
            .executed((21, 1), Image { path: "/bin/ls".into(), inode: "8:1/2".into(), ..Image::default() });
        lineage.hashed((21, 1), "8:1/3", "no");
        lineage.hashed((21, 1), "8:1/2", "yes");
        assert_eq!(lineage.image((21, 1)).map(|image| image.sha256.as_str()), Some("yes"));
    }

    #[test]
    fn what_a_predecessor_knew_is_read_again() {
        let mut child = std::process::Command::new("/usr/bin/sleep")
            .arg("30")
            .current_dir("/usr")
            .spawn()
            .expect("it runs");
        let (own, pid) = (std::process::id(), child.id());
        // Until it has executed it is a copy of this process; its arguments come last.
        while std::fs::read(format!("/proc/{pid}/cmdline")).expect("its arguments")
            != b"/usr/bin/sleep\x0030\0"
        {
            std::thread::yield_now();
        }
        let lineage = Lineage::of([(own, 5), (pid, 6)]).learn();
        assert_eq!(lineage.ancestors((pid, 6)), [(own, 5)]);
        let image = lineage.image((pid, 6)).expect("an image");
        assert_eq!(image.args, ["/usr/bin/sleep", "30"]);
        assert_eq!(image.folder.as_ref().map(|folder| folder.path.as_str()), Some("/usr"));
        assert!(image.mount_namespace > 0 && image.path.ends_with("/sleep"));
        child.kill().expect("killed");
        child.wait().expect("ended");
    }

    #[test]
    fn it_is_bounded() {
        let mut lineage = Lineage::default();
        for n in 0..3 * MAX_TASKS {
            lineage.forked((1, 1), (n + 2, u64::from(n)));
        }
        assert!(lineage.alive.len() <= MOST);
    }
}
