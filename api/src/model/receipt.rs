//! What a caller is told of its job.

use serde::Serialize;
use uuid::Uuid;

/// The answer to a webhook that was accepted, and to one that was cancelled.
#[derive(Serialize)]
pub(crate) struct Receipt {
    pub job_id: Uuid,
    pub status: &'static str,
    pub message: &'static str,
}
