//! The runtimes that are shipped, and the user's own beside them; all are read the same way.

mod settings;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use cloudtik_config::diagnostics::InvalidFile;
use cloudtik_config::reader::nearest;
use cloudtik_config::scaling::Scaling;
use cloudtik_config::{Problem, RuntimeUse, text};
use cloudtik_model::RuntimeName;
use cloudtik_model::policy::Rule;

pub(crate) use self::settings::{DEFAULT_MEMORY_SHARE, share_of};
use crate::manifest::{Folder, Manifest, Signal};

macro_rules! shipped {
    ($($name:literal: [$($file:literal),* $(,)?]),* $(,)?) => {
        &[$(($name, &[$(($file, include_str!(concat!("../catalog/", $name, "/", $file)))),*])),*]
    };
}

type Shipped = &'static [(&'static str, &'static [(&'static str, &'static str)])];

const SHIPPED: Shipped = shipped! {
    "prometheus": ["runtime.toml", "prometheus.yml"],
    "spark": ["runtime.toml", "spark-defaults.conf", "metrics.properties", "log4j2.properties", "driver-log4j2.properties"],
};

/// The file that makes a folder a runtime.
pub const MANIFEST: &str = "runtime.toml";
/// The most that a runtime's file may hold, in bytes: it is a template, not an artifact.
const MAX_FILE: u64 = 1 << 20;

/// The manifests that a cluster uses.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    manifests: BTreeMap<RuntimeName, Manifest>,
}

impl Catalog {
    /// Every shipped runtime.
    pub fn shipped() -> Self {
        let manifests = SHIPPED.iter().map(|(name, files)| {
            let folder = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
            let manifest = Manifest::read(name, &folder).unwrap_or_else(|e| panic!("the shipped runtime {name} is valid: {e}"));
            (manifest.name.clone(), manifest)
        });
        Self { manifests: manifests.collect() }
    }

    /// The signal that a policy calls `<runtime>.<signal>`.
    pub fn signal(&self, name: &str) -> Option<&Signal> {
        let (runtime, signal) = name.split_once('.')?;
        self.manifests.iter().find(|(name, _)| name.as_str() == runtime)?.1.signals.get(signal)
    }

    /// Whether every signal that policies follow is one that a runtime gives. `file` and `text` are the cluster file, for
    /// problems.
    pub fn check_signals(&self, policies: &[Scaling], file: &str, text: &str) -> Result<(), InvalidFile> {
        let mut problems = Vec::new();
        for scaling in policies {
            let Rule::Signal { signal, .. } = &scaling.policy.rule else { continue };
            let Some((runtime, name)) = signal.split_once('.') else { continue };
            let Some((_, manifest)) = self.manifests.iter().find(|(r, _)| r.as_str() == runtime) else { continue };
            if manifest.signals.contains_key(name) {
                continue;
            }
            let known = manifest.signals.keys().map(String::as_str);
            let help = match (nearest(name, known.clone()), manifest.signals.is_empty()) {
                (Some(near), _) => format!("did you mean `{runtime}.{near}`?"),
                (None, true) => format!("the runtime {runtime} gives none"),
                (None, false) => format!("it gives: {}", known.collect::<Vec<_>>().join(", ")),
            };
            problems.push(Problem {
                span: scaling.span.clone(),
                message: format!("the runtime {runtime} gives no signal `{name}`"),
                help: Some(help),
            });
        }
        if problems.is_empty() { Ok(()) } else { Err(InvalidFile::new(file, text, problems)) }
    }

    /// The manifests of the runtimes of a cluster. `folders` are the user's own by the name in the cluster file. `file`
    /// and `text` are the cluster file, for problems.
    pub fn of_cluster(
        uses: &[RuntimeUse],
        folders: &BTreeMap<RuntimeName, Folder>,
        file: &str,
        text: &str,
    ) -> Result<Self, Vec<InvalidFile>> {
        let shipped = Self::shipped();
        let (mut manifests, mut problems, mut invalid) = (BTreeMap::new(), Vec::new(), Vec::new());
        for wanted in uses {
            match Self::find(&shipped, wanted, folders) {
                Ok(manifest) => {
                    manifests.insert(wanted.name.clone(), manifest);
                }
                Err(Missing::Unknown(problem)) => problems.push(problem),
                Err(Missing::Invalid(error)) => invalid.push(error),
            }
        }
        let catalog = Self { manifests };
        if invalid.is_empty() {
            problems.extend(catalog.property_problems(uses));
            problems.extend(catalog.unmet_needs(uses));
        }
        if !problems.is_empty() {
            invalid.insert(0, InvalidFile::new(file, text, problems));
        }
        if invalid.is_empty() { Ok(catalog) } else { Err(invalid) }
    }

    fn find(shipped: &Self, wanted: &RuntimeUse, folders: &BTreeMap<RuntimeName, Folder>) -> Result<Manifest, Missing> {
        let unknown = |message: String, help: Option<String>| Missing::Unknown(Problem { span: wanted.span.clone(), message, help });
        if let Some(path) = &wanted.path {
            let Some(folder) = folders.get(&wanted.name) else {
                return Err(unknown(format!("the folder {path:?} of the runtime {} cannot be read", wanted.name), None));
            };
            let manifest = Manifest::read(path, folder).map_err(Missing::Invalid)?;
            if manifest.name != wanted.name {
                let help = Some(format!("name the table [runtimes.{}]", manifest.name));
                return Err(unknown(format!("the folder {path:?} holds the runtime {}, not {}", manifest.name, wanted.name), help));
            }
            return Ok(manifest);
        }
        shipped.manifests.get(&wanted.name).cloned().ok_or_else(|| {
            let names = shipped.manifests.keys().map(RuntimeName::as_str);
            let help = nearest(wanted.name.as_str(), names.clone()).map(|near| format!("did you mean `{near}`?"));
            let help = help
                .unwrap_or_else(|| format!("shipped: {}; one of your own needs path = \"./folder\"", names.collect::<Vec<_>>().join(", ")));
            unknown(format!("there is no runtime `{}`", wanted.name), Some(help))
        })
    }

    /// Predecessors in runtimes that the cluster does not have.
    fn unmet_needs(&self, uses: &[RuntimeUse]) -> Vec<Problem> {
        let mut problems = Vec::new();
        for wanted in uses {
            let Some(manifest) = self.manifests.get(&wanted.name) else { continue };
            for service in &manifest.services {
                for key in &service.after {
                    let known = self.manifests.get(&key.runtime).is_some_and(|m| m.service(&key.service).is_some());
                    if !known {
                        problems.push(Problem {
                            span: wanted.span.clone(),
                            message: format!("{}/{} comes after {key}, which this cluster does not have", wanted.name, service.name),
                            help: Some(format!("add [runtimes.{}]", key.runtime)),
                        });
                    }
                }
            }
        }
        problems
    }

    pub fn get(&self, name: &RuntimeName) -> Option<&Manifest> {
        self.manifests.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Manifest> {
        self.manifests.values()
    }
}

enum Missing {
    Unknown(Problem),
    Invalid(InvalidFile),
}

/// Why a runtime's folder cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("the folder cannot be read")]
    Io(#[from] io::Error),
    /// The manifest is no text.
    #[error(transparent)]
    Invalid(#[from] InvalidFile),
}

/// Reads the user's own runtime folders that a cluster file names, relative to the file's directory; also tells which
/// manifests are no text. A folder that cannot be read is left out, and noticed when the catalog is made.
pub fn read_folders(uses: &[RuntimeUse], base: &Path) -> (BTreeMap<RuntimeName, Folder>, Vec<InvalidFile>) {
    let (mut folders, mut invalid) = (BTreeMap::new(), Vec::new());
    for (name, path) in uses.iter().filter_map(|r| Some((&r.name, r.path.as_ref()?))) {
        match read_folder(&base.join(path)) {
            Ok(folder) => {
                folders.insert(name.clone(), folder);
            }
            Err(FolderError::Invalid(problem)) => invalid.push(problem),
            Err(FolderError::Io(_)) => {}
        }
    }
    (folders, invalid)
}

/// Reads a runtime's folder.
pub fn read_folder(directory: &Path) -> Result<Folder, FolderError> {
    let mut folder = Folder::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in std::fs::read_dir(&next)? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_file() && entry.metadata()?.len() <= MAX_FILE {
                let relative = path.strip_prefix(directory).expect("found below it").to_string_lossy().into_owned();
                let bytes = std::fs::read(&path);
                if relative == MANIFEST {
                    folder.insert(relative, text::decode(&path.display().to_string(), &bytes?)?);
                } else if let Some(text) = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok()) {
                    // What is not text is no template; documents beside the manifest do no harm.
                    folder.insert(relative, text);
                }
            }
        }
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_runtimes_are_valid() {
        let names: Vec<_> = Catalog::shipped().iter().map(|m| m.name.to_string()).collect();
        assert_eq!(names, ["prometheus", "spark"]);
    }
}
