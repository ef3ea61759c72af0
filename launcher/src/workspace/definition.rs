//! Which workspaces there are, and how a person names one.
//!
//! A workspace is known by its definition: the text of the file that was applied last, in `workspaces/NAME.toml`. It is
//! written before the first step of a plan and removed after the last step of a removal, so that a workspace that is there
//! only in part is known by its name. It lies beside the workspace's directory and not in it, since what is in there may be a
//! resource of the provider. What exists of a workspace is not remembered: the provider says it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cloudtik_config::workspace::{needed_by, says_the_same};
use cloudtik_config::{InvalidFile, Problem, Workspace, reader};
use cloudtik_model::WorkspaceName;
use cloudtik_protocol::files::write_atomically;
use cloudtik_providers::kind::WorkspaceSite;
use cloudtik_providers::machine::AGENT;
use cloudtik_providers::{Chosen, WorkspaceProvider};
use cloudtik_registry::registry;
use serde::{Deserialize, Serialize};

use super::change::Said;
use crate::clusters::{program, programs_directory, workspace, workspace_names, workspaces};
use crate::described::{Described, directory_of, is_standard_input, read_text};
use crate::failure::{Failure, NOT_FOUND, USAGE};
use crate::output::{listed, quoted};

/// A workspace as it is to be.
#[derive(Clone)]
pub struct Definition {
    pub name: WorkspaceName,
    provider: Chosen,
    text: String,
    /// The directory by which paths in it go: that of the file that it came from.
    base: PathBuf,
}

/// Begins what is noted of a definition below its text.
const KEPT: &str = "\n[kept]\n";

/// What is noted of a definition.
#[derive(Serialize, Deserialize)]
struct Kept {
    directory: PathBuf,
}

/// Where the definition of a workspace is kept.
pub fn path_of(name: &WorkspaceName) -> Result<PathBuf, Failure> {
    Ok(workspaces()?.join(format!("{name}.toml")))
}

impl Definition {
    /// `file` is what problems call it.
    fn read(file: &str, text: String, base: PathBuf) -> Result<Self, Failure> {
        let (read, provider) = match (Workspace::read(file, &text), registry().read(file, &text)) {
            (Ok(read), Ok(Some(provider))) => (read, provider),
            (Ok(_), Ok(None)) => unreachable!("a workspace that was read names its provider"),
            (Ok(_), Err(invalid)) | (Err(invalid), Ok(_)) => return Err(Failure::invalid(vec![invalid])),
            (Err(mut invalid), Err(other)) => {
                invalid.absorb(other);
                return Err(Failure::invalid(vec![invalid]));
            }
        };
        if provider.kind().machines().is_none() {
            let message = format!("the provider `{}` has no workspaces: it creates no machines", read.provider.value);
            let problem = Problem { span: read.provider.span, message, help: Some("`cloudtik simulate` needs no workspace".to_owned()) };
            return Err(Failure::invalid(vec![InvalidFile::new(file, text, vec![problem])]));
        }
        Ok(Self { name: read.name, provider, text, base })
    }

    fn of_file(file: &Path) -> Result<Self, Failure> {
        let (name, text) = read_text(file).map_err(|failure| match failure.code {
            NOT_FOUND => failure.hint("docs/workspace-file.md shows what such a file has"),
            _ => failure,
        })?;
        Self::read(&name, text, directory_of(file)?)
    }

    /// What a cluster needs.
    pub fn needed_by(described: &Described) -> Result<Self, Failure> {
        let cluster = &described.cluster;
        let text = needed_by(&described.text, &cluster.workspace).ok_or_else(|| Failure::failed("the cluster file names no provider"))?;
        let text = format!("# Made by `cloudtik up` for the cluster {}.\n{text}", cluster.name);
        Self::read("the workspace's definition", text, described.base()?)
    }

    /// What was applied last, if the workspace was made here.
    pub fn applied(name: &WorkspaceName) -> Result<Option<Self>, Failure> {
        let path = path_of(name)?;
        match fs::read_to_string(&path) {
            Ok(text) => {
                let hint = |failure: Failure| failure.hint(format!("mend or remove {}, which cloudtik keeps", path.display()));
                let name = path.display().to_string();
                let (text, kept) = text.rsplit_once(KEPT).unwrap_or((&text, ""));
                let unreadable = |e| hint(Failure::failed(format!("{name}: [kept] is malformed: {e}")));
                let Kept { directory } = toml::from_str(kept).map_err(unreadable)?;
                Self::read(&name, text.to_owned(), directory).map(Some).map_err(hint)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::failed(format!("cannot read {}: {error}", path.display()))),
        }
    }

    /// Notes that this is what is applied. The directory of workspaces must exist.
    pub fn remember(&self) -> Result<(), Failure> {
        let path = path_of(&self.name)?;
        let kept = toml::to_string(&Kept { directory: self.base.clone() }).map_err(|e| Failure::failed(e.to_string()))?;
        let text = format!("{}{KEPT}{kept}", self.text);
        if fs::read_to_string(&path).is_ok_and(|known| known == text) {
            return Ok(());
        }
        write_atomically(&path, text.as_bytes(), 0o600).map_err(|e| Failure::failed(format!("cannot write {}: {e}", path.display())))
    }

    pub async fn open(&self) -> Result<Arc<dyn WorkspaceProvider>, Failure> {
        let (directory, agent) = (workspace(&self.name)?, program(AGENT)?);
        let site = WorkspaceSite { directory: &directory, base: &self.base, agent: &agent, programs: &programs_directory()? };
        Ok(self.provider.machines()?.workspace(&self.provider.settings, &site).await?)
    }

    pub fn said(&self) -> Said<'_> {
        Said { kind: self.kind(), text: &self.text }
    }

    /// The provider's kind.
    pub fn kind(&self) -> &'static str {
        self.provider.kind().name()
    }

    /// Whether both describe the same workspace, whatever their comments.
    pub fn says_the_same(&self, other: &Self) -> bool {
        says_the_same(&self.text, &other.text)
    }
}

/// Forgets a workspace of which nothing exists any more.
pub fn forget(name: &WorkspaceName) -> Result<(), Failure> {
    let path = path_of(name)?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::failed(format!("cannot remove {}: {error}", path.display()))),
        _ => Ok(()),
    }
}

/// The workspace that a person means.
pub struct Named {
    pub name: WorkspaceName,
    /// What the person's file says, if one was named.
    pub file: Option<Definition>,
    /// As the person named it, for a shell.
    pub typed: String,
}

impl Named {
    /// The workspace of a name, or of the path of its file; without either it is the only one.
    pub fn find(named: Option<&str>) -> Result<Self, Failure> {
        let Some(named) = named else { return Self::only() };
        let path = Path::new(named);
        if named.contains('/') || named.ends_with(".toml") || is_standard_input(path) {
            let file = Definition::of_file(path)?;
            return Ok(Self { name: file.name.clone(), file: Some(file), typed: quoted(named) });
        }
        let all = workspace_names()?;
        if let Some(name) = all.iter().find(|name| name.as_str() == named) {
            return Ok(Self::known(name.clone()));
        }
        let failure = Failure::new(NOT_FOUND, format!("there is no workspace {named}"));
        Err(match reader::nearest(named, all.iter().map(WorkspaceName::as_str)) {
            Some(near) => failure.hint(format!("did you mean `{near}`?")),
            None if path.is_file() => failure.hint(format!("for the file of that name, write ./{}", quoted(named))),
            None if all.is_empty() => failure.hint(CREATE_ONE),
            None => failure.hint(format!("there is: {}", listed(&all))),
        })
    }

    fn only() -> Result<Self, Failure> {
        match &workspace_names()?[..] {
            [] => Err(Failure::new(NOT_FOUND, "there is no workspace").hint(CREATE_ONE)),
            [name] => Ok(Self::known(name.clone())),
            several => {
                let message = format!("there are {} workspaces: say which", several.len());
                Err(Failure::new(USAGE, message).hint(format!("name one of: {}", listed(several))))
            }
        }
    }

    fn known(name: WorkspaceName) -> Self {
        Self { typed: name.to_string(), name, file: None }
    }

    /// What was applied last; else what the person's file says.
    pub fn definition(&self) -> Result<Definition, Failure> {
        Definition::applied(&self.name)?.or_else(|| self.file.clone()).ok_or_else(|| {
            let message = format!("the provider of the workspace {} is not known: its definition is missing", self.name);
            Failure::new(NOT_FOUND, message).hint("name its file instead; `cloudtik workspace create FILE` keeps the definition")
        })
    }
}

const CREATE_ONE: &str = "create one: `cloudtik workspace create workspace.toml`";
