//! Probes: one look at whether a service answers.

use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use cloudtik_model::goal::{Check, Probe};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The most of an answer that is read, in bytes.
const MAX_ANSWER: usize = 4 << 20;

/// Probes once; an error says what was seen instead.
pub async fn probe(probe: &Probe, environment: &[(String, String)]) -> Result<(), String> {
    let timeout = Duration::from_millis(probe.timeout_ms);
    match tokio::time::timeout(timeout, check(&probe.check, environment)).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {} ms", probe.timeout_ms)),
    }
}

pub async fn check(check: &Check, environment: &[(String, String)]) -> Result<(), String> {
    match check {
        Check::Tcp { address } => TcpStream::connect(address).await.map(drop).map_err(|e| format!("{address}: {e}")),
        Check::Http { url, status, pointer, equals } => {
            let (got, body) = get(url).await?;
            if got != *status {
                return Err(format!("{url} answered {got}"));
            }
            let Some(pointer) = pointer else { return Ok(()) };
            let json: serde_json::Value = serde_json::from_slice(&body).map_err(|_| format!("{url} did not answer JSON"))?;
            match (json.pointer(pointer), equals) {
                (None, _) => Err(format!("{url} has no {pointer}")),
                (Some(found), Some(wanted)) if found != wanted => Err(format!("{pointer} is {found}, not {wanted}")),
                _ => Ok(()),
            }
        }
        Check::Command { command } => {
            let (program, arguments) = command.split_first().ok_or("empty probe command")?;
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
                .map_err(|e| format!("{program}: {e}"))?;
            if status.success() { Ok(()) } else { Err(format!("{program}: {status}")) }
        }
    }
}

async fn get(url: &str) -> Result<(u16, Bytes), String> {
    exchange("GET", url, "").await
}

/// Asks a server for something; its status and answer.
pub async fn exchange(method: &str, url: &str, body: &str) -> Result<(u16, Bytes), String> {
    let uri: http::Uri = url.parse().map_err(|e| format!("{url}: {e}"))?;
    let authority = uri.authority().ok_or_else(|| format!("{url} names no host"))?;
    let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(&address).await.map_err(|e| format!("{address}: {e}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| format!("{url}: {e}"))?;
    let request = http::Request::builder()
        .method(method)
        .uri(uri.path_and_query().map_or("/", |p| p.as_str()))
        .header(http::header::HOST, authority.as_str())
        .header(http::header::CONNECTION, "close")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
        .map_err(|e| format!("{url}: {e}"))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| format!("{url}: {e}"))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|e| format!("{url}: {e}"))?;
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
