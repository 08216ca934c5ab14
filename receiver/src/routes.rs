//! The endpoint's routes: every POST is a delivery; three GETs show what came.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, RawQuery, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json};

use crate::shared::Shared;
use crate::verify::verify;
use crate::{Answer, Behaviour, Received};

/// Larger deliveries are refused with 413. Outhook's own limit is lower.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;

/// Mark on a response: drop the connection instead of sending it.
#[derive(Clone, Copy)]
pub(crate) struct ResetConnection;

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/health", get(health).post(receive))
        .route("/received", get(received).post(receive))
        .route("/stats", get(stats).post(receive))
        .fallback(any(receive))
        .layer(DefaultBodyLimit::disable())
        .with_state(shared)
}

async fn health() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

async fn stats(State(shared): State<Arc<Shared>>) -> Response {
    Json(shared.kept.counts()).into_response()
}

/// What is kept, oldest first. `last=n` shows the newest n only, `job_id=…` those of one job.
async fn received(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Json<Value> {
    let mut last = usize::MAX;
    let mut job_id = None;
    for (key, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        match key.as_ref() {
            "last" => last = value.parse().unwrap_or(usize::MAX),
            "job_id" => job_id = Some(value.into_owned()),
            _ => {}
        }
    }
    let requests: Vec<_> =
        shared.kept.all().into_iter().filter(|request| job_id.is_none() || request.job_id == job_id).collect();
    let from = requests.len().saturating_sub(last);
    Json(requests[from..].iter().map(|request| request.to_json()).collect())
}

/// One delivery: read, verify, keep, decide, answer.
async fn receive(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    if request.method() != axum::http::Method::POST {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = Limited::new(body, MAX_BODY_BYTES).collect().await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let body: Bytes = body.to_bytes();
    let behaviour = match Behaviour::parse(parts.uri.query().unwrap_or_default()) {
        Ok(behaviour) => behaviour,
        Err(sentence) => return (StatusCode::BAD_REQUEST, sentence).into_response(),
    };

    let signature = verify(shared.verifier.as_ref(), &parts.headers, &body);
    let request = shared.kept.keep(|sequence| Received::new(sequence, parts, body, signature));
    let answer = decide(&shared, &behaviour, &request);
    if let Some(observer) = &shared.observer {
        observer(&request, &answer);
    }
    respond(&shared, &behaviour, &request, answer).await
}

fn decide(shared: &Shared, behaviour: &Behaviour, request: &Received) -> Answer {
    // Counting costs memory per webhook, so it is done only where the answer depends on it.
    let earlier = match (behaviour.fail_times, request.identity()) {
        (Some(_), Some(identity)) => shared.kept.count_earlier(identity),
        _ => 0,
    };
    behaviour.answer(earlier)
}

async fn respond(shared: &Shared, behaviour: &Behaviour, request: &Received, answer: Answer) -> Response {
    if !behaviour.delay.is_zero() {
        tokio::time::sleep(behaviour.delay).await;
    }
    shared.kept.note(request, &answer);
    match answer {
        Answer::Hang => std::future::pending().await,
        Answer::Reset => {
            let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
            response.extensions_mut().insert(ResetConnection);
            response
        }
        Answer::Status(status) => response(behaviour, status),
    }
}

fn response(behaviour: &Behaviour, status: u16) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, "{\"received\":true}\n").into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in [(header::RETRY_AFTER, &behaviour.retry_after), (header::LOCATION, &behaviour.location)] {
        // A success that says "retry" would only confuse whoever reads the log.
        if !status.is_success()
            && let Some(value) = value
            && let Ok(value) = HeaderValue::from_str(value)
        {
            headers.insert(name, value);
        }
    }
    response
}
