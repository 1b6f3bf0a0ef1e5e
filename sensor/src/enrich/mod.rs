//! What events do not carry, looked up beside their way: hashes of executables, current folders, cgroups.
//!
//! Every look-up may wait for ever (a file system of the session's own making need not answer), so none is done by the
//! event pump. It hands the questions of a batch to [`LOOKERS`] threads and waits for their answers at most [`PATIENCE`];
//! then the records are made with what is there. A hash that comes later becomes a record of its own
//! ([`sallyport_evidence::record::Kind::Executable`]). Queues are bounded: what finds no room stays unknown, and the records
//! say nothing instead of something wrong.

mod cgroups;
mod executables;
mod folders;
mod mounts;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

pub use cgroups::{Cgroup, container_of};
pub use executables::Hashes;
pub use folders::Folder;
pub(crate) use folders::folder;
pub(crate) use mounts::Mounts;

use cgroups::Cgroups;
use executables::{Found, Pending};
use folders::Folders;

/// Longest that a batch of events waits for its answers.
pub const PATIENCE: Duration = Duration::from_millis(20);
/// Threads that look things up. One that hangs in a file system does not come back, so there are some.
const LOOKERS: usize = 4;
/// Questions and answers under way at most: two batches of events.
const QUEUE: usize = 1_024;
/// Files that wait to be hashed at most; each holds a descriptor.
const HASH_QUEUE: usize = 128;

/// A device (kernel encoding: major << 20 | minor) and an inode number.
pub type FileId = (u32, u64);

/// What is asked about an event.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Number of the event; comes back with the answer.
    pub id: u64,
    /// The process.
    pub tgid: u32,
    /// When it started, in nanoseconds since boot.
    pub started: u64,
    /// When it happened, by the wall clock in nanoseconds.
    pub time_ns: u64,
    /// The executable to hash: what it is, and where it was found.
    pub executable: Option<(FileId, PathBuf)>,
    /// The current folder.
    pub folder: Option<FileId>,
    /// The cgroup's id; 0: not asked.
    pub cgroup: u64,
}

/// What was found out.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// [`Question::id`].
    pub id: u64,
    /// The process.
    pub tgid: u32,
    /// Its start.
    pub started: u64,
    /// The executable that was asked for.
    pub executable: Option<FileId>,
    /// Hash of the executable, in hexadecimal.
    pub sha256: Option<String>,
    /// The hash is being made and comes as a second answer.
    pub hash_follows: bool,
    /// Path of the current folder.
    pub folder: Option<Folder>,
    /// The cgroup.
    pub cgroup: Option<Cgroup>,
}

/// The threads, and the way to them.
#[derive(Debug)]
pub struct Enricher {
    questions: SyncSender<Question>,
    answers: mpsc::Receiver<Answer>,
    unasked: u64,
}

/// What the lookers share.
struct Shared {
    folders: Folders,
    cgroups: Cgroups,
    hashes: Hashes,
    pending: SyncSender<Pending>,
}

impl Enricher {
    /// Starts the threads. `cgroup_root` is the mount point of the cgroup2 hierarchy. They end when the value is dropped.
    #[must_use]
    pub fn start(cgroup_root: Option<PathBuf>) -> Self {
        let (questions, asked) = sync_channel(QUEUE);
        let (answer, answers) = mpsc::channel(QUEUE);
        let (pending, to_hash) = sync_channel(HASH_QUEUE);
        let hashes = Hashes::default();
        let shared = Arc::new(Shared {
            folders: Folders::default(),
            cgroups: Cgroups::new(cgroup_root),
            hashes: hashes.clone(),
            pending,
        });
        let asked = Arc::new(Mutex::new(asked));
        for _ in 0..LOOKERS {
            let (shared, asked, answer) = (shared.clone(), asked.clone(), answer.clone());
            std::thread::spawn(move || look(&shared, &asked, &answer));
        }
        std::thread::spawn(move || executables::hash_all(&to_hash, &hashes, &answer));
        Self { questions, answers, unasked: 0 }
    }

    /// Asks, and returns the answers that came within [`PATIENCE`], by question, and those to earlier questions.
    pub async fn ask(&mut self, questions: Vec<Question>) -> (HashMap<u64, Answer>, Vec<Answer>) {
        let (mut now, mut late) = (HashMap::<u64, Answer>::new(), Vec::new());
        let mut asked = HashSet::new();
        for question in questions {
            let id = question.id;
            match self.questions.try_send(question) {
                Ok(()) => {
                    asked.insert(id);
                }
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.unasked += 1,
            }
        }
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut open = asked.len();
        while open > 0
            && let Ok(Some(answer)) = tokio::time::timeout_at(deadline, self.answers.recv()).await
        {
            if !asked.contains(&answer.id) {
                late.push(answer);
                continue;
            }
            // A small file's hash is a matter of milliseconds: that answer is waited for, too.
            if !answer.hash_follows {
                open -= 1;
            }
            let answer = match now.remove(&answer.id) {
                Some(first) => merge(first, answer),
                None => answer,
            };
            now.insert(answer.id, answer);
        }
        (now, late)
    }

    /// The next answer that comes by itself. Cancel-safe.
    pub async fn next(&mut self) -> Answer {
        match self.answers.recv().await {
            Some(answer) => answer,
            // The threads live as long as this value; if they are gone there is nothing to wait for.
            None => std::future::pending().await,
        }
    }

    /// How many questions found no room.
    #[must_use]
    pub fn unasked(&self) -> u64 {
        self.unasked
    }
}

fn merge(first: Answer, second: Answer) -> Answer {
    Answer {
        sha256: second.sha256.or(first.sha256),
        hash_follows: second.hash_follows,
        folder: second.folder.or(first.folder),
        cgroup: second.cgroup.or(first.cgroup),
        ..first
    }
}

fn look(shared: &Shared, asked: &Mutex<Receiver<Question>>, answer: &mpsc::Sender<Answer>) {
    loop {
        let question = asked.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(question) = question else { return };
        if answer.blocking_send(shared.answer(question)).is_err() {
            return;
        }
    }
}

impl Shared {
    fn answer(&self, question: Question) -> Answer {
        let Question { id, tgid, started, .. } = question;
        let folder = question.folder.and_then(|folder| self.folders.path(folder, tgid));
        let cgroup = (question.cgroup != 0).then(|| self.cgroups.find(question.cgroup, tgid)).flatten();
        let executable = question.executable.as_ref().map(|(id, _)| *id);
        let mut answer = Answer { id, tgid, started, executable, folder, cgroup, ..Answer::default() };
        if question.executable.is_some() {
            match self.hashes.look(question) {
                Found::Known(hash) => answer.sha256 = Some(hash),
                Found::Pending(pending) => answer.hash_follows = self.pending.try_send(pending).is_ok(),
                Found::No => {}
            }
        }
        answer
    }
}

#[cfg(test)]
mod tests;
