//! Connections: dialling a head by TCP with TLS or by Unix socket, and serving HTTP over TLS with the caller's identity.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, Uri};
use hyper::body::{Body, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, Endpoint};

use crate::pki::Peer;
use crate::tls::ServerIdentity;

/// A peer that has not finished its handshake by then is not one of ours.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2 pings on connections that are silent: a dead peer is noticed within twice this.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long a peer without a certificate may stay connected.
pub const NOBODY_STAYS: Duration = Duration::from_secs(30);
/// Connections at once that have not shown a certificate, shaking hands included. A thousand nodes that join together
/// take turns.
const MAX_STRANGERS: usize = 512;
/// Connections that a server holds at once; the file limit of a service is well above.
const MAX_CONNECTIONS: usize = 16_384;

/// Takes as many open files as this process may have: every connection is one, and the usual limit is meant for programs
/// that still use `select`.
pub fn raise_file_limit() -> io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard { Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?) } else { Ok(()) }
}

/// Dials a head's bus, from an address of one's own if one has several.
pub async fn dial(
    address: &str,
    from: Option<IpAddr>,
    name: &ServerName<'static>,
    tls: Arc<rustls::ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    dial_with(address, from, name, tls, |_| {}).await
}

/// The same for a stream of small messages that must not be late, such as heartbeats. What is lost of it is sent again every
/// fifth of a second at first; elsewhere pauses double, and three losses in a row look like silence.
pub async fn dial_for_messages(
    address: &str,
    from: Option<IpAddr>,
    name: &ServerName<'static>,
    tls: Arc<rustls::ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    dial_with(address, from, name, tls, |stream| {
        // Not every kernel has both; without them it is a stream like any other. Some ways of congestion control, such as
        // BBR, never take a stream for a thin one, and with messages there is no bandwidth to find out.
        let _ = sockopt::set_tcp_congestion(stream, "reno");
        let _ = sockopt::set_tcp_thin_linear_timeouts(stream, true);
    })
    .await
}

async fn dial_with(
    address: &str,
    from: Option<IpAddr>,
    name: &ServerName<'static>,
    tls: Arc<rustls::ClientConfig>,
    tune: fn(&TcpStream),
) -> Result<Channel, tonic::transport::Error> {
    let name = name.clone();
    let connector = TlsConnector::from(with_h2(tls));
    let target = address.to_owned();
    // The scheme is plain because TLS happens inside the connector.
    endpoint(&format!("http://{address}"))
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let (connector, name, target) = (connector.clone(), name.clone(), target.clone());
            async move {
                let stream = connect(&target, from).await?;
                stream.set_nodelay(true)?;
                tune(&stream);
                Ok::<_, io::Error>(TokioIo::new(connector.connect(name, stream).await?))
            }
        }))
        .await
}

async fn connect(target: &str, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let Some(from) = from else { return TcpStream::connect(target).await };
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{target} has no address of the kind of {from}"));
    for address in tokio::net::lookup_host(target).await?.filter(|a| a.is_ipv4() == from.is_ipv4()) {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(SocketAddr::new(from, 0))?;
        match socket.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Dials a Unix socket, however long its path is.
pub async fn dial_unix(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = path.to_owned();
    endpoint("http://local")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move {
                let (_directory, short) = short_path(&path)?;
                Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(short).await?))
            }
        }))
        .await
}

fn endpoint(uri: &str) -> Endpoint {
    Endpoint::from_shared(uri.to_owned())
        .expect("the address is a valid authority")
        .connect_timeout(HANDSHAKE_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
}

fn with_h2(tls: Arc<rustls::ClientConfig>) -> Arc<rustls::ClientConfig> {
    let mut config = (*tls).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// A Unix socket's path may have 107 bytes; through its directory's file descriptor any path is short enough. The file
/// must stay open while the path is used.
fn short_path(path: &Path) -> io::Result<(std::fs::File, PathBuf)> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "socket path has no file name"))?;
    let directory = std::fs::File::open(parent)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    Ok((directory, short))
}

/// Listens on a Unix socket that only this user can open. An abandoned socket file is replaced.
pub fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    if std::fs::symlink_metadata(path).is_ok() {
        std::fs::remove_file(path)?;
    }
    let (_directory, short) = short_path(path)?;
    let listener = UnixListener::bind(short)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Who called, as an extension of each request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Over a Unix socket: the user that the file permissions let in.
    LocalUser,
    /// Over mutual TLS.
    Certified(Peer),
    /// Over TLS without a certificate: may join and nothing else.
    Nobody,
}

/// Where a caller over TLS called from, as an extension of each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin(pub SocketAddr);

/// Why a connection came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub from: Option<SocketAddr>,
    pub reason: String,
}

/// Serves HTTP/1.1 and HTTP/2 over TLS until `stop`; then connections are told to finish, and a little later left.
/// `refused` hears of every connection that did not get through its handshake.
pub async fn serve_tls<S, B>(
    listener: TcpListener,
    identity: ServerIdentity,
    service: S,
    refused: impl Fn(Refused) + Clone + Send + 'static,
    stop: CancellationToken,
) where
    S: tower::Service<Request<Incoming>, Response = Response<B>, Error = std::convert::Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Whoever has not shown a certificate gets little room, so that they cannot take it from those who have.
    let strangers = Arc::new(Semaphore::new(MAX_STRANGERS));
    let tasks = TaskTracker::new();
    loop {
        let permit = tokio::select! {
            () = stop.cancelled() => break,
            permit = connections.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
        };
        let (stream, from) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    refused(Refused { from: None, reason: format!("cannot accept: {error}") });
                    // Out of file descriptors: accepting again at once would only spin.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (identity, service, refused, stop) = (identity.clone(), service.clone(), refused.clone(), stop.clone());
        let Ok(stranger) = strangers.clone().try_acquire_owned() else {
            refused(Refused { from: Some(from), reason: "too many unauthenticated connections".to_owned() });
            continue;
        };
        tasks.spawn(async move {
            let _permit = permit;
            let _ = stream.set_nodelay(true);
            let handshake = TlsAcceptor::from(identity.current()).accept(stream);
            let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return refused(Refused { from: Some(from), reason: format!("handshake failed: {error}") }),
                Err(_) => return refused(Refused { from: Some(from), reason: "no handshake in time".to_owned() }),
            };
            let certified = stream.get_ref().1.peer_certificates().is_some();
            let caller = match (identity.peer(stream.get_ref().1), certified) {
                (Some(peer), _) => Caller::Certified(peer),
                (None, false) => Caller::Nobody,
                (None, true) => {
                    return refused(Refused {
                        from: Some(from),
                        reason: "the certificate's identity is not part of this cluster".to_owned(),
                    });
                }
            };
            let is_nobody = caller == Caller::Nobody;
            let serving = serve_connection(TokioIo::new(stream), service, caller, Some(Origin(from)), stop);
            if is_nobody {
                // Long enough to join; whoever stays longer only takes room.
                let _ = tokio::time::timeout(NOBODY_STAYS, serving).await;
            } else {
                drop(stranger);
                serving.await;
            }
        });
    }
    drain(tasks).await;
}

/// Serves HTTP/2 on a Unix socket until `stop`.
pub async fn serve_unix<S, B>(listener: UnixListener, service: S, stop: CancellationToken)
where
    S: tower::Service<Request<Incoming>, Response = Response<B>, Error = std::convert::Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let tasks = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        tasks.spawn(serve_connection(TokioIo::new(stream), service.clone(), Caller::LocalUser, None, stop.clone()));
    }
    drain(tasks).await;
}

/// Connections get this long to finish when a server stops.
const DRAIN: Duration = Duration::from_millis(500);

async fn drain(tasks: TaskTracker) {
    tasks.close();
    let _ = tokio::time::timeout(DRAIN, tasks.wait()).await;
}

async fn serve_connection<I, S, B>(io: I, service: S, caller: Caller, origin: Option<Origin>, stop: CancellationToken)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    S: tower::Service<Request<Incoming>, Response = Response<B>, Error = std::convert::Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let with_caller = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(caller.clone());
        if let Some(origin) = origin {
            request.extensions_mut().insert(origin);
        }
        let mut service = service.clone();
        async move {
            std::future::poll_fn(|context| service.poll_ready(context)).await?;
            service.call(request).await
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(KEEP_ALIVE)).keep_alive_timeout(KEEP_ALIVE);
    let connection = builder.serve_connection(io, with_caller);
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// Runs `attempt` until it succeeds or `deadline` passes, pausing between attempts.
pub async fn retry_until<T, E, F: Future<Output = Result<T, E>>>(
    deadline: tokio::time::Instant,
    pause: Duration,
    mut attempt: impl FnMut() -> F,
) -> Result<T, E> {
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if tokio::time::Instant::now() >= deadline => return Err(error),
            Err(_) => tokio::time::sleep(pause).await,
        }
    }
}
