//! Following a job: what it prints, and how it ends, through restarts of the head and of its agent. The job goes on whatever becomes
//! of whoever follows it.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use cloudtik_model::JobId;
use cloudtik_model::job::{Job, JobEnd};
use cloudtik_protocol::wire;
use serde::Serialize;
use tokio::signal::unix::SignalKind;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::output::Output;
use crate::client::{Client, document, is_refused};
use crate::failure::{FAILED, Failure, INTERRUPTED, NOT_AUTHORISED, NOT_FOUND, REFUSED, TIMED_OUT};
use crate::interrupts::Interrupts;
use crate::output::{Printer, talk};
use crate::pause::Pause;

/// How long a head that does not answer is not worth a word.
pub(super) const QUIET: Duration = Duration::from_secs(3);

/// What an interrupt means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnInterrupt {
    /// Whoever sits at a terminal is asked; elsewhere the job is cancelled.
    AskOrCancel,
    /// The job is left to itself.
    Leave,
}

/// How a job ended and what it printed, for programs.
#[derive(Debug, Serialize)]
struct Outcome {
    job: Job,
    exit_code: u8,
    stdout: String,
    stderr: String,
}

/// Prints what a job prints until it has ended; returns the exit status that stands for its end. Of each output, so many of the last
/// lines are printed first; all that is kept without a number.
pub async fn to_the_end(
    printer: &Printer,
    client: &Client,
    id: JobId,
    lines: Option<u32>,
    on_interrupt: OnInterrupt,
    interrupts: &mut Interrupts,
) -> Result<u8, Failure> {
    let (news, mut jobs) = mpsc::channel(8);
    let (ended, has_ended) = watch::channel(false);
    let mut watching = JoinSet::new();
    watching.spawn(watch_job(client.clone(), id, news));
    let mut output = Output::new(printer, client, id, lines, has_ended);
    let (mut last, mut is_cancelled): (Option<Job>, _) = (None, false);
    while !(*ended.borrow() && output.is_over()) {
        tokio::select! {
            biased;
            signal = interrupts.next_signal() => {
                match interrupted(client, id, on_interrupt, is_cancelled, signal, interrupts).await? {
                    Interrupted::Left(code) => return Ok(code),
                    Interrupted::Cancelled => is_cancelled = true,
                    Interrupted::GoesOn => {}
                }
            }
            news = jobs.recv(), if !*ended.borrow() => match news {
                Some(Ok(job)) => {
                    report_progress(last.as_ref(), &job);
                    if job.attempt > 0 {
                        output.begin();
                    }
                    if job.has_ended() {
                        ended.send_replace(true);
                    }
                    last = Some(job);
                }
                Some(Err(failure)) => return Err(failure),
                None => return Err(Failure::failed("the job is not watched any more")),
            },
            result = output.step(), if output.is_running() => result?,
        }
    }
    let job = last.ok_or_else(|| Failure::failed("nothing was heard of the job"))?;
    let code = exit_code(&job);
    let (stdout, stderr) = output.kept();
    if printer.is_json() {
        printer.json(&Outcome { exit_code: code, stdout, stderr, job });
        return Ok(code);
    }
    report_end(client, &job, code)
}

/// Prints what a job printed so far.
pub async fn printed_so_far(printer: &Printer, client: &Client, id: JobId, lines: Option<u32>) -> Result<(), Failure> {
    let (_over, has_ended) = watch::channel(true);
    let mut output = Output::new(printer, client, id, lines, has_ended);
    output.begin();
    while !output.is_over() {
        output.step().await?;
    }
    if printer.is_json() {
        #[derive(Serialize)]
        struct Logs {
            stdout: String,
            stderr: String,
        }
        let (stdout, stderr) = output.kept();
        printer.json(&Logs { stdout, stderr });
    }
    Ok(())
}

/// Waits until a job has ended.
pub async fn wait(client: &Client, id: JobId) -> Result<Job, Failure> {
    let (news, mut jobs) = mpsc::channel(8);
    let mut watching = JoinSet::new();
    watching.spawn(watch_job(client.clone(), id, news));
    while let Some(job) = jobs.recv().await {
        let job = job?;
        if job.has_ended() {
            return Ok(job);
        }
    }
    Err(Failure::failed("the job is not watched any more"))
}

/// How a command ends that waited for a job.
pub fn report_end(client: &Client, job: &Job, code: u8) -> Result<u8, Failure> {
    let named = format!("job {} ({})", job.id, job.name);
    match &job.end {
        Some(JobEnd::Succeeded) | None => Ok(code),
        // What it has to say of that, it has said.
        Some(end @ (JobEnd::Failed { .. } | JobEnd::Killed { .. } | JobEnd::Cancelled)) => {
            talk(&format!("{named} {end}"));
            Ok(code)
        }
        Some(end) => {
            let cluster = &client.place.name;
            Err(Failure::new(code, format!("{named} {end}")).hint(format!("see `cloudtik jobs status {cluster} {}`", job.name)))
        }
    }
}

/// The exit status that stands for a job's end.
pub fn exit_code(job: &Job) -> u8 {
    match &job.end {
        None | Some(JobEnd::Succeeded) => 0,
        Some(JobEnd::Failed { exit_code }) => u8::try_from(*exit_code).ok().filter(|code| *code != 0).unwrap_or(FAILED),
        Some(JobEnd::Killed { signal, .. }) => u8::try_from(128 + signal).unwrap_or(FAILED),
        Some(JobEnd::TimedOut) => TIMED_OUT,
        Some(JobEnd::Cancelled) => INTERRUPTED,
        Some(JobEnd::NotStarted { .. } | JobEnd::Lost { .. }) => FAILED,
    }
}

/// Says what a job waits for, and that another attempt follows.
fn report_progress(before: Option<&Job>, job: &Job) {
    let waits = |job: &Job| job.waits_for.as_ref().map(ToString::to_string);
    if let Some(wait) = waits(job).filter(|wait| before.and_then(waits).as_ref() != Some(wait)) {
        talk(&format!("job {} waits for {wait}", job.id));
    }
    if job.history.len() > before.map_or(0, |before| before.history.len())
        && !job.has_ended()
        && let Some(attempt) = job.history.last()
    {
        talk(&format!("attempt {} of {} {}; another follows", attempt.number, job.attempts, attempt.end));
    }
}

/// What came of an interrupt.
enum Interrupted {
    GoesOn,
    Cancelled,
    /// Without the job's end; the exit status.
    Left(u8),
}

async fn interrupted(
    client: &Client,
    id: JobId,
    on: OnInterrupt,
    is_cancelled: bool,
    signal: SignalKind,
    interrupts: &mut Interrupts,
) -> Result<Interrupted, Failure> {
    let cluster = &client.place.name;
    if on == OnInterrupt::Leave {
        return Ok(Interrupted::Left(INTERRUPTED));
    }
    let leave = || {
        talk(&format!("not waiting for its end; see `cloudtik jobs status {cluster} {id}`"));
        Ok(Interrupted::Left(INTERRUPTED))
    };
    if is_cancelled {
        return leave();
    }
    let can_ask = signal == SignalKind::interrupt() && io::stdin().is_terminal() && io::stderr().is_terminal();
    if can_ask {
        let choice = tokio::select! {
            choice = tokio::task::spawn_blocking(move || ask(id)) => choice.map_err(|e| Failure::failed(e.to_string()))?,
            // Whoever interrupts the question wants an end.
            () = interrupts.next() => Choice::Cancel,
        };
        match choice {
            Choice::Cancel => {}
            Choice::Detach => {
                talk(&format!("job {id} goes on; follow it with `cloudtik jobs logs -f {cluster} {id}`"));
                return Ok(Interrupted::Left(0));
            }
            Choice::GoOn => {
                talk(&format!("following job {id} again"));
                return Ok(Interrupted::GoesOn);
            }
        }
    }
    talk("cancelling; press Ctrl-C again to leave at once");
    tokio::select! {
        cancelled = cancel(client, id) => cancelled.map(|()| Interrupted::Cancelled),
        () = interrupts.next() => leave(),
    }
}

enum Choice {
    Cancel,
    Detach,
    GoOn,
}

/// Asks at the terminal.
fn ask(id: JobId) -> Choice {
    let _ = write!(io::stderr(), "\nCancel job {id}, detach from it, or go on following it? [c/d/G] ");
    let mut answer = String::new();
    match io::stdin().read_line(&mut answer) {
        // Nobody is there to answer.
        Ok(0) | Err(_) => Choice::Cancel,
        Ok(_) => match answer.trim().to_ascii_lowercase().as_str() {
            "c" | "cancel" => Choice::Cancel,
            "d" | "detach" => Choice::Detach,
            _ => Choice::GoOn,
        },
    }
}

/// Has a job cancelled, however long its head is away; one that has ended meanwhile is no failure.
pub async fn cancel(client: &Client, id: JobId) -> Result<(), Failure> {
    let (mut client, mut pause) = (client.clone(), Pause::default());
    let (begun, mut is_told) = (Instant::now(), false);
    loop {
        let failure = match client.admin().jobs_cancel(wire::JobRequest { job: id.to_string() }).await.map_err(Failure::from) {
            Ok(_) => return Ok(()),
            Err(failure) => failure,
        };
        match failure.code {
            REFUSED | NOT_FOUND => return Ok(()),
            FAILED | TIMED_OUT => {}
            _ => return Err(failure),
        }
        if !is_told && begun.elapsed() >= QUIET {
            talk(&format!("not cancelled yet: {}; trying again", failure.message));
            is_told = true;
        }
        pause.wait().await;
        match client.reconnect().await {
            Ok(next) => client = next,
            Err(gone) if !client.place.exists() => return Err(gone),
            Err(_) => {}
        }
    }
}

/// Sends a job whenever it changes, through restarts of the head, until it has ended.
async fn watch_job(mut client: Client, id: JobId, news: mpsc::Sender<Result<Job, Failure>>) {
    let mut pause = Pause::default();
    let (mut begun, mut is_told) = (Instant::now(), false);
    loop {
        let ended = match client.admin().jobs_watch(wire::JobRequest { job: id.to_string() }).await {
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(one)) => {
                            (pause, begun, is_told) = (Pause::default(), Instant::now(), false);
                            let job = document::<Job>(one);
                            let is_last = job.as_ref().map_or(true, Job::has_ended);
                            if news.send(job).await.is_err() || is_last {
                                return;
                            }
                        }
                        Ok(None) => break None,
                        Err(status) => break Some(status),
                    }
                }
            }
            Err(status) => Some(status),
        };
        if let Some(status) = ended.filter(|status| is_refused(status) || status.code() == tonic::Code::NotFound) {
            let _ = news.send(Err(status.into())).await;
            return;
        }
        pause.wait().await;
        if !is_told && begun.elapsed() >= QUIET {
            talk("the head does not answer; waiting for it (the job goes on)");
            is_told = true;
        }
        match client.reconnect().await {
            Ok(next) => client = next,
            Err(failure) if !client.place.exists() || failure.code == NOT_AUTHORISED => {
                let _ = news.send(Err(failure)).await;
                return;
            }
            Err(_) => {}
        }
    }
}
