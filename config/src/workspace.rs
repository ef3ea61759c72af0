//! Workspace files: a name and a provider. What else stands in the provider's table belongs to the provider.

use cloudtik_model::{ProviderKind, WorkspaceName};

use crate::diagnostics::InvalidFile;
use crate::reader::{At, Problems, Table, read_file};

/// A validated description of a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    pub name: WorkspaceName,
    /// Where it is. What else `[provider]` says is read by the provider itself.
    pub provider: At<ProviderKind>,
}

impl Workspace {
    /// Reads a workspace file. `name` is what problems call it.
    pub fn read(name: &str, text: &str) -> Result<Self, InvalidFile> {
        read_file(name, text, read_workspace)
    }
}

/// Whether two files say the same, whatever their comments, spaces and order. Files that are no TOML are compared as they are.
pub fn says_the_same(one: &str, other: &str) -> bool {
    match (one.parse::<toml::Table>(), other.parse::<toml::Table>()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

/// The definition of a workspace as a cluster file needs it: the name, and the cluster's own provider. Nothing if the text is no
/// cluster file.
pub fn needed_by(cluster_file: &str, workspace: &WorkspaceName) -> Option<String> {
    let mut file: toml::Table = cluster_file.parse().ok()?;
    let provider = file.remove("provider")?;
    let name = toml::Table::from_iter([("name".to_owned(), workspace.to_string().into())]);
    let definition = toml::Table::from_iter([("workspace".to_owned(), name.into()), ("provider".to_owned(), provider)]);
    toml::to_string(&definition).ok()
}

fn read_workspace(root: &mut Table<'_>, _: &Problems) -> Option<Workspace> {
    if !root.has("workspace")
        && let Some(mut cluster) = root.table("cluster")
    {
        let help = "`cloudtik up` takes it; a workspace file has [workspace] and [provider]".to_owned();
        cluster.problem("this is a cluster file, not a workspace file", Some(help));
        cluster.accept_all();
        root.accept_all();
        return None;
    }
    let provider = root.require_table("provider").and_then(|mut table| table.require("kind", "\"local\""));
    let mut table = root.require_table("workspace")?;
    let name = table.require::<WorkspaceName>("name", "\"dev\"");
    table.finish();
    Some(Workspace { name: name?.value, provider: provider? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_a_name_and_a_provider() {
        let text = "[workspace]\nname = \"dev\"\n[provider]\nkind = \"local\"\nregion = \"the provider's own\"\n";
        let workspace = Workspace::read("w.toml", text).expect("valid");
        assert_eq!((workspace.name.as_str(), workspace.provider.value.as_str()), ("dev", "local"));
    }

    #[test]
    fn what_a_cluster_needs_is_a_workspace_of_its_own_provider() {
        let cluster = "[cluster]\nname = \"demo\"\n[provider]\nkind = \"cloud\"\nregion = \"north\"\n[provider.network]\nsize = 3\n";
        let text = needed_by(cluster, &WorkspaceName::new("dev").expect("a name")).expect("a provider");
        assert!(says_the_same(
            &text,
            "[workspace]\nname = \"dev\"\n[provider]\nkind = \"cloud\"\nregion = \"north\"\nnetwork = { size = 3 }"
        ));
        assert_eq!(Workspace::read("w.toml", &text).expect("valid").name.as_str(), "dev");
    }

    #[test]
    fn comments_and_order_say_nothing() {
        let one = "# mine\n[provider]\nkind = \"local\"\n[workspace]\nname = \"dev\"\n";
        assert!(says_the_same(one, "[workspace]\nname = 'dev'\n[provider]\nkind = 'local'"));
        assert!(!says_the_same(one, "[workspace]\nname = 'dev'\n[provider]\nkind = 'local'\nregion = 'north'"));
        assert!(!says_the_same(one, "[workspace"));
    }
}
