//! Probes: one look at whether a service answers.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use cloudtik_model::goal::{Check, Probe};
use cloudtik_protocol::logging::chain;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The most of an answer that is read, in bytes.
const MAX_ANSWER: usize = 4 << 20;

/// What a probe found instead of what it looks for.
#[derive(Debug, thiserror::Error)]
pub enum Unmet {
    #[error("nothing listens on {}", place(address))]
    NotListening { address: String },
    #[error("{} cannot be reached: {problem}", place(address))]
    Unreachable { address: String, problem: io::Error },
    #[error("no answer{} within {within_ms} ms", place_of(check))]
    NoAnswer { check: Box<Check>, within_ms: u64 },
    #[error("{url} answered {got}, not {wanted}")]
    Status { url: String, got: u16, wanted: u16 },
    #[error("{url} did not answer JSON")]
    NotJson { url: String },
    #[error("{url} has no {pointer}")]
    Missing { url: String, pointer: String },
    #[error("{pointer} is {found}, not {wanted}")]
    Different { pointer: String, found: serde_json::Value, wanted: serde_json::Value },
    #[error("{program} ended with {status}")]
    CommandFailed { program: String, status: ExitStatus },
    #[error("{program} cannot be run: {problem}")]
    NoCommand { program: String, problem: io::Error },
    #[error("{url} is not answered: {problem}")]
    Broken { url: String, problem: String },
    #[error("{0}")]
    Malformed(String),
}

impl Unmet {
    /// What a service that is starting waits for. `words` are the runtime's own for what comes once the service answers;
    /// empty if it has none.
    pub fn waiting(&self, words: &str) -> String {
        match self {
            Self::NotListening { address } => format!("waiting for {}", place(address)),
            Self::NoAnswer { check, .. } if words.is_empty() => format!("waiting for an answer{}", place_of(check)),
            Self::Status { .. }
            | Self::NotJson { .. }
            | Self::Missing { .. }
            | Self::Different { .. }
            | Self::CommandFailed { .. }
            | Self::NoAnswer { .. }
            | Self::Broken { .. }
                if !words.is_empty() =>
            {
                words.to_owned()
            }
            Self::Status { url, wanted, .. } => format!("waiting for status {wanted} of {url}"),
            Self::NotJson { url } | Self::Broken { url, .. } => format!("waiting for an answer of {url}"),
            Self::Missing { url, pointer } => format!("waiting for {pointer} of {url}"),
            Self::Different { pointer, wanted, .. } => format!("waiting until {pointer} is {wanted}"),
            Self::CommandFailed { program, .. } => format!("waiting for {program} to succeed"),
            // Time alone does not mend these.
            Self::NoAnswer { .. } | Self::Unreachable { .. } | Self::NoCommand { .. } | Self::Malformed(_) => self.to_string(),
        }
    }
}

/// An address as people know it: by its port where it has one.
fn place(address: &str) -> String {
    match address.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => format!("port {port}"),
        _ => address.to_owned(),
    }
}

fn place_of(check: &Check) -> String {
    match check {
        Check::Tcp { address } => format!(" on {}", place(address)),
        Check::Http { url, .. } => format!(" of {url}"),
        Check::Command { command } => command.first().map_or_else(String::new, |program| format!(" of {program}")),
    }
}

/// Probes once.
pub async fn probe(probe: &Probe, environment: &[(String, String)]) -> Result<(), Unmet> {
    let timeout = Duration::from_millis(probe.timeout_ms);
    match tokio::time::timeout(timeout, check(&probe.check, environment)).await {
        Ok(result) => result,
        Err(_) => Err(Unmet::NoAnswer { check: Box::new(probe.check.clone()), within_ms: probe.timeout_ms }),
    }
}

pub async fn check(check: &Check, environment: &[(String, String)]) -> Result<(), Unmet> {
    match check {
        Check::Tcp { address } => connect(address).await.map(drop),
        Check::Http { url, status, pointer, equals } => {
            let (got, body) = get(url).await?;
            if got != *status {
                return Err(Unmet::Status { url: url.clone(), got, wanted: *status });
            }
            let Some(pointer) = pointer else { return Ok(()) };
            let json: serde_json::Value = serde_json::from_slice(&body).map_err(|_| Unmet::NotJson { url: url.clone() })?;
            match (json.pointer(pointer), equals) {
                (None, _) => Err(Unmet::Missing { url: url.clone(), pointer: pointer.clone() }),
                (Some(found), Some(wanted)) if found != wanted => {
                    Err(Unmet::Different { pointer: pointer.clone(), found: found.clone(), wanted: wanted.clone() })
                }
                _ => Ok(()),
            }
        }
        Check::Command { command } => {
            let Some((program, arguments)) = command.split_first() else {
                return Err(Unmet::Malformed("the probe's command is empty".to_owned()));
            };
            let status = tokio::process::Command::new(program)
                .args(arguments)
                .env_clear()
                .envs(environment.iter().map(|(k, v)| (k, v)))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .status()
                .await
                .map_err(|problem| Unmet::NoCommand { program: program.clone(), problem })?;
            if status.success() { Ok(()) } else { Err(Unmet::CommandFailed { program: program.clone(), status }) }
        }
    }
}

async fn connect(address: &str) -> Result<TcpStream, Unmet> {
    TcpStream::connect(address).await.map_err(|problem| match problem.kind() {
        io::ErrorKind::ConnectionRefused => Unmet::NotListening { address: address.to_owned() },
        _ => Unmet::Unreachable { address: address.to_owned(), problem },
    })
}

async fn get(url: &str) -> Result<(u16, Bytes), Unmet> {
    exchange("GET", url, "").await
}

/// Asks a server for something; its status and answer.
pub async fn exchange(method: &str, url: &str, body: &str) -> Result<(u16, Bytes), Unmet> {
    let broken = |error: &dyn std::error::Error| Unmet::Broken { url: url.to_owned(), problem: chain(error) };
    let uri: http::Uri = url.parse().map_err(|e| Unmet::Malformed(format!("{url} is no address: {e}")))?;
    let authority = uri.authority().ok_or_else(|| Unmet::Malformed(format!("{url} names no host")))?;
    let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let stream = connect(&address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
    let request = http::Request::builder()
        .method(method)
        .uri(uri.path_and_query().map_or("/", |p| p.as_str()))
        .header(http::header::HOST, authority.as_str())
        .header(http::header::CONNECTION, "close")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
        .map_err(|e| Unmet::Malformed(format!("{url}: {e}")))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|e| broken(&*e))?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(exchange, connection);
    let mut connected = true;
    loop {
        tokio::select! {
            result = &mut exchange => return result,
            // The answer may still be read when the connection is done.
            _ = &mut connection, if connected => connected = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that gives one answer, and its address.
    async fn answering(answer: &'static str) -> (String, tokio::task::JoinHandle<()>) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("an address").to_string();
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 1024]).await;
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", answer.len());
                let _ = stream.write_all(format!("{head}{answer}").as_bytes()).await;
            }
        });
        (address, serving)
    }

    #[tokio::test]
    async fn a_service_that_starts_says_what_it_waits_for() {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds").local_addr().expect("an address");
        let port = free.port();
        let waits = |unmet: Unmet, words: &str| (unmet.waiting(words), unmet.to_string());
        let tcp = Check::Tcp { address: free.to_string() };
        let (waiting, seen) = waits(check(&tcp, &[]).await.expect_err("nothing listens"), "waiting for its peers");
        assert_eq!((waiting, seen), (format!("waiting for port {port}"), format!("nothing listens on port {port}")));
        let http = |address: &str, equals: &str| Check::Http {
            url: format!("http://{address}/json/"),
            status: 200,
            pointer: Some("/masterurl".to_owned()),
            equals: Some(equals.into()),
        };
        let (waiting, _) = waits(check(&http(&free.to_string(), "x"), &[]).await.expect_err("nothing listens"), "");
        assert_eq!(waiting, format!("waiting for port {port}"));

        let (address, serving) = answering("{\"masterurl\": \"\"}").await;
        let unmet = check(&http(&address, "spark://h:7077"), &[]).await.expect_err("it is another");
        assert_eq!(unmet.waiting("waiting to register with the master"), "waiting to register with the master");
        assert_eq!(unmet.waiting(""), "waiting until /masterurl is \"spark://h:7077\"");
        assert_eq!(unmet.to_string(), "/masterurl is \"\", not \"spark://h:7077\"");
        assert!(check(&http(&address, ""), &[]).await.is_ok());
        serving.abort();

        let unmet = check(&Check::Command { command: vec!["/bin/false".to_owned()] }, &[]).await.expect_err("it fails");
        assert_eq!(unmet.waiting(""), "waiting for /bin/false to succeed");
        assert_eq!(unmet.to_string(), "/bin/false ended with exit status: 1");
        assert!(!unmet.to_string().contains("os error"));
    }
}
