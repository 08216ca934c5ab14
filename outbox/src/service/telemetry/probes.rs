//! What is served at `METRICS_ADDR`: `GET /metrics`, `/health` and `/ready`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::Readiness;

/// Connections at once: a scraper and some probes.
const CONNECTIONS: usize = 32;

/// A request and its answer take no longer than this. Longer than Postgres is waited for.
const TIMEOUT: Duration = Duration::from_secs(5);

/// After a failed accept: most often file descriptors ran out, and some must be closed first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves as long as the process lives. Without `readiness` there is no `/ready`.
pub(super) async fn serve(listener: TcpListener, metrics: PrometheusHandle, readiness: Option<Readiness>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (metrics, readiness) = (metrics.clone(), readiness.clone());
        tokio::spawn(async move {
            if timeout(TIMEOUT, serve_one(stream, metrics, readiness)).await.is_err() {
                debug!("a request for metrics or a probe took too long");
            }
            drop(place);
        });
    }
}

/// One request, and the connection is closed: nobody keeps a place for nothing.
async fn serve_one(stream: TcpStream, metrics: PrometheusHandle, readiness: Option<Readiness>) {
    let service = service_fn(|request| answer(request, &metrics, readiness.as_ref()));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "a request for metrics or a probe was broken off");
    }
}

async fn answer(
    request: Request<Incoming>,
    metrics: &PrometheusHandle,
    readiness: Option<&Readiness>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return Ok(json_answer(StatusCode::METHOD_NOT_ALLOWED, &json!({ "error": "method not allowed" })));
    }
    Ok(match (request.uri().path(), readiness) {
        ("/metrics", _) => response(StatusCode::OK, PROMETHEUS, metrics.render()),
        // The process lives. Says nothing of any server: a restart would not bring that back.
        ("/health", _) => json_answer(StatusCode::OK, &json!({ "status": "ok" })),
        ("/ready", Some(readiness)) => {
            let (is_ready, how) = readiness.ask().await;
            json_answer(if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &how)
        }
        _ => json_answer(StatusCode::NOT_FOUND, &json!({ "error": "not found" })),
    })
}

fn json_answer(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    response(status, "application/json", body.to_string())
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
