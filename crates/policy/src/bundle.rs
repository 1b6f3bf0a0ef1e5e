//! A bundle: the files of a policy, by path. Reading one from a folder, and its manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::archive;
use crate::diagnostic::{Diagnostics, Faults};
use crate::packs;

/// Name of the manifest.
pub(crate) const MANIFEST: &str = "bundle.toml";
/// Name of the file of groups, host groups and hosts.
pub(crate) const ENTITIES: &str = "entities.json";
/// Under this prefix lie the files of included bundles, each under its name: in archives, and in folders that were
/// written from them. Such a folder is complete, and what its manifests include is not looked up elsewhere, so that a
/// version reads as the same version wherever and whenever it is.
pub(crate) const INCLUDE: &str = "include/";
/// Version of the schema that this program speaks.
pub(crate) const SCHEMA_VERSION: u32 = 2;

/// What to do with a bundle that was written for schema 1.
const MIGRATE: &str = "`schema = 1` judged programs and connections only. Schema 2 also judges files, Unix sockets, \
    listening and what is asked of the system, and denies by default: add permits for the actions `read_file`, \
    `write_file`, `create_file`, `delete_file`, `rename_file`, `link_file`, `change_file`, `map_code`, `connect_unix`, \
    `listen` and `system` (or `include` the base bundle, which has them), then write `schema = 2`";

/// The files of a policy by path: manifest, Cedar files, entities, test cases, and the same of the
/// bundles it includes. Not yet checked: see [`crate::Policy::load`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

/// Why a bundle could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// A file or folder could not be read.
    #[error("cannot read `{path}`")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no manifest.
    #[error(
        "`{path}` is no policy bundle: it has no `bundle.toml`; create one with `name`, `schema = 2` and `contact`"
    )]
    NoManifest {
        /// The folder.
        path: PathBuf,
    },
    /// The manifest is wrong.
    #[error("a bundle's manifest is not valid\n{0}")]
    Manifest(Diagnostics),
    /// It includes a pack that does not exist.
    #[error("there is no pack `{name}`; there are {}", packs::names().join(", "))]
    UnknownPack {
        /// As it was named.
        name: String,
    },
    /// A symbolic link in the folder.
    #[error(
        "`{path}` is a symbolic link; a bundle must hold its files itself, so that its version covers their content"
    )]
    Link {
        /// The link.
        path: PathBuf,
    },
    /// Two different included bundles have one name.
    #[error(
        "two included bundles are called `{name}`: `{first}` and `{second}`; give one another `name` in its bundle.toml"
    )]
    SameName {
        /// The name.
        name: String,
        /// The one.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A bundle includes itself.
    #[error("`{path}` includes itself, directly or through another bundle")]
    Cycle {
        /// The folder.
        path: PathBuf,
    },
    /// A file's path is not acceptable.
    #[error("`{path}` is not an acceptable path in a bundle: {why}")]
    Path {
        /// As given.
        path: String,
        /// Why not.
        why: &'static str,
    },
    /// A limit was crossed.
    #[error("the bundle is too large: {what} is limited to {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The archive's bytes are not a bundle.
    #[error("this is not a policy bundle archive: {0}")]
    Archive(&'static str),
}

/// `bundle.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) name: String,
    pub(crate) schema: u32,
    #[serde(default)]
    pub(crate) contact: Option<String>,
    #[serde(default)]
    pub(crate) include: Vec<String>,
}

impl Manifest {
    /// Parses and checks; the error names every fault. `file`: how it is called there.
    pub(crate) fn parse(file: &str, bytes: &[u8]) -> Result<Self, Diagnostics> {
        let mut faults = Faults::default();
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(_) => {
                faults.file(file, "the file is not UTF-8", None);
                ""
            }
        };
        let manifest = toml::from_str(text).unwrap_or_else(|error: toml::de::Error| {
            if faults.is_empty() {
                let span = error.span().unwrap_or(0..1);
                let help = "it holds `name`, `schema = 2`, and if wanted `contact` and `include`";
                let message = error.message().trim_end().to_owned();
                faults.at((file, text), (span.start, span.len()), message, Some(help.into()));
            }
            Self { name: "unreadable".into(), schema: SCHEMA_VERSION, contact: None, include: vec![] }
        });
        // Where a key's line begins.
        let place = |key: &str| {
            let lines = text.split_inclusive('\n').scan(0, |at, line| {
                let begin = *at;
                *at += line.len();
                Some((begin, line))
            });
            let mut found = lines.filter(|(_, line)| line.trim_start().starts_with(key));
            found.next().map_or((0, 1), |(begin, line)| (begin, line.trim_end().len()))
        };
        let Self { name, schema, contact, .. } = &manifest;
        if name.is_empty()
            || name.len() > 64
            || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        {
            let help = "use 1 to 64 letters, digits, `-` or `_`";
            faults.at(
                (file, text),
                place("name"),
                format!("`{}` cannot be a name", name.escape_debug()),
                Some(help.into()),
            );
        }
        if *schema == 1 {
            faults.at(
                (file, text),
                place("schema"),
                "the bundle was written for schema 1",
                Some(MIGRATE.into()),
            );
        } else if *schema != SCHEMA_VERSION {
            let message = format!("`schema = {schema}` is not known to this version");
            let help = format!("it speaks schema {SCHEMA_VERSION}: write `schema = {SCHEMA_VERSION}`");
            faults.at((file, text), place("schema"), message, Some(help));
        }
        if let Some(contact) = contact
            && (contact.is_empty() || contact.len() > 200 || contact.chars().any(char::is_control))
        {
            let help = "use 1 to 200 characters without control characters";
            faults.at(
                (file, text),
                place("contact"),
                "`contact` cannot be shown to people as it is",
                Some(help.into()),
            );
        }
        faults.result(manifest)
    }
}

impl Bundle {
    /// Reads the bundle in a folder and those that it includes.
    pub fn read_dir(folder: &Path) -> Result<Self, BundleError> {
        let mut reader = Reader::default();
        reader.bundle(folder, false)?;
        Ok(Self { files: reader.files })
    }

    /// Reads an archive made by [`Self::to_archive`]. The bytes are not trusted.
    pub fn from_archive(bytes: &[u8]) -> Result<Self, BundleError> {
        Ok(Self { files: archive::decode(bytes)? })
    }

    /// The canonical archive: the same files always give the same bytes.
    pub fn to_archive(&self) -> Vec<u8> {
        archive::encode(&self.files)
    }

    /// The version: SHA-256 of [`Self::to_archive`], in hexadecimal.
    pub fn version(&self) -> String {
        use sha2::Digest as _;
        hex::encode(sha2::Sha256::digest(self.to_archive()))
    }

    /// Paths of all files, sorted.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Content of a file.
    pub fn file(&self, path: &str) -> Option<&[u8]> {
        self.files.get(path).map(Vec::as_slice)
    }

    /// Makes a bundle of files in memory; the same rules of paths and sizes apply as to archives.
    pub fn from_files<I, P, C>(files: I) -> Result<Self, BundleError>
    where
        I: IntoIterator<Item = (P, C)>,
        P: Into<String>,
        C: Into<Vec<u8>>,
    {
        let files: BTreeMap<String, Vec<u8>> =
            files.into_iter().map(|(path, content)| (path.into(), content.into())).collect();
        archive::check(&files)?;
        Ok(Self { files })
    }

    /// What a bundle's manifests include and it does not hold: each with the manifest's path. Bundles are held under
    /// their names, and a path need not end with the name of what lies there; a pack's does.
    pub(crate) fn lacks(manifests: &[(String, Manifest)]) -> Vec<(String, String)> {
        let last = |include: &str| {
            let include = include.trim_end_matches('/');
            include.rsplit(['/', ':']).next().unwrap_or(include).to_owned()
        };
        let held: BTreeSet<String> = manifests
            .iter()
            .filter_map(|(file, _)| Some(file.strip_prefix(INCLUDE)?.split('/').next()?.to_owned()))
            .collect();
        let wanted: BTreeSet<String> = manifests
            .iter()
            .flat_map(|(_, manifest)| &manifest.include)
            .map(|include| last(include))
            .collect();
        let unnamed = held.difference(&wanted).count();
        let missing: BTreeSet<&String> = wanted.difference(&held).collect();
        let all = manifests.iter().flat_map(|(file, manifest)| {
            manifest.include.iter().map(|include| (file.clone(), include.clone()))
        });
        all.filter(|(_, include)| {
            missing.contains(&last(include))
                && (missing.len() > unnamed || include.starts_with(packs::PREFIX))
        })
        .collect()
    }

    /// Prefixes of the bundle itself (`""`) and of the included ones (`include/NAME/`).
    pub(crate) fn parts(&self) -> Vec<String> {
        let included: BTreeSet<String> = self
            .files
            .keys()
            .filter_map(|path| path.strip_prefix(INCLUDE)?.split('/').next())
            .map(|name| format!("{INCLUDE}{name}/"))
            .collect();
        std::iter::once(String::new()).chain(included).collect()
    }
}

/// Collects the files of a bundle and its includes from disk.
#[derive(Default)]
struct Reader {
    files: BTreeMap<String, Vec<u8>>,
    total: usize,
    /// Folder of each included bundle already read, by name.
    included: BTreeMap<String, PathBuf>,
    /// Folders being read, to notice cycles.
    open: Vec<PathBuf>,
}

impl Reader {
    /// Reads one bundle; `includer`: another one named it.
    fn bundle(&mut self, folder: &Path, includer: bool) -> Result<(), BundleError> {
        let read = |source| BundleError::Read { path: folder.to_path_buf(), source };
        let canonical = fs::canonicalize(folder).map_err(read)?;
        if self.open.contains(&canonical) {
            return Err(BundleError::Cycle { path: canonical });
        }
        let manifest_path = folder.join(MANIFEST);
        if !manifest_path.exists() {
            return Err(BundleError::NoManifest { path: folder.to_path_buf() });
        }
        let bytes = self.content(&manifest_path)?;
        let manifest =
            Manifest::parse(&manifest_path.display().to_string(), &bytes).map_err(BundleError::Manifest)?;
        let Some(prefix) = self.prefix(&manifest, includer.then(|| canonical.clone()))? else {
            return Ok(());
        };
        self.open.push(canonical);
        self.folder(folder, &prefix, 0)?;
        let held = folder.join(INCLUDE);
        if !includer && held.is_dir() {
            self.held(&held)?;
        } else {
            for include in &manifest.include {
                match include.strip_prefix(packs::PREFIX) {
                    Some(name) => self.pack(name)?,
                    None => self.bundle(&folder.join(include), true)?,
                }
            }
        }
        self.open.pop();
        Ok(())
    }

    /// Takes the included bundles that the folder itself holds, as they lie there.
    fn held(&mut self, folder: &Path) -> Result<(), BundleError> {
        let read = |source| BundleError::Read { path: folder.to_path_buf(), source };
        for entry in fs::read_dir(folder).map_err(read)? {
            let entry = entry.map_err(read)?;
            let (path, name) = (entry.path(), entry.file_name());
            let Some(name) = name.to_str() else {
                return Err(BundleError::Path { path: path.display().to_string(), why: "it is not UTF-8" });
            };
            if name.starts_with('.') {
                continue;
            }
            let kind = entry.file_type().map_err(read)?;
            if kind.is_symlink() {
                return Err(BundleError::Link { path });
            } else if kind.is_dir() {
                // Nothing in it is at the bundle's top, where other rules hold.
                self.folder(&path, &format!("{INCLUDE}{name}/"), 1)?;
            } else if kind.is_file() && archive::belongs(name) {
                let why = "the folder `include` holds the included bundles, each in a folder of its name, and nothing \
                    else; move the file out of it";
                return Err(BundleError::Path { path: path.display().to_string(), why });
            }
        }
        Ok(())
    }

    /// Takes a pack that comes with this program, and those that it includes.
    fn pack(&mut self, name: &str) -> Result<(), BundleError> {
        let unknown = || BundleError::UnknownPack { name: name.to_owned() };
        let files = packs::find(name).ok_or_else(unknown)?;
        let source = PathBuf::from(format!("{}{name}", packs::PREFIX));
        if self.open.contains(&source) {
            return Err(BundleError::Cycle { path: source });
        }
        let bytes =
            files.iter().find(|(path, _)| *path == MANIFEST).map(|(_, bytes)| *bytes).ok_or_else(unknown)?;
        let manifest = Manifest::parse(&format!("{}/{MANIFEST}", source.display()), bytes)
            .map_err(BundleError::Manifest)?;
        let Some(prefix) = self.prefix(&manifest, Some(source.clone()))? else { return Ok(()) };
        for (path, bytes) in files {
            self.take(format!("{prefix}{path}"), bytes.to_vec())?;
        }
        self.open.push(source);
        for include in &manifest.include {
            // Packs lie side by side: `../base` is `pack:base`.
            self.pack(include.rsplit(['/', ':']).next().unwrap_or(include))?;
        }
        self.open.pop();
        Ok(())
    }

    /// Under which prefix a bundle's files go; none if they are there already. `source`: of an included one, what tells
    /// it from others of its name.
    fn prefix(
        &mut self,
        manifest: &Manifest,
        source: Option<PathBuf>,
    ) -> Result<Option<String>, BundleError> {
        let Some(source) = source else { return Ok(Some(String::new())) };
        if let Some(first) = self.included.get(&manifest.name) {
            if *first == source {
                return Ok(None);
            }
            return Err(BundleError::SameName {
                name: manifest.name.clone(),
                first: first.clone(),
                second: source,
            });
        }
        self.included.insert(manifest.name.clone(), source);
        Ok(Some(format!("{INCLUDE}{}/", manifest.name)))
    }

    /// Takes the files of a folder that belong into a bundle; others (a README, say) are left out.
    fn folder(&mut self, folder: &Path, prefix: &str, depth: usize) -> Result<(), BundleError> {
        if depth > archive::MAX_DEPTH {
            return Err(BundleError::TooLarge { what: "the depth of folders", limit: archive::MAX_DEPTH });
        }
        let read = |source| BundleError::Read { path: folder.to_path_buf(), source };
        for entry in fs::read_dir(folder).map_err(read)? {
            let entry = entry.map_err(read)?;
            let path = entry.path();
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                return Err(BundleError::Path { path: path.display().to_string(), why: "it is not UTF-8" });
            };
            if name.starts_with('.') {
                continue;
            }
            let kind = entry.file_type().map_err(read)?;
            let inside = format!("{prefix}{name}");
            if kind.is_symlink() {
                return Err(BundleError::Link { path });
            } else if kind.is_dir() {
                if depth == 0 && INCLUDE.trim_end_matches('/') == name {
                    if prefix.is_empty() {
                        continue; // See `held`.
                    }
                    return Err(BundleError::Path {
                        path: path.display().to_string(),
                        why: "only the bundle that is read may hold what it includes; include those bundles themselves",
                    });
                }
                // The cases of an included bundle speak of that bundle alone.
                if depth == 0 && name == "tests" && prefix.starts_with(INCLUDE) {
                    continue;
                }
                self.folder(&path, &format!("{inside}/"), depth + 1)?;
            } else if kind.is_file() && archive::belongs(&inside) {
                archive::check_path(&inside)?;
                let content = self.content(&path)?;
                self.take(inside, content)?;
            }
        }
        Ok(())
    }

    /// Takes one file.
    fn take(&mut self, path: String, content: Vec<u8>) -> Result<(), BundleError> {
        self.total += content.len();
        if self.total > archive::MAX_BYTES {
            return Err(BundleError::TooLarge { what: "the total size in bytes", limit: archive::MAX_BYTES });
        }
        self.files.insert(path, content);
        if self.files.len() > archive::MAX_FILES {
            return Err(BundleError::TooLarge { what: "the number of files", limit: archive::MAX_FILES });
        }
        Ok(())
    }

    fn content(&self, path: &Path) -> Result<Vec<u8>, BundleError> {
        let read = |source| BundleError::Read { path: path.to_path_buf(), source };
        let mut content = Vec::new();
        fs::File::open(path)
            .map_err(read)?
            .take(archive::MAX_BYTES as u64 + 1)
            .read_to_end(&mut content)
            .map_err(read)?;
        if content.len() > archive::MAX_BYTES {
            return Err(BundleError::TooLarge {
                what: "the size of a file in bytes",
                limit: archive::MAX_BYTES,
            });
        }
        Ok(content)
    }
}
