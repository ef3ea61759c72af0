//! `submit`: has a job run on the cluster, and follows it from here. The job is the head's from the moment of its answer on.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cloudtik_model::answer::Answer;
use cloudtik_model::goal::Limits;
use cloudtik_model::job::{JobFile, JobOption, JobOptionValue, JobSpec, Work};
use cloudtik_protocol::wire::job_upload::Part;
use cloudtik_protocol::{MAX_JOB, pki, wire};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use crate::cli::Submit;
use crate::client::{Client, document};
use crate::failure::{FAILED, Failure, INTERRUPTED, REFUSED, TIMED_OUT, USAGE};
use crate::interrupts::Interrupts;
use crate::jobs::follow::{self, OnInterrupt};
use crate::output::{Printer, talk};
use crate::pause::Pause;

/// How long a head or an agent that is being restarted is waited for.
const RESTART_PATIENCE: Duration = Duration::from_secs(20);
/// How long that is not worth a word.
const QUIET: Duration = Duration::from_secs(3);
/// Bytes of a file in one message.
const BLOCK: usize = 256 << 10;
/// Messages that wait to be sent.
const QUEUE: usize = 4;

pub async fn submit(printer: &Printer, arguments: &Submit) -> Result<u8, Failure> {
    let (spec, contents) = read(arguments)?;
    let client = Client::connect(&arguments.cluster).await?;
    let mut interrupts = Interrupts::listen()?;
    let Sent::Answer(answer) = send(&client, &spec, contents, &mut interrupts).await? else { return Ok(INTERRUPTED) };
    let Answer::JobSubmitted { job, name, again } = &answer else {
        return Err(Failure::failed("the head's answer is not understood").hint("this cloudtik and the head may differ in version"));
    };
    let cluster = &client.place.name;
    let how = if *again { "was submitted before" } else { "is submitted" };
    printer.say(&format!("job {job} ({name}) {how} to {cluster}"));
    if arguments.detach {
        if printer.is_json() {
            printer.json(&answer)
        } else {
            printer.line(name.as_str())
        }
        return Ok(0);
    }
    follow::to_the_end(printer, &client, *job, None, OnInterrupt::AskOrCancel, &mut interrupts).await
}

/// The job as it is typed, and the contents of its files.
fn read(arguments: &Submit) -> Result<(JobSpec, Vec<Bytes>), Failure> {
    let mut files = Files::default();
    let texts = |of: &[std::ffi::OsString]| of.iter().map(|argument| text_of(argument)).collect::<Result<Vec<_>, _>>();
    let mut environment = std::collections::BTreeMap::new();
    let mut options = Vec::new();
    let work = if arguments.command {
        for variable in &arguments.env {
            let (name, value) = variable.split_once('=').expect("clap has checked NAME=VALUE");
            environment.insert(name.to_owned(), value.to_owned());
        }
        Work::Command { program: text_of(arguments.file().as_os_str())? }
    } else {
        files.add(arguments.file())?;
        let mut text = |name: &str, of: &[String]| {
            options.extend(of.iter().map(|value| JobOption { name: name.to_owned(), value: JobOptionValue::Text(value.clone()) }));
        };
        text("class", arguments.class.as_slice());
        text("conf", &arguments.conf);
        text("packages", &arguments.packages);
        text("env", &arguments.env);
        for path in &arguments.py_files {
            options.push(JobOption { name: "py-files".to_owned(), value: JobOptionValue::File(files.add(path)?) });
        }
        let runtime = arguments.runtime.as_ref().map(|name| name.parse()).transpose();
        Work::Runtime { runtime: runtime.map_err(|e| Failure::new(USAGE, format!("--runtime: {e}")))?, options }
    };
    for path in &arguments.files {
        files.add(path)?;
    }
    let spec = JobSpec {
        name: arguments.name.clone(),
        submission: pki::hex(&pki::random::<16>()),
        work,
        arguments: texts(arguments.arguments())?,
        environment,
        files: files.files,
        limits: Limits { memory: arguments.memory.map(|memory| memory.0), cpu_millis: arguments.cpus },
        timeout_ms: arguments.timeout.map(|timeout| timeout.as_millis() as u64),
        retries: arguments.retries,
    };
    Ok((spec, files.contents))
}

/// What came of submitting.
enum Sent {
    Answer(Answer),
    /// An interrupt came first: there is no job, or it is cancelled.
    Interrupted,
}

/// Has the head take the job; the same submission again is the same job, so that a head or an agent that is being restarted meanwhile
/// is bridged. Once a head may have all of it, it is the head's word that counts, whatever is interrupted here.
async fn send(client: &Client, spec: &JobSpec, contents: Vec<Bytes>, interrupts: &mut Interrupts) -> Result<Sent, Failure> {
    let (mut client, mut pause) = (client.clone(), Pause::default());
    let (begun, upload) = (Instant::now(), Arc::new(Upload::default()));
    let (mut is_told, mut is_interrupted) = (false, false);
    loop {
        let sent = {
            let sending = send_once(&client, spec, &contents, &upload);
            tokio::pin!(sending);
            loop {
                tokio::select! {
                    sent = &mut sending => break sent,
                    () = interrupts.next() => {
                        if upload.interrupt() {
                            return Ok(Sent::Interrupted);
                        }
                        if std::mem::replace(&mut is_interrupted, true) {
                            return Err(may_be_there(&client, Failure::new(INTERRUPTED, "not waiting for the head's answer")));
                        }
                        talk("cancelling as soon as the head answers; press Ctrl-C again to leave at once");
                    }
                }
            }
        };
        let failure = match sent {
            Ok(Answer::JobSubmitted { job, .. }) if is_interrupted => {
                follow::cancel(&client, job).await?;
                return Ok(Sent::Interrupted);
            }
            Ok(answer) => return Ok(Sent::Answer(answer)),
            Err(failure) => failure,
        };
        if !matches!(failure.code, FAILED | TIMED_OUT) || begun.elapsed() >= RESTART_PATIENCE {
            if upload.is_whole() && matches!(failure.code, FAILED | TIMED_OUT) {
                return Err(may_be_there(&client, failure));
            }
            // What was refused waits for nothing.
            if failure.hint.is_some() || failure.code == REFUSED {
                return Err(failure);
            }
            return Err(failure.hint(format!("see what the cluster waits for with `cloudtik status {}`", client.place.name)));
        }
        if !is_told && begun.elapsed() >= QUIET {
            talk(&format!("not submitted yet: {}; trying again", failure.message));
            is_told = true;
        }
        pause.wait().await;
        // A head that is away for longer is one more failed try.
        if let Ok(next) = client.reconnect().await {
            client = next;
        }
    }
}

/// A failure after which the head may have the job.
fn may_be_there(client: &Client, failure: Failure) -> Failure {
    let cluster = &client.place.name;
    failure.hint(format!("the job may have been taken; look with `cloudtik jobs list {cluster}` before you submit it again"))
}

/// How far the job was sent, in all tries.
#[derive(Default)]
struct Upload(Mutex<UploadState>);

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum UploadState {
    #[default]
    Partial,
    /// A head may have all of it.
    Whole,
    /// Nothing more is sent.
    Interrupted,
}

impl Upload {
    fn state(&self) -> std::sync::MutexGuard<'_, UploadState> {
        self.0.lock().expect("nothing panics while holding the lock")
    }

    /// Ends it, unless a head may have all of it: what was not sent whole is no job.
    fn interrupt(&self) -> bool {
        let mut state = self.state();
        if *state == UploadState::Partial {
            *state = UploadState::Interrupted;
        }
        *state == UploadState::Interrupted
    }

    fn is_whole(&self) -> bool {
        *self.state() == UploadState::Whole
    }

    /// Whether the last part may be sent.
    fn complete(&self) -> bool {
        let mut state = self.state();
        if *state == UploadState::Partial {
            *state = UploadState::Whole;
        }
        *state == UploadState::Whole
    }
}

async fn send_once(client: &Client, spec: &JobSpec, contents: &[Bytes], upload: &Arc<Upload>) -> Result<Answer, Failure> {
    let (sender, parts) = tokio::sync::mpsc::channel(QUEUE);
    let first = Part::Spec(serde_json::to_vec(spec).expect("jobs become JSON").into());
    let (contents, upload) = (contents.to_vec(), upload.clone());
    let sending = tokio::spawn(async move {
        let blocks = contents
            .into_iter()
            .flat_map(|mut content| std::iter::from_fn(move || (!content.is_empty()).then(|| content.split_to(content.len().min(BLOCK)))));
        let mut parts = std::iter::once(first).chain(blocks.map(Part::Content)).peekable();
        while let Some(part) = parts.next() {
            let is_over = match parts.peek() {
                Some(_) => *upload.state() == UploadState::Interrupted,
                None => !upload.complete(),
            };
            if is_over || sender.send(wire::JobUpload { part: Some(part) }).await.is_err() {
                return;
            }
        }
    });
    let answer = client.admin().jobs_submit(ReceiverStream::new(parts)).await;
    sending.abort();
    document(answer?.into_inner())
}

/// The files of a job, read whole.
#[derive(Default)]
struct Files {
    files: Vec<JobFile>,
    contents: Vec<Bytes>,
}

impl Files {
    /// Adds a file, and says by which name the job knows it.
    fn add(&mut self, path: &Path) -> Result<String, Failure> {
        let room = MAX_JOB - self.contents.iter().map(|content| content.len() as u64).sum::<u64>();
        let content = content(path, room)?;
        let name = text_of(path.file_name().unwrap_or_default())?;
        if self.files.iter().any(|file| file.name == name) {
            return Err(Failure::new(USAGE, format!("two files of the job are named {name}")).hint("rename one of them"));
        }
        self.files.push(JobFile { name: name.clone(), size: content.len() as u64, digest: String::new() });
        self.contents.push(content.into());
        Ok(name)
    }
}

/// What a job's file holds, of which at most `room` bytes are taken; it is not read at all if it is too large. It may be a pipe, of
/// which the length is not known.
fn content(file: &Path, room: u64) -> Result<Vec<u8>, Failure> {
    let unreadable = |error: io::Error| {
        let path = file.display();
        let failure = |why: String| Failure::new(USAGE, format!("cannot submit {path}: {why}"));
        match error.kind() {
            ErrorKind::NotFound if file.is_symlink() => failure("it is a symbolic link to a file that does not exist".to_owned()),
            ErrorKind::NotFound => failure("there is no such file on this machine".to_owned())
                .hint("name a file of this machine: it is uploaded; data that is on the cluster is an argument after it"),
            ErrorKind::IsADirectory => failure("it is a folder, not a file".to_owned())
                .hint("name the file that starts the job; `--py-files` takes the files that it needs"),
            ErrorKind::PermissionDenied => failure("this user may not read it".to_owned()).hint(format!("see `ls -l {path}`")),
            _ => failure(error.to_string()),
        }
    };
    let too_large = || {
        let message = if room == MAX_JOB {
            format!("{} is larger than {} MiB, the limit of a job's file", file.display(), MAX_JOB >> 20)
        } else {
            format!("with {} the files of the job are larger than {} MiB, the limit of them together", file.display(), MAX_JOB >> 20)
        };
        Failure::new(REFUSED, message)
            .hint("put data where the job can read it, such as with `cloudtik upload`, and submit only the program")
    };
    let mut opened = File::open(file).map_err(unreadable)?;
    let metadata = opened.metadata().map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(unreadable(ErrorKind::IsADirectory.into()));
    }
    if metadata.len() > room {
        return Err(too_large());
    }
    let mut content = Vec::new();
    opened.by_ref().take(room + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() as u64 > room { Err(too_large()) } else { Ok(content) }
}

fn text_of(text: &OsStr) -> Result<String, Failure> {
    text.to_str().map(str::to_owned).ok_or_else(|| Failure::new(USAGE, format!("{} is not UTF-8", text.display())))
}
