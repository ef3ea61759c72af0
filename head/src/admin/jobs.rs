//! Jobs for people: submitted, listed, followed, ended and deleted.

use std::collections::BTreeSet;
use std::pin::Pin;

use bytes::Bytes;
use cloudtik_brain::Input;
use cloudtik_model::NodeId;
use cloudtik_model::answer::Answer;
use cloudtik_model::job::{Job, JobFile, JobOptionValue, JobRef, JobSpec, Work};
use cloudtik_protocol::MAX_JOB;
use cloudtik_protocol::logging::chain;
use cloudtik_protocol::wire::job_upload::Part;
use cloudtik_protocol::wire::{self};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Head, document, parse, stopped};
use crate::jobs::{self, HeldFile, JobFiles, Occasion, Unplannable};
use crate::status;

pub type JobDocuments = Pin<Box<dyn Stream<Item = Result<wire::Document, Status>> + Send>>;

impl Head {
    /// Takes a job: what is to run is checked before its files are received, and the job is the brain's when this returns.
    pub(super) async fn submit_job(&self, mut parts: Streaming<wire::JobUpload>) -> Result<Answer, Status> {
        let Some(wire::JobUpload { part: Some(Part::Spec(spec)) }) = parts.message().await? else {
            return Err(Status::invalid_argument("the first part must say what is to run"));
        };
        let mut spec: JobSpec = serde_json::from_slice(&spec).map_err(|e| Status::invalid_argument(format!("malformed job: {e}")))?;
        check(&spec).map_err(Status::invalid_argument)?;
        if spec.files.iter().fold(0u64, |sum, file| sum.saturating_add(file.size)) > MAX_JOB {
            return Err(Status::resource_exhausted(format!("a job's files may have at most {} MiB together", MAX_JOB >> 20)));
        }
        let node = self.brain.query(|brain| brain.node(&NodeId::head())).await.map_err(stopped)?;
        let node = node.ok_or_else(|| Status::unavailable("the head's own node is not there yet"))?;
        let context = status::context(&node).ok_or_else(|| Status::unavailable("the head's own agent has not connected yet"))?;
        let workers = self.jobs.workers().await;
        let (own, of) = (self.jobs.clone(), spec.clone());
        let planning = tokio::task::spawn_blocking(move || {
            let occasion = Occasion { id: cloudtik_model::JobId(0), attempt: 1, name: jobs::name_of(&of) };
            own.plan(occasion, &of, &context, &workers)
        });
        let planned = planning.await.map_err(|e| Status::internal(e.to_string()))?.map_err(|why| unplannable(&why))?;
        spec.work = planned.work;
        // Held until the brain has the job, which needs them from then on.
        let held = self.receive(&mut spec, parts).await?;
        let (spec, needs) = (Box::new(spec), planned.needs);
        let answer = self.answer(|request| Input::SubmitJob { request, spec, needs }).await;
        drop(held);
        answer
    }

    /// Receives the files of a job and notes their digests.
    async fn receive(&self, spec: &mut JobSpec, mut parts: Streaming<wire::JobUpload>) -> Result<Vec<HeldFile>, Status> {
        let (mut held, mut rest) = (Vec::new(), Bytes::new());
        for file in &mut spec.files {
            let one = receive_one(self.jobs.files(), file, &mut rest, &mut parts).await?;
            file.digest.clone_from(&one.digest);
            held.push(one);
        }
        Ok(held)
    }

    pub(super) async fn list_jobs(&self) -> Result<Vec<Job>, Status> {
        self.brain.query(|brain| brain.jobs()).await.map_err(stopped)
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
        let (own, id) = (self.clone(), JobRef::Id(known.id));
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
                    let wanted = id.clone();
                    match own.brain.query(move |brain| brain.job(&wanted)).await {
                        Ok(Some(now)) if now != known => {
                            known = now;
                            break;
                        }
                        Ok(Some(_)) => {}
                        // It ended and was forgotten at once.
                        Ok(None) => {
                            let _ = sender.send(Err(Status::not_found("the job was deleted"))).await;
                            return;
                        }
                        Err(_) => return,
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
fn check(spec: &JobSpec) -> Result<(), String> {
    let mut names = BTreeSet::new();
    for file in &spec.files {
        if !is_name(&file.name) {
            return Err(format!("{:?} is not the name of a file", file.name));
        }
        if !names.insert(&file.name) {
            return Err(format!("two files of the job are named {}; rename one", file.name));
        }
    }
    let (mut options, mut program) = (&Vec::new(), None);
    match &spec.work {
        Work::Runtime { options: given, .. } => options = given,
        Work::Command { program: given } => program = Some(given),
    }
    if let Some(option) = options.iter().find(|option| matches!(&option.value, JobOptionValue::File(name) if !names.contains(name))) {
        return Err(format!("the option {} names a file that the job does not bring along", option.name));
    }
    if program.is_some_and(String::is_empty) {
        return Err("the job names no program".to_owned());
    }
    if let Some(name) = spec.environment.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        return Err(format!("{name:?} is not the name of a variable"));
    }
    if spec.retries > JobSpec::MAX_RETRIES {
        return Err(format!("{} retries are more than {}", spec.retries, JobSpec::MAX_RETRIES));
    }
    if spec.timeout_ms == Some(0) || spec.limits.memory == Some(0) || spec.limits.cpu_millis == Some(0) {
        return Err("a limit of 0 leaves nothing to a job".to_owned());
    }
    let texts = spec.arguments.iter().chain(program).chain(spec.environment.iter().flat_map(|(name, value)| [name, value]));
    let option_texts = options.iter().map(|option| match &option.value {
        JobOptionValue::Text(text) | JobOptionValue::File(text) => text,
    });
    let texts: Vec<&String> = texts.chain(option_texts).collect();
    if texts.iter().any(|text| text.contains('\0')) {
        return Err("an argument or a variable has a zero byte, which no program can be given".to_owned());
    }
    let length: usize = texts.iter().map(|text| text.len()).sum();
    if length > JobSpec::MAX_TEXTS {
        return Err(format!("the arguments and variables of the job have {length} bytes, more than {}", JobSpec::MAX_TEXTS));
    }
    Ok(())
}

/// Whether a text names a file in a directory, and nothing else.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 255 && !text.contains(['/', '\0']) && text != "." && text != ".."
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
        for (with, problem) in [
            (String::new(), None),
            (r#", "files": [{"name": "ü '\"; x\n-y", "size": 1}]"#.to_owned(), None),
            (r#", "files": [{"name": "a/b", "size": 1}]"#.to_owned(), Some("is not the name of a file")),
            (r#", "files": [{"name": "..", "size": 1}]"#.to_owned(), Some("is not the name of a file")),
            (r#", "files": [{"name": "a", "size": 1}, {"name": "a", "size": 2}]"#.to_owned(), Some("two files of the job are named a")),
            (r#", "environment": {"A=B": "c"}"#.to_owned(), Some("is not the name of a variable")),
            (r#", "arguments": ["a\u0000b"]"#.to_owned(), Some("has a zero byte")),
            (r#", "retries": 101"#.to_owned(), Some("101 retries are more than 100")),
            (r#", "timeout_ms": 0"#.to_owned(), Some("a limit of 0")),
            (format!(r#", "arguments": ["{}"]"#, "x".repeat(JobSpec::MAX_TEXTS)), Some("more than 1048576")),
        ] {
            let found = check(&job(&format!("{program}{with}")));
            match problem {
                None => assert_eq!(found, Ok(()), "{with}"),
                Some(problem) => assert!(found.as_ref().is_err_and(|found| found.contains(problem)), "{problem}: {found:?}"),
            }
        }
        assert!(check(&job(r#""work": "command", "program": """#)).is_err());
        let option = r#""work": "runtime", "options": [{"name": "py-files", "file": "x.py"}], "files": [{"name": "y.py", "size": 1}]"#;
        assert!(check(&job(option)).is_err_and(|found| found.contains("does not bring along")));
    }
}
