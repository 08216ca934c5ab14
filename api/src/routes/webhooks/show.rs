//! `GET /webhooks/{id}`: a job with its attempts and its outbox row, for whoever has the token.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use outbox::service::database::on_connection;
use sqlx::types;
use tracing::warn;

use crate::app::App;
use crate::error::ApiError;
use crate::extract::{Authorized, PathId};
use crate::model::Job;

/// The job as it is in the database.
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    _: Authorized,
    PathId(id): PathId,
) -> Result<Json<Job>, ApiError> {
    // One statement, one snapshot: a job is never shown between two of its states.
    let statement = sqlx::query_scalar!(
        r#"-- show_job
        SELECT to_jsonb(job) || jsonb_build_object(
            'attempts', coalesce((SELECT jsonb_agg(to_jsonb(tried) - 'job_id' ORDER BY tried.attempt)
                                  FROM webhook_attempts AS tried WHERE tried.job_id = job.id), '[]'),
            'outbox', (SELECT to_jsonb(outbox_row) FROM outbox AS outbox_row WHERE outbox_row.id = job.outbox_id))
            AS "job!: types::Json<Job>"
        FROM outhook.job_details AS job WHERE id = $1"#,
        id
    );
    let pool = &app.postgres()?.pool;
    let found = on_connection(pool, async |connection| statement.fetch_optional(connection).await).await;
    let job = found.map_err(|error| unanswered(&error))?.ok_or(ApiError::NotFound)?;
    Ok(Json(job.0))
}

fn unanswered(error: &sqlx::Error) -> ApiError {
    warn!(%error, "a job cannot be read");
    ApiError::Unanswered
}
