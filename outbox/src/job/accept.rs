//! Accepting jobs: all their rows, one statement, one commit.
//!
//! The rule is the SQL function `outhook.accept_jobs`, by which `outhook.enqueue` accepts a job in a caller's own transaction.

mod obstacle;

use std::collections::HashMap;

use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

pub use self::obstacle::{Obstacle, find_obstacle};
use crate::destination::Destination;
use crate::job::states::Status;
use crate::kill_point_in;
use crate::service::database::{Pool, on_connection};

/// A webhook as it was accepted, checked by whoever accepts it.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Id of the job, a UUID version 7 made by the accepting process.
    pub id: Uuid,
    /// Where to deliver.
    pub client_url: String,
    /// The URL's.
    pub destination: Destination,
    /// What to deliver, byte for byte; without U+0000.
    pub payload: String,
    /// Extra request headers.
    pub headers: serde_json::Map<String, serde_json::Value>,
    /// Not before this moment; at once when `None`.
    pub deliver_at: Option<OffsetDateTime>,
    /// Attempts in all, 1 to 100; the worker's default when `None`.
    pub max_attempts: Option<i32>,
    /// Milliseconds for an attempt, 100 to 300,000; the worker's default when `None`.
    pub timeout_ms: Option<i32>,
    /// Jobs of one key and destination are delivered one after the other, in order of acceptance; 1 to 255 bytes.
    pub ordering_key: Option<String>,
    /// The caller's key and the SHA-256 of the request that came with it.
    pub idempotency: Option<Idempotency>,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// A signing key of its own, sealed for this job ([`crate::signing::sealed`]).
    pub sealed_key: Option<Vec<u8>>,
}

/// One job a key, for as long as keys hold ([`super::keys`]); the same key with another request is a conflict.
#[derive(Clone, Debug)]
pub struct Idempotency {
    /// The caller's key, 1 to 255 bytes.
    pub key: String,
    /// The id that the request was signed with, if it was: it holds one job too, whatever key stands beside it.
    pub signed_id: Option<String>,
    /// SHA-256 of the request body.
    pub body_hash: [u8; 32],
}

/// What became of a [`NewJob`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// All its rows are committed.
    New(Uuid),
    /// The key was known, with the same request: the job that it made, and how far that is; `None` if it was deleted.
    Known(Uuid, Option<Status>),
    /// The key was known, with another request: nothing was written.
    KeyConflict,
}

/// Accepts a batch. When it returns, the rows of every new job are committed.
///
/// The answers are in the order of `jobs`. A key that stands in the batch twice makes one job.
///
/// # Errors
/// A statement failed; [`crate::service::database::Failure::of`] tells whether anything can have been written.
pub async fn accept(pool: &Pool, jobs: &[NewJob]) -> Result<Vec<Accepted>, sqlx::Error> {
    let refused = on_connection(pool, async |connection| {
        kill_point_in!("api.in_commit", insert(connection, jobs, Keys::of(jobs).as_ref())).await
    })
    .await?;
    Ok(jobs.iter().map(|job| refused.get(&job.id).cloned().unwrap_or(Accepted::New(job.id))).collect())
}

/// Inserts what is new. Returns what became of the others.
async fn insert(
    connection: &mut PgConnection,
    jobs: &[NewJob],
    keys: Option<&Keys<'_>>,
) -> Result<HashMap<Uuid, Accepted>, sqlx::Error> {
    let text = |value: fn(&NewJob) -> Option<&str>| column(jobs, value);
    let ids: Vec<Uuid> = jobs.iter().map(|job| job.id).collect();
    let headers: Vec<_> = jobs.iter().map(|job| Json(&job.headers)).collect();
    let rows = sqlx::query!(
        r#"-- accept_jobs
        SELECT refused_id AS "id!", known_id, known_status
        FROM outhook.accept_jobs($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)"#,
        &ids,
        &text(|job| Some(&job.client_url)) as _,
        &text(|job| Some(job.destination.as_str())) as _,
        &text(|job| Some(&job.payload)) as _,
        &headers as _,
        &column(jobs, |job| job.deliver_at) as _,
        &column(jobs, |job| job.max_attempts) as _,
        &column(jobs, |job| job.timeout_ms) as _,
        &text(|job| job.ordering_key.as_deref()) as _,
        &text(|job| job.traceparent.as_deref()) as _,
        &column(jobs, |job| job.sealed_key.as_deref()) as _,
        &text(|job| job.idempotency.as_ref().map(|idempotency| idempotency.key.as_str())) as _,
        keys.map(|keys| &keys.job_ids[..]) as _,
        keys.map(|keys| &keys.texts[..]) as _,
        keys.map(|keys| &keys.are_signed[..]) as _,
        keys.map(|keys| &keys.body_hashes[..]) as _,
    )
    .fetch_all(connection)
    .await?;
    let answer = |known: Option<Uuid>, status: Option<String>| match known {
        Some(id) => {
            let status = status.map(|status| Status::from_text(&status).expect("webhook_jobs_status_known"));
            Accepted::Known(id, status)
        }
        None => Accepted::KeyConflict,
    };
    Ok(rows.into_iter().map(|row| (row.id, answer(row.known_id, row.known_status))).collect())
}

/// One value of each job; none at all if no job has it, which costs neither side anything.
fn column<'a, T>(jobs: &'a [NewJob], value: impl Fn(&'a NewJob) -> Option<T>) -> Vec<Option<T>> {
    if jobs.iter().all(|job| value(job).is_none()) { Vec::new() } else { jobs.iter().map(value).collect() }
}

/// The keys and signed ids of a batch, each with its job.
#[derive(Default)]
struct Keys<'a> {
    job_ids: Vec<Uuid>,
    texts: Vec<&'a str>,
    are_signed: Vec<bool>,
    body_hashes: Vec<&'a [u8]>,
}

impl<'a> Keys<'a> {
    /// `None` if no job has any.
    fn of(jobs: &'a [NewJob]) -> Option<Self> {
        let mut keys = Self::default();
        for job in jobs {
            let Some(idempotency) = &job.idempotency else { continue };
            keys.push(job.id, &idempotency.key, false, &idempotency.body_hash);
            if let Some(signed_id) = &idempotency.signed_id {
                keys.push(job.id, signed_id, true, &idempotency.body_hash);
            }
        }
        (!keys.texts.is_empty()).then_some(keys)
    }

    fn push(&mut self, job_id: Uuid, key: &'a str, is_signed: bool, body_hash: &'a [u8]) {
        self.job_ids.push(job_id);
        self.texts.push(key);
        self.are_signed.push(is_signed);
        self.body_hashes.push(body_hash);
    }
}
