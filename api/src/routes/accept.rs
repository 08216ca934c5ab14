//! `POST /webhooks`: reads, verifies, checks, stores, and only then says 202.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use outbox::job::accept::{Accepted, Idempotency, NewJob};
use outbox::job::states::Status;
use outbox::service::clock;
use outbox::signing::key::SigningKey;
use outbox::signing::sealed::Owner;
use outbox::target::headers;
use outbox::trace_context::{MAX_TRACESTATE_BYTES, TraceParent};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use traces::Span;
use uuid::Uuid;

use crate::App;
use crate::Config;
use crate::body;
use crate::connections::Connection;
use crate::envelope::Envelope;
use crate::error::ApiError;
use crate::receipt::Receipt;

const TRACESTATE: &str = "tracestate";

/// 202 for a new job; 200 with the same job for an idempotency key that was used with the same body.
pub(crate) async fn accept(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<(StatusCode, Json<Receipt>), ApiError> {
    let began = traces::now();
    let (head, body) = request.into_parts();
    body::require_json(&head.headers)?;
    let config = app.config();
    let body = body::read(&head, body, &config.server).await?;
    let _under_way = body::under_way(&body);

    let now = clock::now();
    let verified = config.accept.hmac_secret.verify(&head.headers, &body, now, config.accept.require_timestamp)?;
    Connection::of(&head).verified()?;
    let idempotency = idempotency(verified.webhook_id, idempotency_key(&head.headers)?, &body);
    let mut envelope = Envelope::read(&body, &config.targets, now)?;
    let signing_key = envelope.signing_key.take();

    let caller = trace_context(&head.headers, &mut envelope.headers);
    let mut job = new_job(envelope, idempotency, caller);
    job.sealed_key = signing_key.map(|key| seal(&config, job.id, &key)).transpose()?;
    // From here on, so that what strangers send makes no traces.
    let span = began.and_then(|began| traces::accept(job.id, job.traceparent.as_deref(), began));
    job.traceparent = span.as_ref().map(Span::traceparent).or(job.traceparent);
    let answer = store(&app, job).await;
    match (span, &answer) {
        (Some(span), Ok((status, Json(receipt)))) => span.accepted(receipt.job_id, status.as_u16()),
        (Some(span), Err(error)) => span.answered(error.status().as_u16()),
        (None, _) => {}
    }
    answer
}

async fn store(app: &App, job: NewJob) -> Result<(StatusCode, Json<Receipt>), ApiError> {
    let accepted = app.postgres()?.ingest.accept(job).await?;
    receipt(&accepted)
}

fn new_job(envelope: Envelope, idempotency: Option<Idempotency>, traceparent: Option<String>) -> NewJob {
    NewJob {
        id: Uuid::now_v7(),
        client_url: envelope.client_url,
        destination: envelope.destination,
        payload: envelope.payload,
        headers: envelope.headers,
        deliver_at: envelope.deliver_at,
        max_attempts: envelope.max_attempts,
        timeout_ms: envelope.timeout_ms,
        ordering_key: envelope.ordering_key,
        idempotency,
        traceparent,
        sealed_key: None,
    }
}

/// Both count: the caller's key finds its job under another signed id, and the signed id finds it whatever stands in
/// the header, which is not signed and so anything in a replay.
fn idempotency(signed_id: Option<String>, header: Option<String>, body: &[u8]) -> Option<Idempotency> {
    let key = header.or_else(|| signed_id.clone())?;
    Some(Idempotency { key, signed_id, body_hash: Sha256::digest(body).into() })
}

/// For this job only: in the row of another it cannot be opened.
fn seal(config: &Config, job_id: Uuid, key: &SigningKey) -> Result<Vec<u8>, ApiError> {
    let secrets = config.secrets.key().ok_or(ApiError::NoSecretsKey)?;
    Ok(key.seal(secrets, Owner::Job(job_id)))
}

fn receipt(accepted: &Accepted) -> Result<(StatusCode, Json<Receipt>), ApiError> {
    let (code, job_id, status, message) = match *accepted {
        Accepted::New(id) => (StatusCode::ACCEPTED, id, Status::Pending, "job accepted and queued for processing"),
        Accepted::Known(id, status) => {
            (StatusCode::OK, id, status, "job was accepted before with this idempotency key")
        }
        Accepted::KeyConflict => return Err(ApiError::IdempotencyConflict),
    };
    Ok((code, Json(Receipt { job_id, status: status.as_str(), message })))
}

/// One key of 1 to 255 visible ASCII characters.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let key = value.to_str().unwrap_or_default();
    if values.next().is_some() || !(1..=255).contains(&key.len()) {
        let what = "Idempotency-Key must stand there once, with 1 to 255 visible characters";
        return Err(ApiError::InvalidField(what.to_owned()));
    }
    Ok(Some(key.to_owned()))
}

/// The caller's trace context, if it is one. Its `tracestate` goes along as a header of the job's, unless the job has one.
fn trace_context(headers: &HeaderMap, job: &mut Map<String, Value>) -> Option<String> {
    let traceparent = headers.get("traceparent")?.to_str().ok()?;
    TraceParent::parse(traceparent)?;
    let is_said = |name: &str| job.keys().any(|key| key.eq_ignore_ascii_case(name));
    if !is_said("traceparent") && !is_said(TRACESTATE) {
        let values: Option<Vec<&str>> = headers.get_all(TRACESTATE).iter().map(|value| value.to_str().ok()).collect();
        let state = values.unwrap_or_default().join(",");
        if (1..=MAX_TRACESTATE_BYTES).contains(&state.len()) {
            job.insert(TRACESTATE.to_owned(), state.into());
            // The job's own headers may have left no room for it.
            if headers::check(job).is_err() {
                job.remove(TRACESTATE);
            }
        }
    }
    Some(traceparent.to_owned())
}
