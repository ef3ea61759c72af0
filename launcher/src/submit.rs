//! `submit`: a job on the cluster, followed from here.

use bytes::Bytes;
use cloudtik_protocol::wire;
use cloudtik_protocol::wire::open_request::What;
use cloudtik_protocol::wire::session_frame::Frame;

use crate::cli::Submit;
use crate::client::Client;
use crate::exec::Outcome;
use crate::failure::{Failure, NOT_FOUND, TIMED_OUT};
use crate::output::Printer;
use crate::session::{Session, copy};

pub async fn submit(printer: &Printer, arguments: &Submit) -> Result<u8, Failure> {
    let file = &arguments.file;
    let content = std::fs::read(file).map_err(|e| Failure::new(NOT_FOUND, format!("cannot read {}: {e}", file.display())))?;
    let client = Client::connect(&arguments.cluster).await?;
    let submit = wire::Submit {
        runtime: arguments.runtime.clone().unwrap_or_default(),
        file_name: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        arguments: arguments.arguments.clone(),
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
        session.follow(copy).await
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
