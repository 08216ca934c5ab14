//! Accepts connections and serves HTTP/1.1 on them, with a bound on everything.
//!
//! Not `axum::serve`: that has no time-out for headers, so a few hundred silent sockets would stop it.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::Config;

/// More headers than this are answered with 431.
const MAX_HEADERS: usize = 100;

/// Most bytes of a request's head.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// A peer that takes no byte of its answer for this long is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// After a failed accept: most often file descriptors ran out, and some must be closed first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop`, then closes idle connections and finishes the requests under way.
pub(crate) async fn serve(listener: TcpListener, router: Router, config: &Config, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(config.server.max_connections as usize));
    let connections = TaskTracker::new();
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(config.server.header_timeout())
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES);
    let accept = async || {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
        (slot, listener.accept().await)
    };
    while let Some((slot, accepted)) = stop.run_until_cancelled(accept()).await {
        match accepted {
            Ok((stream, _)) => {
                let connection = connect(builder.clone(), stream, router.clone(), stop.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if timeout(config.shutdown.timeout(), connections.wait()).await.is_err() {
        warn!(connections = connections.len(), "giving up on requests that do not end");
    }
}

async fn connect(builder: http1::Builder, stream: TcpStream, router: Router, stop: CancellationToken) {
    // Answers are small and complete: waiting for more to send only delays them.
    let _ = stream.set_nodelay(true);
    // hyper waits for a peer that does not read its answer for as long as that takes.
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let connection = builder.serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended early");
    }
}
