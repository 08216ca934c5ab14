//! What is recorded of a job.

use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

/// An attempt as it is recorded.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Attempt {
    /// Which one, from 1.
    #[sqlx(rename = "attempt")]
    pub number: i32,
    /// When it was claimed, by the database's clock.
    pub started_at: OffsetDateTime,
    /// How long the request took.
    pub duration_ms: Option<i32>,
    /// The answer's status.
    pub status_code: Option<i32>,
    /// success, failed or unknown.
    pub outcome: String,
    /// Why it did not succeed.
    pub error: String,
    /// The beginning of the answer's body.
    pub response_excerpt: String,
    /// When the next is due.
    pub retry_at: Option<OffsetDateTime>,
}

/// A job's attempts, in order.
pub async fn attempts(pool: &PgPool, job_id: Uuid) -> Vec<Attempt> {
    sqlx::query_as("SELECT * FROM webhook_attempts WHERE job_id = $1 ORDER BY attempt")
        .bind(job_id)
        .fetch_all(pool)
        .await
        .expect("attempts can be read")
}

/// A job's status and its error, as people see them in psql.
pub async fn status_and_error(pool: &PgPool, job_id: Uuid) -> (String, String) {
    sqlx::query_as("SELECT status, error FROM webhook_jobs WHERE id = $1")
        .bind(job_id)
        .fetch_one(pool)
        .await
        .expect("the job is there")
}

/// Stores a job the way an application does in its own transaction, `outhook.enqueue`.
pub async fn enqueue(pool: &PgPool, client_url: &str, payload: &str) -> Result<Uuid, sqlx::Error> {
    let statement = "SELECT outhook.enqueue($1, $2, max_attempts => 1)";
    sqlx::query_scalar(statement).bind(client_url).bind(payload).fetch_one(pool).await
}

/// Stores a job past every check but the tables' own.
pub async fn insert(pool: &PgPool, client_url: &str) -> Result<Uuid, sqlx::Error> {
    sqlx::query_scalar(
        "WITH job AS (
            INSERT INTO webhook_jobs (id, outbox_id, max_attempts, client_url, payload)
            SELECT outhook.uuid_v7(), nextval('outbox_id_seq'), 1, $1, '{}'
            RETURNING id, outbox_id
        )
        INSERT INTO outbox (id, job_id, attempt, due_at) SELECT outbox_id, id, 0, now() FROM job
        RETURNING job_id",
    )
    .bind(client_url)
    .fetch_one(pool)
    .await
}
