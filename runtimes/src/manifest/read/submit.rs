//! `[submit]`: how jobs are run.

use std::collections::BTreeMap;

use cloudtik_config::reader::{At, Table, nearest};
use cloudtik_model::ServiceName;

use super::super::{JobPart, Service, Submit, SubmitOption};
use super::Checked;
use crate::manifest::{OPTIONS, RUN};

/// The options of `cloudtik submit` that a runtime may take.
const OPTION_NAMES: [&str; 5] = ["class", "conf", "env", "packages", "py-files"];

pub(super) fn read_submit(mut table: Table<'_>, checked: &Checked<'_>, services: &[Service]) -> Option<Submit> {
    let service = table.require::<ServiceName>("service", "\"master\"");
    if let Some(service) = &service
        && !services.iter().any(|s| s.name == service.value)
    {
        checked.problems.note(service.span.clone(), format!("there is no service {:?}", service.value), None);
    }
    if !table.has("command") {
        table.problem("`submit.command` is missing", None);
    }
    // These two stand for several arguments, so they are elements of their own.
    let command: Vec<String> = table
        .texts("command")
        .into_iter()
        .map(|text| if [OPTIONS, RUN].contains(&text.value.trim()) { text.value } else { checked.text(text) })
        .collect();
    let environment = checked.map(table.table("environment"));
    let part = table.table("part").and_then(|table| read_part(table, checked));
    let files = read_files(&mut table, checked);
    let options = read_options(&mut table, checked, &files);
    for (key, element, is_used) in [("files", RUN, !files.is_empty()), ("options", OPTIONS, !options.is_empty())] {
        if is_used && table.has("command") && !command.iter().any(|text| text.trim() == element) {
            table.problem(format!("`submit.{key}` has no place in `submit.command`"), Some(format!("add the element {element:?}")));
        }
    }
    table.finish();
    Some(Submit { command, environment, service: service?.value, part, files, options })
}

fn read_files(table: &mut Table<'_>, checked: &Checked<'_>) -> BTreeMap<String, Vec<String>> {
    let mut files = BTreeMap::new();
    let Some(mut inner) = table.table("files") else { return files };
    for ending in inner.names::<String>() {
        let run = checked.texts(inner.texts(&ending.value));
        if ending.value.is_empty() || ending.value.contains(['.', '/']) {
            let help = Some("such as py = [\"{{ job.file }}\"]".to_owned());
            checked.problems.note(ending.span, format!("{:?} is no ending of a file's name without its dot", ending.value), help);
        }
        files.insert(ending.value, run);
    }
    files
}

fn read_options(table: &mut Table<'_>, checked: &Checked<'_>, files: &BTreeMap<String, Vec<String>>) -> BTreeMap<String, SubmitOption> {
    let mut options = BTreeMap::new();
    let Some(mut inner) = table.table("options") else { return options };
    for name in inner.names::<String>() {
        if !OPTION_NAMES.contains(&name.value.as_str()) {
            let near = nearest(&name.value, OPTION_NAMES.into_iter()).map(|near| format!("did you mean `{near}`?"));
            let help = near.unwrap_or_else(|| format!("one of {}", OPTION_NAMES.join(", ")));
            checked.problems.note(name.span.clone(), format!("`cloudtik submit` has no option `{}`", name.value), Some(help));
        }
        let Some(mut option) = inner.table(&name.value) else { continue };
        let arguments = checked.texts(option.texts("arguments"));
        let together = option.boolean("together").unwrap_or(false);
        let environment = option.boolean("environment").unwrap_or(false);
        let endings: Vec<String> = option.texts("files").into_iter().map(|ending| known_ending(ending, checked, files)).collect();
        option.finish();
        options.insert(name.value, SubmitOption { arguments, together, environment, files: endings });
    }
    options
}

fn known_ending(ending: At<String>, checked: &Checked<'_>, files: &BTreeMap<String, Vec<String>>) -> String {
    if !files.contains_key(&ending.value) {
        let near = nearest(&ending.value, files.keys().map(String::as_str)).map(|near| format!("did you mean {near:?}?"));
        checked.problems.note(ending.span, format!("`submit.files` has no {:?}", ending.value), near);
    }
    ending.value
}

fn read_part(mut table: Table<'_>, checked: &Checked<'_>) -> Option<JobPart> {
    let name = table.require_text("name", "\"executor\"");
    let mut amount = |key: &str| table.scalar(key).map(|c| checked.text(At { span: c.span, value: c.value.to_string() }));
    let (cpus, memory) = (amount("cpus"), amount("memory"));
    let advice = table.text("advice").map(|a| a.value).unwrap_or_default();
    table.finish();
    Some(JobPart { name: name?.value, cpus, memory, advice })
}
