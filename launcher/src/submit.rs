//! `submit`: a job on the cluster, followed from here.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use bytes::Bytes;
use cloudtik_protocol::wire::open_request::What;
use cloudtik_protocol::wire::session_frame::Frame;
use cloudtik_protocol::wire::submit_option::Content;
use cloudtik_protocol::{MAX_JOB, wire};

use crate::cli::Submit;
use crate::client::Client;
use crate::exec::Outcome;
use crate::failure::{Failure, REFUSED, TIMED_OUT, USAGE};
use crate::output::Printer;
use crate::session::Session;

pub async fn submit(printer: &Printer, arguments: &Submit) -> Result<u8, Failure> {
    let file = arguments.file();
    let main = content(file, MAX_JOB)?;
    let size = main.len() as u64;
    let mut contents = vec![main];
    let options = options(arguments, &mut contents)?;
    let client = Client::connect(&arguments.cluster).await?;
    let submit = wire::Submit {
        runtime: arguments.runtime.clone().unwrap_or_default(),
        file_name: name_of(file)?,
        arguments: arguments.arguments().iter().map(|argument| text_of(argument)).collect::<Result<_, _>>()?,
        size: Some(size),
        options,
    };
    printer.say(&format!("submitting {} to {}; its driver starts on the head", submit.file_name, client.place.name));
    let mut session = Session::open(&client, "", What::Submit(submit)).await?;
    let input = session.input.clone();
    let sending = async move {
        for content in contents {
            if !input.send(Bytes::from(content)).await {
                return;
            }
        }
        input.tell(Frame::EndOfInput(true)).await;
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
        // What was refused waits for nothing.
        if failure.hint.is_some() || failure.code == REFUSED {
            return failure;
        }
        failure.hint(format!("see what the cluster waits for with `cloudtik status {}`", client.place.name))
    })
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

fn name_of(file: &Path) -> Result<String, Failure> {
    text_of(file.file_name().unwrap_or_default())
}

/// The options of a job. The contents of files that they bring along are added to `contents`.
fn options(arguments: &Submit, contents: &mut Vec<Vec<u8>>) -> Result<Vec<wire::SubmitOption>, Failure> {
    let value = |name: &str, value: &String| wire::SubmitOption { name: name.to_owned(), content: Some(Content::Value(value.clone())) };
    let mut options: Vec<_> = arguments.class.iter().map(|class| value("class", class)).collect();
    options.extend(arguments.conf.iter().map(|conf| value("conf", conf)));
    options.extend(arguments.packages.iter().map(|package| value("packages", package)));
    options.extend(arguments.env.iter().map(|env| value("env", env)));
    let mut room = MAX_JOB - contents.iter().map(|content| content.len() as u64).sum::<u64>();
    for path in &arguments.py_files {
        let content = content(path, room)?;
        let size = content.len() as u64;
        room -= size;
        contents.push(content);
        let file = wire::SubmitFile { name: name_of(path)?, size };
        options.push(wire::SubmitOption { name: "py-files".to_owned(), content: Some(Content::File(file)) });
    }
    Ok(options)
}
