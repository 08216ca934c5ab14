//! The listening socket and its connections.
//!
//! The accept loop is our own because `axum::serve` always answers: a service that can say "drop this
//! connection" needs hyper's.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use standardwebhooks::Webhook;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tower::ServiceExt;

use crate::Received;
use crate::kept::{Counts, Kept, Limits, WaitTimedOut};
use crate::routes::{ResetConnection, router};
use crate::shared::{Observer, Shared};

/// How a receiver is set up.
#[derive(Default)]
pub struct Options {
    /// The signing secret, `whsec_…`. Without it signatures are not checked.
    pub secret: Option<String>,
    /// How much is kept.
    pub limits: Limits,
    /// Told of every delivery.
    pub observer: Option<Observer>,
}

/// Why a receiver did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The signing secret is not one.
    #[error("the signing secret must be `whsec_` and standard base64")]
    Secret,
}

/// A webhook endpoint, listening until it is dropped.
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Receiver {
    /// Listens on the address (port 0: any free one) and verifies with the secret, if there is one.
    pub async fn start(address: SocketAddr, secret: Option<&str>) -> Result<Self, StartError> {
        let secret = secret.map(ToOwned::to_owned);
        Self::start_with(address, Options { secret, ..Options::default() }).await
    }

    /// The same with all options.
    pub async fn start_with(address: SocketAddr, options: Options) -> Result<Self, StartError> {
        let verifier = options.secret.as_deref().map(Webhook::new).transpose();
        let shared = Arc::new(Shared {
            kept: Kept::new(options.limits),
            verifier: verifier.map_err(|_| StartError::Secret)?,
            observer: options.observer,
        });
        let listen_error = |source| StartError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let accepting = tokio::spawn(accept(listener, router(Arc::clone(&shared))));
        Ok(Self { address, shared, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A URL of this endpoint; `path_and_query` starts with a slash.
    #[must_use]
    pub fn url(&self, path_and_query: &str) -> String {
        format!("http://{}{path_and_query}", self.address)
    }

    /// The deliveries kept, oldest first.
    #[must_use]
    pub fn received(&self) -> Vec<Arc<Received>> {
        self.shared.kept.all()
    }

    /// Exact counts since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.kept.counts()
    }

    /// Waits until the condition holds for the deliveries kept. Woken by arrivals and answers.
    pub async fn wait_for(
        &self,
        condition: impl FnMut(&[Arc<Received>]) -> bool,
        timeout: Duration,
    ) -> Result<Vec<Arc<Received>>, WaitTimedOut> {
        self.shared.kept.wait_for(condition, timeout).await
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // Ends the connections too: they belong to the accepting task.
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, router: Router) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, router.clone()));
                }
                // Out of file descriptors, most likely: wait for some to be given back.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Why hyper ends a connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("told to drop the connection")]
struct Dropped;

async fn serve(stream: TcpStream, router: Router) {
    // Small answers must not wait for the sender's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let router = router.clone();
        async move {
            let response = match router.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never as Infallible {},
            };
            if response.extensions().get::<ResetConnection>().is_some() {
                return Err(Dropped);
            }
            Ok(response)
        }
    });
    let mut connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    let ended = std::pin::Pin::new(&mut connection).await;
    if ended.is_err_and(|error| error.is_user()) {
        // Closing with nothing to linger for sends a reset instead of an orderly end.
        let _ = connection.into_parts().io.into_inner().set_zero_linger();
    }
}
