//! How a job is run: which runtime takes it, by what its file is run, and what its options become.

use std::collections::BTreeMap;

use cloudtik_config::RuntimeUse;
use cloudtik_model::{NodeTypeName, Resources, RuntimeName, ServiceKey};
use minijinja::{Value, context};

use super::{Availability, Error, Job, NodeContext, Planner, View, Wanted};
use crate::manifest::{Manifest, OPTIONS, RUN, Submit, SubmitOption};
use crate::template::Templates;

/// A job as somebody asks for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobRequest {
    /// Without one, the only runtime that takes jobs is meant.
    pub runtime: Option<RuntimeName>,
    /// Where the job's file is on the head's node.
    pub file: String,
    pub arguments: Vec<String>,
    /// Name and value, in the order in which they were given. The value of an option that takes a file is where that file is
    /// on the head's node.
    pub options: Vec<(String, String)>,
}

/// Why a runtime cannot run a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobRefused {
    #[error("{runtime} cannot run {file}: it runs files that end in {}", endings.join(", "))]
    File { runtime: RuntimeName, file: String, endings: Vec<String> },
    #[error("{runtime} takes no --{option} for a job{}", known(options))]
    Option { runtime: RuntimeName, option: String, options: Vec<String> },
    #[error("--{option} is for files that end in {}, not for {file}", endings.join(", "))]
    OptionOfOthers { option: String, file: String, endings: Vec<String> },
    #[error("--{option} {value:?}: write NAME=VALUE")]
    NoAssignment { option: String, value: String },
}

fn known(options: &[String]) -> String {
    if options.is_empty() { String::new() } else { format!("; it takes {}", options.join(", ")) }
}

/// An ending with its dot, as people write it.
fn dotted(endings: impl Iterator<Item = impl AsRef<str>>) -> Vec<String> {
    endings.map(|ending| format!(".{}", ending.as_ref())).collect()
}

impl Planner {
    /// How a job is run. `workers` are those that are there, by type.
    pub fn job(
        &self,
        request: &JobRequest,
        view: &View,
        head: &NodeContext,
        workers: &[(NodeTypeName, Resources)],
        available: &dyn Fn(&Wanted) -> Availability,
    ) -> Result<Job, Error> {
        let runtime = request.runtime.as_ref();
        let mut takers = self.used().filter(|(r, m)| m.submit.is_some() && runtime.is_none_or(|name| r.name == *name));
        let (used, manifest) = match (takers.next(), takers.next(), runtime) {
            (Some(only), None, _) => only,
            (Some((a, _)), Some((b, _)), _) => {
                return Err(Error::SeveralTakeJobs(a.name.clone(), b.name.clone()));
            }
            (None, _, Some(name)) if self.used().all(|(used, _)| used.name != *name) => return Err(Error::NoRuntime(name.clone())),
            (None, _, Some(name)) => return Err(Error::TakesNoJobs(name.clone())),
            (None, _, None) => return Err(Error::NoneTakesJobs),
        };
        let submit = manifest.submit.as_ref().expect("filtered above");
        self.job_of(used, manifest, submit, request, (view, head, workers), available)
    }

    /// Fills in every template of every runtime that takes jobs, for every kind of file and every option.
    pub(crate) fn check_jobs(&self, view: &View, head: &NodeContext, available: &dyn Fn(&Wanted) -> Availability) -> Result<(), Error> {
        for (used, manifest) in self.used() {
            let Some(submit) = &manifest.submit else { continue };
            let kinds: Vec<Option<&str>> =
                if submit.files.is_empty() { vec![None] } else { submit.files.keys().map(|k| Some(k.as_str())).collect() };
            for kind in kinds {
                let takes = |option: &SubmitOption| option.files.is_empty() || kind.is_some_and(|k| option.files.iter().any(|f| f == k));
                let options = submit.options.iter().filter(|(_, option)| takes(option));
                let request = JobRequest {
                    file: kind.map_or_else(|| "/job".to_owned(), |k| format!("/job.{k}")),
                    options: options.map(|(name, _)| (name.clone(), "NAME=VALUE".to_owned())).collect(),
                    ..JobRequest::default()
                };
                self.job_of(used, manifest, submit, &request, (view, head, &[]), available)?;
            }
        }
        Ok(())
    }

    fn job_of(
        &self,
        used: &RuntimeUse,
        manifest: &Manifest,
        submit: &Submit,
        request: &JobRequest,
        (view, head, workers): (&View, &NodeContext, &[(NodeTypeName, Resources)]),
        available: &dyn Fn(&Wanted) -> Availability,
    ) -> Result<Job, Error> {
        let service = manifest.service(&submit.service).expect("checked when the manifest was read");
        let key = manifest.key(service);
        let run = kind_of(manifest, submit, &request.file)?;
        check_options(manifest, submit, request)?;
        let software = self.software(used, manifest, head, available)?;
        let values = self.values(used, manifest, service, view, head, &software);
        let cluster = context! { name => self.cluster().name.as_str(), cpus => self.cpus_for_jobs(manifest, workers) };
        let values = context! { job => context! { file => request.file }, cluster => cluster, ..values };
        let filler = Filler { templates: &self.templates, key: &key, values: &values };
        let mut environment = BTreeMap::new();
        for (name, text) in &submit.environment {
            environment.insert(name.clone(), filler.fill("the submit environment", text)?);
        }
        let options = filler.options(submit, request, &mut environment)?;
        let mut command = Vec::new();
        for text in &submit.command {
            match text.trim() {
                OPTIONS => command.extend(options.iter().cloned()),
                RUN => command.extend(run.iter().map(|t| filler.fill("submit.files", t)).collect::<Result<Vec<_>, _>>()?),
                _ => command.push(filler.fill("the submit command", text)?),
            }
        }
        command.extend(request.arguments.iter().cloned());
        Ok(Job { runtime: used.name.clone(), command, environment, needs: key })
    }

    /// The processors that the jobs of a runtime share: those of the workers that it has, or may come to have where a policy
    /// makes it grow. At least 1.
    fn cpus_for_jobs(&self, manifest: &Manifest, workers: &[(NodeTypeName, Resources)]) -> u64 {
        let there: u64 = workers.iter().filter(|(name, _)| manifest.runs_on_workers(name)).map(|(_, r)| u64::from(r.cpus)).sum();
        if self.cluster().scaling.is_empty() {
            return there.max(1);
        }
        let types = self.cluster().workers.iter().filter(|(name, _)| manifest.runs_on_workers(name));
        let mut most: Vec<(u64, u64)> = types
            .filter_map(|(name, described)| {
                let of_type = workers.iter().filter(|(of, _)| of == name).map(|(_, resources)| resources.cpus);
                Some((u64::from(described.cpus.into_iter().chain(of_type).max()?), u64::from(described.max)))
            })
            .collect();
        most.sort_unstable();
        let mut left = u64::from(self.cluster().max_workers);
        let mut sum = 0;
        while let Some((cpus, count)) = most.pop() {
            sum += cpus * count.min(left);
            left -= count.min(left);
        }
        sum.max(there).max(1)
    }
}

/// By what a file is run, if that depends on its ending.
fn kind_of<'a>(manifest: &Manifest, submit: &'a Submit, file: &str) -> Result<&'a [String], JobRefused> {
    if submit.files.is_empty() {
        return Ok(&[]);
    }
    ending(file).and_then(|ending| submit.files.get(ending)).map(Vec::as_slice).ok_or_else(|| JobRefused::File {
        runtime: manifest.name.clone(),
        file: name(file).to_owned(),
        endings: dotted(submit.files.keys()),
    })
}

fn name(file: &str) -> &str {
    file.rsplit('/').next().unwrap_or(file)
}

fn ending(file: &str) -> Option<&str> {
    name(file).rsplit_once('.').map(|(_, ending)| ending)
}

fn check_options(manifest: &Manifest, submit: &Submit, request: &JobRequest) -> Result<(), JobRefused> {
    for (option, value) in &request.options {
        let Some(known) = submit.options.get(option) else {
            let options = submit.options.keys().map(|name| format!("--{name}")).collect();
            return Err(JobRefused::Option { runtime: manifest.name.clone(), option: option.clone(), options });
        };
        let is_for = |ending: &str| known.files.iter().any(|file| file == ending);
        if !known.files.is_empty() && !ending(&request.file).is_some_and(is_for) {
            let (file, endings) = (name(&request.file).to_owned(), dotted(known.files.iter()));
            return Err(JobRefused::OptionOfOthers { option: option.clone(), file, endings });
        }
        if known.environment && value.split_once('=').is_none_or(|(name, _)| name.is_empty()) {
            return Err(JobRefused::NoAssignment { option: option.clone(), value: value.clone() });
        }
    }
    Ok(())
}

struct Filler<'a> {
    templates: &'a Templates,
    key: &'a ServiceKey,
    values: &'a Value,
}

impl Filler<'_> {
    fn fill(&self, what: &'static str, text: &str) -> Result<String, Error> {
        self.fill_with(what, text, self.values)
    }

    fn fill_with(&self, what: &'static str, text: &str, values: &Value) -> Result<String, Error> {
        self.templates.render(what, text, values).map_err(|source| Error::Template { service: self.key.clone(), what, source })
    }

    /// The arguments that options become; variables go into `environment`.
    fn options(&self, submit: &Submit, request: &JobRequest, environment: &mut BTreeMap<String, String>) -> Result<Vec<String>, Error> {
        let mut arguments = Vec::new();
        for (place, (name, value)) in request.options.iter().enumerate() {
            let Some(option) = submit.options.get(name) else { continue };
            if let Some((variable, value)) = value.split_once('=').filter(|_| option.environment) {
                environment.insert(variable.to_owned(), value.to_owned());
            }
            let all: Vec<&str> = request.options.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str()).collect();
            // Once, where it was given first.
            if option.together && request.options[..place].iter().any(|(other, _)| other == name) {
                continue;
            }
            let values = context! { value => value, values => all, ..self.values.clone() };
            for text in &option.arguments {
                arguments.push(self.fill_with("an option of a job", text, &values)?);
            }
        }
        Ok(arguments)
    }
}
