//! What the processes of services and jobs find in their environment.

use std::collections::BTreeMap;
use std::path::Path;

use cloudtik_model::bootstrap::NODE_HOME_VARIABLE;

/// Where programs are found unless a goal says otherwise.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What every process has, then its own, then the mark of the node that it belongs to.
pub fn environment(home: &Path, own: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::from([
        ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
        ("HOME".to_owned(), home.display().to_string()),
        ("LANG".to_owned(), "C.UTF-8".to_owned()),
    ]);
    all.extend(own.clone());
    if let Ok(node) = std::env::var(NODE_HOME_VARIABLE) {
        all.insert(NODE_HOME_VARIABLE.to_owned(), node);
    }
    all
}
