//! `POST /webhooks`: stores what was read, verified and checked, and only then says 202.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use outbox::job::accept::{Accepted, Idempotency, NewJob};
use outbox::job::states::Status;
use outbox::signing::key::SigningKey;
use outbox::signing::sealed::Owner;
use traces::Span;
use uuid::Uuid;

use super::checked_webhook::CheckedWebhook;
use super::idempotency::idempotency;
use super::trace_context::trace_context;
use crate::app::App;
use crate::config::Config;
use crate::error::ApiError;
use crate::extract::SignedRequest;
use crate::model::Receipt;

/// 202 for a new job; 200 with the same job for an idempotency key that was used with the same body.
pub(crate) async fn accept(
    State(app): State<Arc<App>>,
    request: SignedRequest,
) -> Result<(StatusCode, Json<Receipt>), ApiError> {
    let SignedRequest { headers, body, webhook_id, verified_at, began } = request;
    let config = app.config();
    let idempotency = idempotency(webhook_id, &headers, body.bytes())?;
    let mut webhook = CheckedWebhook::check(&body.parse()?, &config.targets, verified_at)?;
    let signing_key = webhook.signing_key.take();

    let caller = trace_context(&headers, &mut webhook.headers);
    let mut job = new_job(webhook, idempotency, caller);
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

fn new_job(webhook: CheckedWebhook, idempotency: Option<Idempotency>, traceparent: Option<String>) -> NewJob {
    NewJob {
        id: Uuid::now_v7(),
        client_url: webhook.client_url,
        destination: webhook.destination,
        payload: webhook.payload,
        headers: webhook.headers,
        deliver_at: webhook.deliver_at,
        max_attempts: webhook.max_attempts,
        timeout_ms: webhook.timeout_ms,
        ordering_key: webhook.ordering_key,
        idempotency,
        traceparent,
        sealed_key: None,
    }
}

/// For this job only: in the row of another it cannot be opened.
fn seal(config: &Config, job_id: Uuid, key: &SigningKey) -> Result<Vec<u8>, ApiError> {
    let secrets = config.secrets.key().ok_or(ApiError::NoSecretsKey)?;
    Ok(key.seal(secrets, Owner::Job(job_id)))
}

fn receipt(accepted: &Accepted) -> Result<(StatusCode, Json<Receipt>), ApiError> {
    let (code, job_id, status, message) = match *accepted {
        Accepted::New(id) => {
            (StatusCode::ACCEPTED, id, Some(Status::Pending), "job accepted and queued for processing")
        }
        Accepted::Known(id, status) => {
            (StatusCode::OK, id, status, "job was accepted before with this idempotency key")
        }
        Accepted::KeyConflict => return Err(ApiError::IdempotencyConflict),
    };
    Ok((code, Json(Receipt { job_id, status: status.map_or("deleted", Status::as_str), message })))
}
