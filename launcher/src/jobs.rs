//! `jobs`: what was submitted, for people.

pub mod follow;
mod output;

use std::time::Duration;

use cloudtik_model::job::{Job, JobEnd};
use cloudtik_protocol::wire;

use crate::cli::{Jobs, NamedJob};
use crate::client::{Client, document};
use crate::failure::{Failure, TIMED_OUT};
use crate::interrupts::Interrupts;
use crate::output::{Printer, ago, clock, columns_of_output, short};
use crate::steer::print_answer;
use follow::OnInterrupt;

pub async fn run(printer: &Printer, command: Jobs) -> Result<u8, Failure> {
    match command {
        Jobs::List { cluster } => list(printer, &Client::connect(&cluster).await?).await.map(|()| 0),
        Jobs::Status(named) => {
            let (_, job) = find(&named).await?;
            if printer.is_json() {
                printer.json(&job)
            } else {
                describe(printer, &job)
            }
            Ok(0)
        }
        Jobs::Logs { job: named, follow: false, lines } => {
            let (client, job) = find(&named).await?;
            follow::printed_so_far(printer, &client, job.id, lines).await.map(|()| 0)
        }
        Jobs::Logs { job: named, follow: true, lines } => {
            let (client, job) = find(&named).await?;
            follow::to_the_end(printer, &client, job.id, lines, OnInterrupt::Leave, &mut Interrupts::listen()?).await
        }
        Jobs::Wait { job: named, timeout } => wait(printer, &named, timeout).await,
        Jobs::Cancel { job: named, wait } => cancel(printer, &named, wait).await.map(|()| 0),
        Jobs::Delete { job: named, yes } => delete(printer, &named, yes).await.map(|()| 0),
    }
}

/// The job that a person named.
async fn find(named: &NamedJob) -> Result<(Client, Job), Failure> {
    let client = Client::connect(&named.cluster).await?;
    let job = client.admin().jobs_status(wire::JobRequest { job: named.job.clone() }).await?;
    Ok((client, document(job.into_inner())?))
}

async fn list(printer: &Printer, client: &Client) -> Result<(), Failure> {
    let mut pages = client.admin().jobs_list(wire::Empty {}).await?.into_inner();
    let mut jobs: Vec<Job> = Vec::new();
    while let Some(page) = pages.message().await? {
        jobs.extend(document::<Vec<Job>>(page)?);
    }
    if printer.is_json() {
        printer.json(&jobs);
        return Ok(());
    }
    if jobs.is_empty() {
        printer.say(&format!("{} has no jobs; `cloudtik submit {0} FILE` submits one", client.place.name));
        return Ok(());
    }
    let rows: Vec<Vec<String>> = jobs.iter().map(row).collect();
    printer.table_within(
        columns_of_output(),
        &["ID", "NAME", "STATE", "RUNTIME", "AGE", "TOOK", "DETAIL"],
        &rows,
        &["RUNTIME", "AGE", "DETAIL"],
    );
    Ok(())
}

fn row(job: &Job) -> Vec<String> {
    let says_more = match &job.end {
        Some(end) => !matches!(end, JobEnd::Succeeded | JobEnd::Cancelled | JobEnd::TimedOut),
        None => job.waits_for.is_some() || job.cancelled.is_some(),
    };
    let detail = if says_more { job.message() } else { String::new() };
    let runtime = job.runtime.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    vec![job.id.to_string(), job.name.to_string(), job.state.to_string(), runtime, ago(job.submitted), took(job), detail]
}

/// How long the present attempt has run, or the last ran.
fn took(job: &Job) -> String {
    let Some(started) = job.started else { return "-".to_owned() };
    match job.ended {
        Some(ended) => short(Duration::from_millis(ended.0.saturating_sub(started.0))),
        None => ago(started),
    }
}

/// All that is known of a job.
pub fn describe(printer: &Printer, job: &Job) {
    let mut rows = vec![
        ("job", format!("{} ({})", job.id, job.name)),
        ("state", state_of(job)),
        ("command", job.command.iter().map(|word| crate::output::quoted(word)).collect::<Vec<_>>().join(" ")),
    ];
    rows.extend(job.runtime.as_ref().map(|runtime| ("runtime", runtime.to_string())));
    rows.push(("submitted", format!("{} by {}", clock(job.submitted), job.by)));
    rows.extend(job.started.map(|at| ("started", clock(at))));
    rows.extend(job.ended.map(|at| ("ended", format!("{}, after {}", clock(at), took(job)))));
    rows.extend(job.cancelled.as_ref().map(|of| ("cancelled", format!("{} by {}", clock(of.at), of.by))));
    rows.extend(job.timeout_ms.map(|ms| ("timeout", short(Duration::from_millis(ms)))));
    if job.limits.memory.is_some() || job.limits.cpu_millis.is_some() {
        rows.push(("limits", job.limits.to_string()));
    }
    if job.attempts > 1 {
        rows.push(("attempt", format!("{} of {}", job.attempt, job.attempts)));
    }
    for (name, text) in rows {
        printer.line(&format!("{name:<10} {text}"));
    }
    for attempt in job.history.iter().filter(|attempt| job.attempts > 1 || attempt.lost_output > 0) {
        let ran = attempt.started.map(|started| Duration::from_millis(attempt.ended.0.saturating_sub(started.0)));
        let ran = ran.map(|ran| format!(" after {}", short(ran))).unwrap_or_default();
        let lost = match attempt.lost_output {
            0 => String::new(),
            bytes => format!("; {} of its output could not be kept", cloudtik_model::Bytes(bytes)),
        };
        printer.line(&format!("attempt {}  {} {}{ran}{lost}", attempt.number, clock(attempt.ended), attempt.end));
    }
}

/// Its state, and how it ended or what it waits for.
fn state_of(job: &Job) -> String {
    match &job.end {
        Some(end) => end.to_string(),
        None if job.waits_for.is_some() || job.cancelled.is_some() => format!("{}, {}", job.state, job.message()),
        None => job.state.to_string(),
    }
}

async fn wait(printer: &Printer, named: &NamedJob, timeout: Option<Duration>) -> Result<u8, Failure> {
    let (client, job) = find(named).await?;
    let waiting = follow::wait(&client, job.id);
    let job = match timeout {
        None => waiting.await?,
        Some(timeout) => tokio::time::timeout(timeout, waiting).await.map_err(|_| {
            let message = format!("job {} ({}) has not ended in {}", job.id, job.name, short(timeout));
            Failure::new(TIMED_OUT, message).hint(format!("see `cloudtik jobs status {} {}`", client.place.name, job.name))
        })??,
    };
    let code = follow::exit_code(&job);
    if printer.is_json() {
        printer.json(&job);
        return Ok(code);
    }
    follow::report_end(&client, &job, code)
}

async fn cancel(printer: &Printer, named: &NamedJob, wait: bool) -> Result<(), Failure> {
    let (client, job) = find(named).await?;
    let answer = client.admin().jobs_cancel(wire::JobRequest { job: job.id.to_string() }).await?.into_inner();
    if !wait {
        return print_answer(printer, answer);
    }
    let job = follow::wait(&client, job.id).await?;
    if printer.is_json() {
        printer.json(&job)
    } else {
        printer.line(&format!("job {} ({}) {}", job.id, job.name, job.message()))
    }
    Ok(())
}

async fn delete(printer: &Printer, named: &NamedJob, yes: bool) -> Result<(), Failure> {
    let (client, job) = find(named).await?;
    printer.confirm_async(&format!("Delete job {} ({}) and its output?", job.id, job.name), yes).await?;
    let answer = client.admin().jobs_delete(wire::JobRequest { job: job.id.to_string() }).await?;
    print_answer(printer, answer.into_inner())
}
