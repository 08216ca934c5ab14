//! `POST /webhooks`: reads, verifies, checks, stores, and only then says 202.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use outbox::clock;
use outbox::enqueue::{Accepted, Idempotency, NewJob};
use outbox::job::Status;
use outbox::secret::Owner;
use outbox::signing_key::SigningKey;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::App;
use crate::body;
use crate::envelope::Envelope;
use crate::error::ApiError;
use crate::receipt::Receipt;

/// 202 for a new job; 200 with the same job for an idempotency key that was used with the same body.
pub(crate) async fn accept(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<(StatusCode, Json<Receipt>), ApiError> {
    let (head, body) = request.into_parts();
    body::require_json(&head.headers)?;
    let body = body::read(&head.headers, body, &app.config.server).await?;

    let now = clock::now();
    let verified =
        app.config.accept.hmac_secret.verify(&head.headers, &body, now, app.config.accept.require_timestamp)?;
    // The signed id before the header that is not signed: with that, a replay would make another job.
    let header = idempotency_key(&head.headers)?;
    let key = verified.webhook_id.or(header);
    let mut envelope = Envelope::read(&body, &app.config.targets, now)?;
    let signing_key = envelope.signing_key.take();

    let mut job = new_job(envelope, key, &body, traceparent(&head.headers));
    job.sealed_key = signing_key.map(|key| seal(&app, job.id, &key)).transpose()?;
    let accepted = app.ingest.accept(job).await?;
    receipt(&accepted)
}

fn new_job(envelope: Envelope, key: Option<String>, body: &[u8], traceparent: Option<String>) -> NewJob {
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
        idempotency: key.map(|key| Idempotency { key, body_hash: Sha256::digest(body).into() }),
        traceparent,
        sealed_key: None,
    }
}

/// For this job only: in the row of another it cannot be opened.
fn seal(app: &App, job_id: Uuid, key: &SigningKey) -> Result<Vec<u8>, ApiError> {
    let secrets = app.config.secrets.key().ok_or(ApiError::NoSecretsKey)?;
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

/// The caller's trace context, if it is one (W3C Trace Context, level 1).
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &str, length| part.len() == length && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let [version, trace, parent, flags] = parts[..] else { return None };
    let valid = version == "00" && hex(trace, 32) && hex(parent, 16) && hex(flags, 2);
    valid.then(|| text.to_owned())
}
