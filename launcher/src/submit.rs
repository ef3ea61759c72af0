//! `submit`: a job on the cluster, followed from here.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use cloudtik_protocol::wire::open_request::What;
use cloudtik_protocol::wire::session_frame::Frame;
use cloudtik_protocol::{MAX_JOB, wire};

use crate::cli::Submit;
use crate::client::Client;
use crate::exec::Outcome;
use crate::failure::{Failure, NOT_FOUND, REFUSED, TIMED_OUT};
use crate::output::Printer;
use crate::session::Session;

pub async fn submit(printer: &Printer, arguments: &Submit) -> Result<u8, Failure> {
    let file = &arguments.file;
    let content = content(file)?;
    let client = Client::connect(&arguments.cluster).await?;
    let submit = wire::Submit {
        runtime: arguments.runtime.clone().unwrap_or_default(),
        file_name: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        arguments: arguments.arguments.clone(),
        size: Some(content.len() as u64),
    };
    printer.say(&format!("submitting {} to {}; its driver starts on the head", submit.file_name, client.place.name));
    let mut session = Session::open(&client, "", What::Submit(submit)).await?;
    let input = session.input.clone();
    let sending = async move {
        if input.send(Bytes::from(content)).await {
            input.tell(Frame::EndOfInput(true)).await;
        }
    };
    let sender = tokio::spawn(sending);
    let result = if printer.is_json() {
        Outcome::of("head", &mut session).await.map(|outcome| {
            printer.json(&outcome);
            outcome.exit_code
        })
    } else {
        session.follow(|stream, bytes| printer.copy(stream, bytes)).await
    };
    sender.abort();
    result.map_err(|failure| {
        if session.is_broken {
            let message = "the head was restarted while the job ran, which ended the job";
            return Failure::new(TIMED_OUT, message).hint("submit it again; the cluster itself goes on");
        }
        if failure.hint.is_some() {
            return failure;
        }
        failure.hint(format!("see what the cluster waits for with `cloudtik status {}`", client.place.name))
    })
}

/// What a job's file holds, which is not read at all if it is too large. It may be a pipe, of which the length is not known.
fn content(file: &Path) -> Result<Vec<u8>, Failure> {
    let unreadable = |e| Failure::new(NOT_FOUND, format!("cannot read {}: {e}", file.display()));
    let too_large = || {
        Failure::new(REFUSED, format!("{} is larger than {} MiB, the limit of a job's file", file.display(), MAX_JOB >> 20))
            .hint("put data where the job can read it, such as with `cloudtik upload`, and submit only the program")
    };
    let mut opened = File::open(file).map_err(unreadable)?;
    if opened.metadata().map_err(unreadable)?.len() > MAX_JOB {
        return Err(too_large());
    }
    let mut content = Vec::new();
    opened.by_ref().take(MAX_JOB + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() as u64 > MAX_JOB { Err(too_large()) } else { Ok(content) }
}
