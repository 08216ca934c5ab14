//! Accepts connections and serves HTTP/1.1 on them, with a bound on everything.
//!
//! Not `axum::serve`: that has no time-out for headers and no limit of connections.

mod answer_body;
mod descriptors;
mod hyper_refusal;
mod stream;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::HttpBody;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::CONNECTION;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use self::answer_body::AnswerBody;
use self::stream::WatchedStream;
use crate::config::{Config, ServerConfig};
use crate::connections::{Connection, Connections, Limits};
use crate::head_limits::{MAX_HEAD_BYTES, MAX_HEADERS};
use crate::log_throttle::LogThrottle;

/// A peer that takes no byte of its answer for this long is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Whoever has connected has this long to speak before another may take the place. A request follows its connection
/// at once; and at this pace strangers get through all places before anybody has waited for long.
const MOMENT: Duration = Duration::from_millis(100);

/// After a failed accept: most often file descriptors ran out, and some must be closed first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The same when a connection is being closed for it.
const CLOSING_PAUSE: Duration = Duration::from_millis(1);

/// Connections that the system keeps until they are accepted. It drops what comes beyond that, and who was dropped tries
/// again after a second: a burst of strangers must find room, and nobody wait behind more than that.
const BACKLOG: u32 = 1_024;

/// Listens on the first of the host's addresses that can be listened on.
pub(crate) async fn listen(address: (&str, u16)) -> io::Result<TcpListener> {
    let mut outcome = Err(io::ErrorKind::AddrNotAvailable.into());
    for address in lookup_host(address).await? {
        outcome = listen_on(address);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Or an api that is started anew would have to wait for the last connections of the one before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until `stop`, then closes idle connections and finishes the requests under way.
pub(crate) async fn serve(listener: TcpListener, router: Router, config: &Config, stop: CancellationToken) {
    let connections = Connections::new(limits(&config.server));
    let tasks = TaskTracker::new();
    let mut failures = LogThrottle::default();
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(config.server.header_timeout())
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES);
    // Accepted first: whoever waits to be is kept out by those who stand still.
    let accept = async || {
        let accepted = listener.accept().await;
        connections.make_room().await;
        accepted
    };
    while let Some(accepted) = stop.run_until_cancelled(accept()).await {
        match accepted {
            Ok((stream, _)) => {
                let connection = Connection::open(&connections);
                tasks.spawn(connect(builder.clone(), stream, router.clone(), connection, stop.clone()));
            }
            Err(error) => {
                if let Some(times) = failures.happened() {
                    warn!(%error, times, "cannot accept a connection");
                }
                sleep(pause_after(&error, &connections)).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    if timeout(config.shutdown.timeout(), tasks.wait()).await.is_err() {
        warn!(connections = tasks.len(), "giving up on requests that do not end");
    }
}

fn limits(config: &ServerConfig) -> Limits {
    Limits {
        connections: descriptors::affordable_connections(config.max_connections) as usize,
        unverified_bytes: usize::try_from(config.unverified_body_bytes).unwrap_or(usize::MAX),
        moment: MOMENT,
    }
}

/// How long not to accept. Where the process may have fewer files than connections, one of these goes.
fn pause_after(error: &io::Error, connections: &Connections) -> Duration {
    if descriptors::ran_out(error) && connections.cut_one() { CLOSING_PAUSE } else { ACCEPT_PAUSE }
}

async fn connect(
    builder: http1::Builder,
    stream: TcpStream,
    router: Router,
    connection: Arc<Connection>,
    stop: CancellationToken,
) {
    // Answers are small and complete: waiting for more to send only delays them.
    let _ = stream.set_nodelay(true);
    // hyper waits for a peer that does not read its answer for as long as that takes.
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let watched = WatchedStream::new(Box::pin(stream), Arc::clone(&connection));

    let router = TowerToHyperService::new(router);
    let service = service_fn(|mut request: Request<Incoming>| {
        connection.begin(!request.body().is_end_stream());
        request.extensions_mut().insert(Arc::clone(&connection));
        let answering = router.call(request);
        let connection = Arc::clone(&connection);
        async move {
            let mut response = answering.await?;
            if connection.ends_with_answer() {
                // Or a caller who keeps connections would find out with its next request.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| AnswerBody { body, connection }))
        }
    });
    let mut http = std::pin::pin!(builder.serve_connection(TokioIo::new(watched), service));
    let ended = tokio::select! {
        ended = http.as_mut() => ended,
        () = connection.cut() => return,
        () = stop.cancelled() => {
            http.as_mut().graceful_shutdown();
            http.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended early");
    }
}
