//! Names in the kernel: the sensor's own files, which no session may touch, and the files and folders that the loaded policies
//! forbid by name, which other names of the same file must not get around.
//!
//! A name is registered by what it is now (device and inode), so it is looked up when policies are loaded, whenever an event tells
//! that something happened to it, and every few seconds. A file that is replaced by a program outside of all sessions is
//! known again after [`LOOK_EVERY`] at the latest; until then it is judged by the path it is reached by, as always. A file that
//! lost its name and still exists (renamed itself, or with a folder above it) keeps it here: its old name is what rules
//! know it by.

mod handle;
mod look;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sallyport_sensor_abi::names::{Inode, NAME_GUARDED, NAME_SECRET};

use crate::enrich::{FileId, Mounts};
use crate::kernel::{Kernel, KernelError, name};

use handle::Handle;
use look::look;
pub use look::{Look, Unregistered};

/// Between two looks at everything.
pub const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Files that lost their name and are still watched for at most.
const MOST_STRAYS: usize = 4_096;

/// What is registered: by file, the name and its flags.
pub type Registered = HashMap<FileId, (String, u32)>;

/// The sensor's own files.
#[derive(Clone, Debug, Default)]
pub struct OwnFiles {
    names: Vec<(PathBuf, u32)>,
}

impl OwnFiles {
    /// Guards files and folders: nothing in them can be changed by a session.
    #[must_use]
    pub fn guard(mut self, paths: impl IntoIterator<Item = PathBuf>) -> Self {
        self.names.extend(paths.into_iter().map(|path| (path, NAME_GUARDED)));
        self
    }

    /// Guards files and folders that sessions may not even read.
    #[must_use]
    pub fn hide(mut self, paths: impl IntoIterator<Item = PathBuf>) -> Self {
        self.names.extend(paths.into_iter().map(|path| (path, NAME_GUARDED | NAME_SECRET)));
        self
    }
}

/// The names that are in the kernel. See the module's text.
pub struct Names {
    kernel: Arc<Kernel>,
    own: OwnFiles,
    state: Mutex<State>,
    /// One look at a time; the next sees what came meanwhile.
    looking: Mutex<()>,
    waiting: AtomicBool,
}

#[derive(Default)]
struct State {
    wanted: Arc<BTreeSet<String>>,
    registered: Registered,
    handles: HashMap<FileId, Option<Handle>>,
    told: BTreeSet<Unregistered>,
    looked: Option<Instant>,
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Names {
    /// Nothing is registered yet; see [`Self::want`].
    #[must_use]
    pub fn new(kernel: Arc<Kernel>, own: OwnFiles) -> Self {
        let (state, looking, waiting) = (Mutex::default(), Mutex::new(()), AtomicBool::new(false));
        Self { kernel, own, state, looking, waiting }
    }

    /// Sets the names that loaded policies speak of, and registers them. Blocks.
    pub fn want(&self, names: BTreeSet<String>) {
        let new = {
            let mut state = self.state();
            let new = state.looked.is_none() || *state.wanted != names;
            state.wanted = Arc::new(names);
            new
        };
        if new {
            self.refresh();
        }
    }

    /// Looks everything up again and tells the kernel. Blocks.
    pub fn refresh(&self) {
        let _one = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.store(false, Ordering::SeqCst);
        let (wanted, before, known) = {
            let state = self.state();
            (state.wanted.clone(), state.registered.clone(), state.handles.clone())
        };
        let mounts = Mounts::read();
        let Look { mut registered, mut unregistered } = look(&self.own, &wanted, &mounts);
        let mut handles = HashMap::new();
        for (id, (name, _)) in &registered {
            // The same file as before, or another one that got its number: then its handle is another.
            let fresh = Handle::of(name.as_ref());
            handles.insert(*id, fresh);
        }
        let strays = before.into_iter().filter(|(id, _)| !registered.contains_key(id));
        let strays = strays.filter(|(id, (name, flags))| {
            let is_wanted = *flags != 0 || wanted.contains(name);
            is_wanted && known.get(id).and_then(Option::as_ref).is_some_and(|handle| handle.exists(&mounts))
        });
        let strays: Vec<_> = strays.take(MOST_STRAYS).collect();
        for (id, entry) in strays {
            handles.insert(id, known.get(&id).cloned().flatten());
            registered.insert(id, entry);
        }
        if let Err(error) = self.tell(&registered) {
            tracing::error!(%error, "names of files cannot be registered in the kernel");
            let why = "the kernel does not take it";
            unregistered
                .extend(registered.values().map(|(name, _)| Unregistered { name: name.clone(), why }));
        }
        let mut state = self.state();
        for Unregistered { name, why } in unregistered.difference(&state.told) {
            tracing::warn!(
                name,
                why,
                "a name in policy is not registered; other names of that file are not known by it"
            );
        }
        (state.registered, state.handles, state.told) = (registered, handles, unregistered);
        state.looked = Some(Instant::now());
    }

    fn tell(&self, registered: &Registered) -> Result<(), KernelError> {
        let entries = registered.iter().filter_map(|((device, inode), (path, flags))| {
            Some((Inode { inode: *inode, device: *device, _pad: 0 }, name(path.as_bytes(), *flags)?))
        });
        self.kernel.set_names(entries)
    }

    /// Looks again if it is time. To be called about every second within the runtime; does not block.
    pub fn tend(self: &Arc<Self>) {
        let due = self.state().looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY);
        if due {
            self.look_soon();
        }
    }

    /// Something was created, renamed or deleted: if a wanted name is concerned, it is looked up at once.
    pub fn touched(self: &Arc<Self>, path: &[u8]) {
        let wanted = self.state().wanted.clone();
        let Ok(path) = std::str::from_utf8(path) else { return };
        // The name itself, or a folder above names: these follow it in the order of the set.
        let below = format!("{path}/");
        let concerns = wanted.contains(path)
            || wanted.range(below.clone()..).next().is_some_and(|name| name.starts_with(&below));
        if concerns {
            self.look_soon();
        }
    }

    fn look_soon(self: &Arc<Self>) {
        if !self.waiting.swap(true, Ordering::SeqCst) {
            let this = self.clone();
            tokio::task::spawn_blocking(move || this.refresh());
        }
    }

    /// Names that could not be registered, and why.
    #[must_use]
    pub fn unregistered(&self) -> Vec<Unregistered> {
        self.state().told.iter().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
