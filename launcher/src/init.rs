//! `cloudtik init`: a cluster file to start from.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use cloudtik_model::ClusterName;

use crate::described::is_standard_input;
use crate::failure::{FAILED, Failure, NOT_AUTHORISED, REFUSED};
use crate::output::{Printer, quoted};

/// With `NAME` for the cluster's name.
const TEMPLATE: &str = include_str!("init.toml");

fn text(name: &ClusterName) -> String {
    TEMPLATE.replace("NAME", name.as_str())
}

pub fn run(printer: &Printer, file: &Path, name: &ClusterName) -> Result<(), Failure> {
    let (text, path) = (text(name), file.display().to_string());
    if is_standard_input(file) {
        printer.raw(text.as_bytes());
        return Ok(());
    }
    // Whatever is there already, a link included, is not written through.
    let created = OpenOptions::new().write(true).create_new(true).open(file);
    let mut created = created.map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => Failure::new(REFUSED, format!("{path} exists already; it was not changed"))
            .hint("name another file, such as `cloudtik init other.toml`"),
        io::ErrorKind::PermissionDenied => Failure::new(NOT_AUTHORISED, format!("cannot create {path}: permission denied")),
        _ => Failure::new(FAILED, format!("cannot create {path}: {e}")),
    })?;
    created.write_all(text.as_bytes()).map_err(|e| Failure::failed(format!("cannot write {path}: {e}")))?;
    if printer.is_json() {
        printer.json(&serde_json::json!({ "file": path, "cluster": name }));
    } else {
        printer.say(&format!("wrote {path}; create the cluster with `cloudtik up {}`", quoted(&path.to_string())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cloudtik_config::Cluster;

    use super::*;

    fn written() -> String {
        text(&ClusterName::new("first").expect("a name"))
    }

    #[test]
    fn the_file_to_start_from_is_a_valid_cluster() {
        let cluster = Cluster::read("cluster.toml", &written()).unwrap_or_else(|e| panic!("{}", e.render(false, 80)));
        assert_eq!((cluster.name.as_str(), cluster.workers.len()), ("first", 1));
    }

    #[test]
    fn all_that_it_has_in_comments_is_valid_too() {
        // What is not prose: keys and tables.
        let is_setting = |line: &&str| line.starts_with('[') || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
        let written = written();
        let uncommented: Vec<&str> =
            written.lines().map(|line| line.strip_prefix("# ").filter(|rest| is_setting(rest)).unwrap_or(line)).collect();
        let text = uncommented.join("\n");
        assert!(text.lines().filter(|line| !line.starts_with('#')).count() > 25, "{text}");
        let cluster = Cluster::read("cluster.toml", &text).unwrap_or_else(|e| panic!("{}\n{text}", e.render(false, 80)));
        assert_eq!((cluster.workers.len(), cluster.runtimes.len(), cluster.scaling.len()), (2, 2, 1));
        assert!(text.lines().all(|line| line.len() <= 80));
    }
}
