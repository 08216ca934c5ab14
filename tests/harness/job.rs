//! Jobs as the api has checked them, for tests that accept them without it.

use outbox::job::accept::{Idempotency, NewJob};
use uuid::Uuid;

/// A job for the root of a destination, with nothing that a caller may leave out.
#[must_use]
pub fn new_job(destination: &str) -> NewJob {
    NewJob {
        id: Uuid::now_v7(),
        client_url: format!("{destination}/"),
        destination: destination.to_owned().into(),
        payload: "{}".to_owned(),
        headers: serde_json::Map::new(),
        deliver_at: None,
        max_attempts: None,
        timeout_ms: None,
        ordering_key: None,
        idempotency: None,
        traceparent: None,
        sealed_key: None,
    }
}

/// An idempotency key, perhaps with the id that the request was signed with; all of one and the same request.
#[must_use]
pub fn idempotency(key: &str, signed_id: Option<&str>) -> Idempotency {
    Idempotency { key: key.to_owned(), signed_id: signed_id.map(str::to_owned), body_hash: [0; 32] }
}
