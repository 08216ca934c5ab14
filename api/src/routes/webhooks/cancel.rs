//! `DELETE /webhooks/{id}`: withdraws a job that is not being delivered, for whoever has the token.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use outbox::job::cancel::{Cancellation, cancel as cancel_job};
use outbox::job::states::Status;
use tracing::warn;

use crate::app::App;
use crate::error::ApiError;
use crate::extract::{Authorized, PathId};
use crate::model::Receipt;

/// 200 also for a job that was cancelled before: a caller whose answer was lost asks again.
pub(crate) async fn cancel(
    State(app): State<Arc<App>>,
    _: Authorized,
    PathId(job_id): PathId,
) -> Result<Json<Receipt>, ApiError> {
    match cancel_job(&app.postgres()?.changes, job_id).await {
        Ok(Cancellation::Cancelled) => {
            let message = "job is cancelled and will not be delivered";
            Ok(Json(Receipt { job_id, status: Status::Cancelled.as_str(), message }))
        }
        Ok(Cancellation::TooLate) => Err(ApiError::TooLateToCancel),
        Ok(Cancellation::UnknownJob) => Err(ApiError::NotFound),
        Err(error) => {
            warn!(%error, %job_id, "a job cannot be cancelled");
            Err(ApiError::Unanswered)
        }
    }
}
