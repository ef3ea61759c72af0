//! Jobs for people: submitted, listed, followed, ended and deleted.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cloudtik_brain::Input;
use cloudtik_model::answer::Answer;
use cloudtik_model::job::{Job, JobFile, JobOptionValue, JobRef, JobSpec, Work};
use cloudtik_model::{NodeId, ServiceKey};
use cloudtik_protocol::MAX_JOB;
use cloudtik_protocol::logging::chain;
use cloudtik_protocol::wire::job_upload::Part;
use cloudtik_protocol::wire::{self};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Head, document, parse, stopped};
use crate::jobs::{self, AttemptRef, HeldFile, JobFiles, Unplannable};
use crate::status;

/// Between two looks at a job that is watched.
const WATCH_PAUSE: Duration = Duration::from_millis(20);
/// Jobs of one message of a list.
const PAGE: usize = 500;

pub type JobDocuments = Pin<Box<dyn Stream<Item = Result<wire::Document, Status>> + Send>>;

impl Head {
    /// Takes a job: what is to run is checked before its files are received, and the job is the brain's when this returns.
    pub(super) async fn submit_job(&self, mut parts: Streaming<wire::JobUpload>) -> Result<Answer, Status> {
        let Some(wire::JobUpload { part: Some(Part::Spec(spec)) }) = parts.message().await? else {
            return Err(Status::invalid_argument("the first part must say what is to run"));
        };
        let mut spec: JobSpec = serde_json::from_slice(&spec).map_err(|e| Status::invalid_argument(format!("malformed job: {e}")))?;
        check(&spec).map_err(|malformed| Status::invalid_argument(malformed.to_string()))?;
        if spec.files.iter().fold(0u64, |sum, file| sum.saturating_add(file.size)) > MAX_JOB {
            return Err(Status::resource_exhausted(format!("a job's files may have at most {} MiB together", MAX_JOB >> 20)));
        }
        let submission = spec.submission.clone();
        let known = self.brain.query(move |brain| brain.submitted(&submission)).await.map_err(stopped)?;
        if let Some((job, name)) = known {
            return Ok(Answer::JobSubmitted { job, name, again: true });
        }
        let node = self.brain.query(|brain| brain.node(&NodeId::head())).await.map_err(stopped)?;
        let node = node.ok_or_else(|| Status::unavailable("the head's own node is not there yet"))?;
        let context = status::context(&node).ok_or_else(|| Status::unavailable("the head's own agent has not connected yet"))?;
        let workers = self.jobs.workers().await;
        let (own, of) = (self.jobs.clone(), spec.clone());
        let planning = tokio::task::spawn_blocking(move || {
            let attempt_ref = AttemptRef { id: cloudtik_model::JobId(0), attempt: 1, name: jobs::name_of(&of) };
            own.plan(attempt_ref, &of, &context, &workers)
        });
        let planned = planning.await.map_err(|e| Status::internal(e.to_string()))?.map_err(|why| unplannable(&why))?;
        spec.work = planned.work;
        let answer = self.receive_and_submit(spec, planned.needs, parts).await;
        if answer.is_err() {
            // What came of its files is needed by no job.
            self.jobs.collect_files().await;
        }
        answer
    }

    async fn receive_and_submit(
        &self,
        mut spec: JobSpec,
        needs: Option<ServiceKey>,
        parts: Streaming<wire::JobUpload>,
    ) -> Result<Answer, Status> {
        // Held until the brain has the job, which needs them from then on.
        let _held = self.receive(&mut spec, parts).await?;
        let spec = Box::new(spec);
        self.answer(|request| Input::SubmitJob { request, spec, needs }).await
    }

    /// Receives the files of a job and notes their digests.
    async fn receive(&self, spec: &mut JobSpec, mut parts: Streaming<wire::JobUpload>) -> Result<Vec<HeldFile>, Status> {
        let (files, size) = (self.jobs.files().clone(), spec.files.iter().map(|file| file.size).sum());
        let room = tokio::task::spawn_blocking(move || files.has_room(size)).await.map_err(|e| Status::internal(e.to_string()))?;
        if !room.map_err(|e| Status::internal(format!("cannot look at the files of jobs: {e}")))? {
            return Err(Status::resource_exhausted("the files of the jobs that wait and run leave no room for more; wait for some to end"));
        }
        let (mut held, mut rest) = (Vec::new(), Bytes::new());
        for file in &mut spec.files {
            let one = receive_one(self.jobs.files(), file, &mut rest, &mut parts).await?;
            file.digest.clone_from(&one.digest);
            held.push(one);
        }
        Ok(held)
    }

    pub(super) async fn list_jobs(&self) -> Result<Arc<Vec<Job>>, Status> {
        self.jobs.list().await.map_err(stopped)
    }

    /// All jobs, in lists of a part each.
    pub(super) async fn job_pages(&self) -> Result<JobDocuments, Status> {
        let jobs = self.list_jobs().await?;
        let pages: Vec<_> = jobs.chunks(PAGE).map(|page| document(&page).map(tonic::Response::into_inner)).collect();
        Ok(Box::pin(tokio_stream::iter(pages)))
    }

    pub(super) async fn job(&self, request: &wire::JobRequest) -> Result<Job, Status> {
        let wanted = named(request)?;
        let found = self.brain.query(move |brain| brain.job(&wanted)).await.map_err(stopped)?;
        found.ok_or_else(|| Status::not_found(format!("there is no job {}; `cloudtik jobs list` lists the jobs", request.job)))
    }

    /// A job, and again whenever it changes, until it has ended.
    pub(super) async fn watch_job(&self, request: &wire::JobRequest) -> Result<JobDocuments, Status> {
        let mut changes = self.brain.changes();
        let mut known = self.job(request).await?;
        // By its number from here on: another one may come under the name.
        let (own, id) = (self.clone(), known.id);
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        self.tasks.spawn(async move {
            loop {
                if sender.send(document(&known).map(tonic::Response::into_inner)).await.is_err() || known.has_ended() {
                    return;
                }
                loop {
                    tokio::select! {
                        changed = changes.changed() => if changed.is_err() { return },
                        () = sender.closed() => return,
                    }
                    // Whatever changes meanwhile is looked at once.
                    tokio::time::sleep(WATCH_PAUSE).await;
                    changes.borrow_and_update();
                    let Ok(jobs) = own.list_jobs().await else { return };
                    match jobs.binary_search_by_key(&id, |job| job.id) {
                        Ok(at) if jobs[at] != known => {
                            known = jobs[at].clone();
                            break;
                        }
                        Ok(_) => {}
                        // Somebody deleted it, or it was not to be kept.
                        Err(_) => {
                            let _ = sender.send(Err(Status::not_found("the job is not kept any more"))).await;
                            return;
                        }
                    }
                }
            }
        });
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }

    pub(super) async fn cancel_job(&self, request: &wire::JobRequest) -> Result<Answer, Status> {
        let job = named(request)?;
        self.answer(|request| Input::CancelJob { request, job }).await
    }

    pub(super) async fn delete_job(&self, request: &wire::JobRequest) -> Result<Answer, Status> {
        let job = named(request)?;
        self.answer(|request| Input::DeleteJob { request, job }).await
    }
}

fn named(request: &wire::JobRequest) -> Result<JobRef, Status> {
    parse("job", &request.job)
}

fn unplannable(why: &Unplannable) -> Status {
    Status::failed_precondition(chain(why))
}

/// What makes no sense whatever the cluster runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Malformed {
    #[error("{0:?} is not the name of a file")]
    FileName(String),
    #[error("two files of the job are named {0}; rename one")]
    SameName(String),
    #[error("the option {0} names a file that the job does not bring along")]
    MissingFile(String),
    #[error("the job names no program")]
    NoProgram,
    #[error("{0:?} is not the name of a variable")]
    Variable(String),
    #[error("{0} retries are more than {max}", max = JobSpec::MAX_RETRIES)]
    Retries(u32),
    #[error("a limit of 0 leaves nothing to a job")]
    ZeroLimit,
    #[error("an argument or a variable has a zero byte, which no program can be given")]
    ZeroByte,
    #[error("the arguments, variables and names of files of the job have {0} bytes together, more than {max}", max = JobSpec::MAX_TEXTS)]
    TooLong(usize),
}

fn check(spec: &JobSpec) -> Result<(), Malformed> {
    let mut names = BTreeSet::new();
    for file in &spec.files {
        if !JobFile::is_name(&file.name) {
            return Err(Malformed::FileName(file.name.clone()));
        }
        if !names.insert(&file.name) {
            return Err(Malformed::SameName(file.name.clone()));
        }
    }
    let (options, program) = match &spec.work {
        Work::Runtime { options, .. } => (options.as_slice(), None),
        Work::Command { program } => ([].as_slice(), Some(program)),
    };
    if let Some(option) = options.iter().find(|option| matches!(&option.value, JobOptionValue::File(name) if !names.contains(name))) {
        return Err(Malformed::MissingFile(option.name.clone()));
    }
    if program.is_some_and(String::is_empty) {
        return Err(Malformed::NoProgram);
    }
    if let Some(name) = spec.environment.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        return Err(Malformed::Variable(name.clone()));
    }
    if spec.retries > JobSpec::MAX_RETRIES {
        return Err(Malformed::Retries(spec.retries));
    }
    if spec.timeout_ms == Some(0) || spec.limits.memory == Some(0) || spec.limits.cpu_millis == Some(0) {
        return Err(Malformed::ZeroLimit);
    }
    let values = options.iter().map(|option| match &option.value {
        JobOptionValue::Text(text) | JobOptionValue::File(text) => text,
    });
    let mut texts = spec.arguments.iter().chain(program).chain(spec.environment.values()).chain(values);
    if texts.any(|text| text.contains('\0')) {
        return Err(Malformed::ZeroByte);
    }
    match spec.text_size() {
        size if size > JobSpec::MAX_TEXTS => Err(Malformed::TooLong(size)),
        _ => Ok(()),
    }
}

/// Receives one file; `rest` is what came of the parts and belongs to no file yet.
async fn receive_one(
    files: &JobFiles,
    file: &JobFile,
    rest: &mut Bytes,
    parts: &mut Streaming<wire::JobUpload>,
) -> Result<HeldFile, Status> {
    let failed = |error: std::io::Error| Status::resource_exhausted(format!("cannot keep the job's file {}: {error}", file.name));
    let blocking = |error: tokio::task::JoinError| Status::internal(error.to_string());
    let own = files.clone();
    let mut receiving = tokio::task::spawn_blocking(move || own.receive()).await.map_err(blocking)?.map_err(failed)?;
    let mut left = file.size;
    while left > 0 {
        if rest.is_empty() {
            match parts.message().await? {
                Some(wire::JobUpload { part: Some(Part::Content(content)) }) => *rest = content,
                Some(_) => return Err(Status::invalid_argument("only contents of files follow the first part")),
                None => return Err(Status::invalid_argument(format!("the job's file {} did not arrive whole", file.name))),
            }
        }
        let block = rest.split_to(rest.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        left -= block.len() as u64;
        let writing = tokio::task::spawn_blocking(move || receiving.write(&block).map(|()| receiving));
        receiving = writing.await.map_err(blocking)?.map_err(failed)?;
    }
    tokio::task::spawn_blocking(move || receiving.finish()).await.map_err(blocking)?.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(work: &str) -> JobSpec {
        serde_json::from_str(&format!(r#"{{"submission": "s", {work}}}"#)).expect("reads")
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let program = r#""work": "command", "program": "true""#;
        let text = |text: &str| text.to_owned();
        for (with, problem) in [
            (String::new(), None),
            (r#", "files": [{"name": "ü '\"; x\n-y", "size": 1}]"#.to_owned(), None),
            (r#", "files": [{"name": "a/b", "size": 1}]"#.to_owned(), Some(Malformed::FileName(text("a/b")))),
            (r#", "files": [{"name": "..", "size": 1}]"#.to_owned(), Some(Malformed::FileName(text("..")))),
            (r#", "files": [{"name": "a", "size": 1}, {"name": "a", "size": 2}]"#.to_owned(), Some(Malformed::SameName(text("a")))),
            (r#", "environment": {"A=B": "c"}"#.to_owned(), Some(Malformed::Variable(text("A=B")))),
            (r#", "arguments": ["a\u0000b"]"#.to_owned(), Some(Malformed::ZeroByte)),
            (r#", "retries": 101"#.to_owned(), Some(Malformed::Retries(101))),
            (r#", "timeout_ms": 0"#.to_owned(), Some(Malformed::ZeroLimit)),
        ] {
            assert_eq!(check(&job(&format!("{program}{with}"))).err(), problem, "{with}");
        }
        let long = format!(r#", "arguments": ["{}"]"#, "x".repeat(JobSpec::MAX_TEXTS));
        assert!(matches!(check(&job(&format!("{program}{long}"))), Err(Malformed::TooLong(_))));
        let names: Vec<String> = (0..JobSpec::MAX_TEXTS / 128).map(|n| format!(r#"{{"name": "{n}", "size": 0}}"#)).collect();
        let many = format!(r#", "files": [{}]"#, names.join(","));
        assert!(matches!(check(&job(&format!("{program}{many}"))), Err(Malformed::TooLong(_))), "names count, too");
        assert_eq!(check(&job(r#""work": "command", "program": """#)), Err(Malformed::NoProgram));
        let option = r#""work": "runtime", "options": [{"name": "py-files", "file": "x.py"}], "files": [{"name": "y.py", "size": 1}]"#;
        assert_eq!(check(&job(option)), Err(Malformed::MissingFile(text("py-files"))));
    }
}
