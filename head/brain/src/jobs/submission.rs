//! Which jobs are taken, and what they are called.

use std::path::Path;

use cloudtik_model::answer::Answer;
use cloudtik_model::event::What;
use cloudtik_model::job::{JobSpec, JobState, Work};
use cloudtik_model::refusal::Refusal;
use cloudtik_model::{JobId, JobName, ServiceKey};

use super::queue::{fits, head_room};
use crate::{Brain, JobRecord, Request};

/// So many jobs that have not ended there may be.
const MAX_UNFINISHED: usize = 10_000;
/// The longest part of a file's name that becomes part of a job's: its number follows.
const MAX_STEM: usize = 40;

impl Brain {
    pub(crate) fn take_job(&mut self, request: Request, spec: JobSpec, needs: Option<ServiceKey>) {
        // A command whose answer was lost submits again: that is the job that it made, whatever became of it.
        if let Some((job, name)) = self.submitted(&spec.submission) {
            return self.done(request, Answer::JobSubmitted { job, name, again: true });
        }
        if let Err(refusal) = self.may_submit(&spec) {
            return self.refuse_job(request, refusal);
        }
        self.jobs.last.0 += 1;
        let id = self.jobs.last;
        let name = spec.name.clone().unwrap_or_else(|| self.free_name(&spec, id));
        let record = JobRecord {
            id,
            name: name.clone(),
            spec,
            needs,
            by: request.actor.clone(),
            submitted: self.clock.wall(),
            state: JobState::Queued { not_before: None },
            attempt: 0,
            history: Vec::new(),
            cancelled: None,
        };
        self.store_cluster();
        self.store_job(record);
        self.requested(&request.actor, None, What::JobSubmitted { job: id, name: name.clone() });
        self.done(request, Answer::JobSubmitted { job: id, name, again: false });
    }

    /// Answers and stores a refusal of what somebody asked for about a job.
    pub(super) fn refuse_job(&mut self, request: Request, refusal: Refusal) {
        self.complain_of(Some(&request.actor), None, What::Refused { refusal: refusal.clone() });
        self.reply(request, Err(refusal));
    }

    fn may_submit(&self, spec: &JobSpec) -> Result<(), Refusal> {
        if spec.submission.is_empty() || spec.submission.len() > JobSpec::MAX_SUBMISSION {
            return Err(Refusal::JobWithoutSubmission);
        }
        if self.cluster.spec.is_none() {
            return Err(Refusal::NoSpecification);
        }
        if self.cluster.stopping {
            return Err(Refusal::ClusterTakenDown);
        }
        if self.jobs.unfinished() >= MAX_UNFINISHED {
            return Err(Refusal::TooManyJobs { max: MAX_UNFINISHED as u32 });
        }
        let same = spec.name.as_ref().and_then(|name| self.jobs.by_name.get(name)).and_then(|id| self.jobs.records.get(id));
        if let Some(taken) = same {
            return Err(Refusal::JobNameTaken { name: taken.name.clone(), job: taken.id, state: taken.state.name() });
        }
        match self.job_node().and_then(head_room) {
            Some(has) if !fits(&spec.limits, &has) => Err(Refusal::JobTooLarge { needs: spec.limits.clone(), has }),
            _ => Ok(()),
        }
    }

    /// A name for a job that nobody named: of what it runs and its number.
    fn free_name(&self, spec: &JobSpec, id: JobId) -> JobName {
        let stem = stem(spec);
        // A number is given once; but somebody may have named a job like that.
        let names = std::iter::once(format!("{stem}-{id}")).chain((2u64..).map(|n| format!("{stem}-{id}-{n}")));
        let mut names = names.filter_map(|name| JobName::new(name).ok());
        names.find(|name| !self.jobs.by_name.contains_key(name)).expect("one of endless many names is free")
    }
}

/// What a job runs, as the beginning of a name.
fn stem(spec: &JobSpec) -> String {
    let runs = match &spec.work {
        Work::Command { program } => program.as_str(),
        Work::Runtime { .. } => spec.files.first().map_or("", |file| file.name.as_str()),
    };
    let stem = Path::new(runs).file_stem().map(|stem| stem.to_string_lossy().to_lowercase()).unwrap_or_default();
    let valid = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' { c } else { '-' };
    let name: String = stem.chars().map(valid).skip_while(|c| !c.is_ascii_lowercase()).take(MAX_STEM).collect();
    let name = name.trim_end_matches('-');
    if name.is_empty() { "job".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(program: &str) -> JobSpec {
        JobSpec::new("s", Work::Command { program: program.to_owned() })
    }

    #[test]
    fn any_program_makes_a_valid_name() {
        let long = "a".repeat(300);
        for (program, expected) in [
            ("/usr/bin/sleep", "sleep"),
            ("./Run My Job.sh", "run-my-job"),
            ("7zip", "zip"),
            ("", "job"),
            ("/", "job"),
            ("日本", "job"),
            ("---", "job"),
            (long.as_str(), &"a".repeat(MAX_STEM)),
        ] {
            let name = stem(&command(program));
            assert_eq!(name, expected, "{program}");
            assert!(JobName::new(format!("{name}-{}-{}", u64::MAX, 2)).is_ok(), "{name}");
        }
    }
}
