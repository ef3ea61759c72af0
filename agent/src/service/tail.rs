//! The last lines of a service's log, for people who ask why it fails. Secrets of the service are left out.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use cloudtik_model::{goal, secret};
use cloudtik_protocol::convert::bounded_log;

use crate::shim::LOG_FILE;

/// Bytes of the log that are read for its last lines.
const READ: u64 = 16 << 10;
/// Shorter values are no secrets, and leaving them out would garble every line.
const SHORTEST_SECRET: usize = 6;

/// How long a service's log is now: what its next process says comes after.
pub(super) fn length(directory: &Path) -> u64 {
    std::fs::metadata(directory.join(LOG_FILE)).map_or(0, |log| log.len())
}

/// The last lines that were written after the first `from` bytes; none if the log cannot be read.
pub(super) fn last_lines(directory: &Path, from: u64, service: &goal::Service) -> Vec<String> {
    let Ok(text) = read_end(&directory.join(LOG_FILE), from) else { return Vec::new() };
    let hidden = hide(&text, &secrets(service));
    bounded_log(hidden.lines().filter(|line| !line.trim().is_empty()))
}

fn read_end(path: &Path, from: u64) -> io::Result<String> {
    let mut log = File::open(path)?;
    let length = log.metadata()?.len();
    // A shorter log was rotated since.
    let from = if from > length { 0 } else { from };
    let start = length.saturating_sub(READ).max(from);
    log.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    log.take(READ).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    // The first line of a part may have begun before it.
    Ok(if start > from { text.split_once('\n').map_or_else(String::new, |(_, rest)| rest.to_owned()) } else { text })
}

/// Values that the service was given under names of secrets, in its environment and its files.
fn secrets(service: &goal::Service) -> Vec<String> {
    let assigned: Vec<String> = service.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let texts = assigned.iter().map(String::as_str).chain(service.files.iter().map(|file| file.content.as_str()));
    let in_text = texts.flat_map(|text| secret::spans(text).into_iter().map(|span| &text[span]));
    let named = service.environment.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let written = service.files.iter().flat_map(|file| properties(&file.content).chain(elements(&file.content)));
    let by_name = named.chain(written).filter(|(name, _)| secret::is_secret_name(name)).map(|(_, value)| value);
    let bare = |value: &str| value.trim_matches(|c: char| c.is_whitespace() || "\"',;".contains(c)).to_owned();
    let mut found: Vec<String> = in_text
        .chain(by_name)
        .map(bare)
        // A path says where a secret is, not what it is.
        .filter(|value| value.len() >= SHORTEST_SECRET && !value.starts_with('/') && value != "true" && value != "false")
        .collect();
    // The longest first: one may contain another.
    found.sort_by_key(|value| std::cmp::Reverse(value.len()));
    found.dedup();
    found
}

/// Lines such as `spark.authenticate.secret   x`: the rest is the value.
fn properties(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| line.trim().split_once(char::is_whitespace))
}

/// Hadoop's `<name>x</name> <value>y</value>`.
fn elements(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split("<name>").skip(1).filter_map(|rest| {
        let (name, rest) = rest.split_once("</name>")?;
        Some((name.trim(), rest.split_once("<value>")?.1.split_once("</value>")?.0))
    })
}

/// A text without what the service was given as secrets, and others that can be told in it.
pub(super) fn without_secrets(text: &str, service: &goal::Service) -> String {
    hide(text, &secrets(service))
}

fn hide(text: &str, secrets: &[String]) -> String {
    secret::redact(&secrets.iter().fold(text.to_owned(), |text, value| text.replace(value.as_str(), secret::LEFT_OUT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(environment: &[(&str, &str)], file: &str) -> goal::Service {
        let document = serde_json::json!({
            "key": "queue/q",
            "command": ["/bin/true"],
            "environment": environment.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
            "files": [{ "path": "conf", "content": file }],
        });
        serde_json::from_value(document).expect("a service")
    }

    #[test]
    fn the_last_lines_are_those_of_the_last_run_and_bounded() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let log = directory.path().join(LOG_FILE);
        assert!(last_lines(directory.path(), 0, &service(&[], "")).is_empty(), "there is no log yet");
        std::fs::write(&log, "the run before\n").expect("writes");
        let from = length(directory.path());
        assert!(last_lines(directory.path(), from, &service(&[], "")).is_empty(), "this run said nothing");
        let said: String = (0..2_000).map(|n| format!("line {n}\n\n")).collect();
        std::fs::write(&log, format!("the run before\n{said}")).expect("writes");
        let lines = last_lines(directory.path(), from, &service(&[], ""));
        let expected: Vec<String> = (1_990..2_000).map(|n| format!("line {n}")).collect();
        assert_eq!(lines, expected);
        // Rotated meanwhile: all of the new file is of this run.
        std::fs::write(&log, "new\n").expect("writes");
        assert_eq!(last_lines(directory.path(), from, &service(&[], "")), ["new"]);
    }

    #[test]
    fn secrets_of_the_service_are_not_in_its_last_lines() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = "# comment\nspark.authenticate.secret   s3cr3t-of-spark\napi_token: \"tok-12345\"\nspark.ui.port 4040\n";
        let service = service(&[("DB_PASSWORD", "hunter22"), ("SSL_KEY", "/etc/ssl/key.pem"), ("PLAIN", "visible")], file);
        let said = "login with hunter22 refused\nsecret s3cr3t-of-spark\ntok-12345 visible 4040 /etc/ssl/key.pem\nrun --password=abc x=1\n";
        std::fs::write(directory.path().join(LOG_FILE), said).expect("writes");
        let lines = last_lines(directory.path(), 0, &service);
        assert_eq!(
            lines,
            ["login with [secret] refused", "secret [secret]", "[secret] visible 4040 /etc/ssl/key.pem", "run --password=[secret] x=1",]
        );
    }

    #[test]
    fn secrets_are_left_out_in_every_notation_and_what_is_none_stays() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let file =
            "<property><name>fs.s3a.secret.key</name>\n<value>planted-xml</value></property>\nurl: jdbc:db://me:planted-url@host/x\n";
        let service = service(&[("CONFIG", "{\"password\": \"planted-env\"}")], file);
        let said = "password: planted-1\n{\"password\": \"planted-2\"}\nAuthorization: Bearer planted-3\n\
                    cannot reach amqp://me:planted-4@host\nit was planted-xml, planted-url or planted-env\nkey=value pairs, key: 7\n";
        std::fs::write(directory.path().join(LOG_FILE), said).expect("writes");
        let lines = last_lines(directory.path(), 0, &service);
        let expected = [
            "password: [secret]",
            "{\"password\": \"[secret]\"}",
            "Authorization: [secret]",
            "cannot reach amqp://me:[secret]@host",
            "it was [secret], [secret] or [secret]",
            "key=value pairs, key: 7",
        ];
        assert_eq!(lines, expected);
    }
}
