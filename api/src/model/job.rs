//! `GET /webhooks/{id}`: a job, its attempts, and what it waits for.
//!
//! Without payload, headers and signing key, which the api has no right to read. The view `outhook.job_details` and the
//! tables have all that stands here; what they get later is shown when it is added here.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::timestamp::Timestamp;

#[derive(Serialize, Deserialize)]
pub(crate) struct Job {
    pub attempt: i32,
    pub attempts: Vec<Attempt>,
    pub claimed_by: Option<String>,
    pub client_url: String,
    pub created_at: Timestamp,
    pub deliver_at: Timestamp,
    pub error: String,
    pub id: Uuid,
    pub idempotency_key: Option<String>,
    pub lease_until: Option<Timestamp>,
    pub max_attempts: Option<i32>,
    pub ordering_key: Option<String>,
    /// Nothing once it is finished.
    pub outbox: Option<OutboxRow>,
    pub outbox_id: i64,
    pub payload_bytes: i32,
    pub retry_count: i32,
    pub status: String,
    pub timeout_ms: Option<i32>,
    pub updated_at: Timestamp,
}

/// One attempt whose outcome is recorded.
#[derive(Serialize, Deserialize)]
pub(crate) struct Attempt {
    #[serde(rename = "attempt")]
    pub number: i32,
    pub duration_ms: Option<i32>,
    pub error: String,
    pub outcome: String,
    pub response_excerpt: String,
    pub retry_at: Option<Timestamp>,
    pub started_at: Timestamp,
    pub status_code: Option<i32>,
    pub worker: String,
}

/// When the job moves next, and what for.
#[derive(Serialize, Deserialize)]
pub(crate) struct OutboxRow {
    pub attempt: i32,
    pub destination: String,
    pub due_at: Timestamp,
    pub id: i64,
    pub job_id: Uuid,
    pub message_id: Uuid,
    pub ordering_key: Option<String>,
    pub payload_bytes: i32,
    pub published_at: Option<Timestamp>,
    pub released: bool,
    pub traceparent: Option<String>,
    pub turn: bool,
    pub waits_for: Option<String>,
}
