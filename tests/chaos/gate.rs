//! A door of the receiver's with a port of its own, and so a destination of its own, that may be sick for a while.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What a door does to what passes. The text is a query that the receiver knows.
pub const SICKNESSES: [&str; 4] = ["?status=503", "?status=429&retry_after=1", "?status=503&retry_after=2", "?hang=1"];

/// The header by which the receiver's log says through which door something came.
pub const DOOR: &str = "x-forwarded-host";

/// A door. It closes when it is dropped.
pub struct Gate {
    address: SocketAddr,
    state: watch::Sender<Health>,
    serving: JoinHandle<()>,
}

/// How a door is.
#[derive(Clone, Copy, Debug)]
pub struct Health {
    /// What it asks the receiver to answer, unless it is well.
    pub sickness: Option<&'static str>,
    /// Since when.
    pub since: Instant,
}

struct Way {
    receiver: String,
    http: reqwest::Client,
    health: watch::Receiver<Health>,
}

impl Gate {
    /// Opens one to the receiver at this URL.
    pub async fn open(receiver_url: &str) -> Self {
        let (state, health) = watch::channel(Health { sickness: None, since: Instant::now() });
        // No connection is used twice: one that is closed meanwhile would make a client send again.
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build();
        let http = http.expect("a client without special wishes can be built");
        let way = Arc::new(Way { receiver: receiver_url.to_owned(), http, health });
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound socket has an address");
        let router = Router::new().fallback(pass).with_state(way);
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { address, state, serving }
    }

    /// A URL that leads through it.
    pub fn url(&self, query: &str) -> String {
        format!("{}/hook{query}", self.destination())
    }

    /// As `destinations` has it.
    pub fn destination(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes it sick, or well again.
    pub fn set(&self, sickness: Option<&'static str>) {
        self.state.send_replace(Health { sickness, since: Instant::now() });
    }

    /// Since when it is well.
    pub fn well_since(&self) -> Option<Instant> {
        let health = *self.state.borrow();
        health.sickness.is_none().then_some(health.since)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// The receiver answers, and keeps it in its log: so whatever the worker hears is what the log says.
async fn pass(State(way): State<Arc<Way>>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let sickness = way.health.borrow().sickness;
    let query = sickness.map_or_else(|| uri.query().map_or_else(String::new, |it| format!("?{it}")), str::to_owned);
    let mut request = way.http.post(format!("{}{}{query}", way.receiver, uri.path())).body(body);
    if let Some(door) = headers.get(header::HOST) {
        request = request.header(DOOR, door);
    }
    let is_of_the_connection = |name: &HeaderName| [header::HOST, header::CONTENT_LENGTH].contains(name);
    for (name, value) in headers.iter().filter(|(name, _)| !is_of_the_connection(name)) {
        request = request.header(name, value);
    }
    let Ok(response) = request.send().await else { return StatusCode::BAD_GATEWAY.into_response() };
    let (status, retry_after) = (response.status(), response.headers().get(header::RETRY_AFTER).cloned());
    let body = response.bytes().await.unwrap_or_default();
    let mut response = (status, body).into_response();
    response.headers_mut().extend(retry_after.map(|value| (header::RETRY_AFTER, value)));
    response
}
