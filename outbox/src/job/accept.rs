//! Accepting jobs: both rows, one statement, one commit.
//!
//! The SQL function `outhook.enqueue` does the same for one job in a caller's own transaction.

mod obstacle;

use std::collections::HashMap;

use sqlx::types::Json;
use sqlx::{Connection, PgConnection};
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

/// One job a key; the same key with another request is a conflict.
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
    /// Both rows are committed.
    New(Uuid),
    /// The key was known, with the same request: the job that it made, and how far that is.
    Known(Uuid, Status),
    /// The key was known, with another request: nothing was written.
    KeyConflict,
}

/// Accepts a batch. When it returns, both rows of every new job are committed.
///
/// The answers are in the order of `jobs`. A key that stands in the batch twice makes one job.
///
/// # Errors
/// A statement failed; [`crate::service::database::Failure::of`] tells whether anything can have been written.
pub async fn accept(pool: &Pool, jobs: &[NewJob]) -> Result<Vec<Accepted>, sqlx::Error> {
    let keyed = jobs.iter().any(|job| job.idempotency.is_some());
    let (new, known) = on_connection(pool, async |connection| {
        if keyed {
            return insert_or_find(connection, jobs).await;
        }
        let new = kill_point_in!("api.in_commit", insert(connection, jobs)).await?;
        Ok((new, KnownJobs::default()))
    })
    .await?;
    Ok(jobs.iter().map(|job| answer(job, &new, &known)).collect())
}

/// One transaction: should the look-up fail, nothing was written, and the batch may be tried again.
async fn insert_or_find(connection: &mut PgConnection, jobs: &[NewJob]) -> Result<(Vec<Uuid>, KnownJobs), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let new = insert(&mut transaction, jobs).await?;
    let known = if new.len() == jobs.len() { KnownJobs::default() } else { find_keys(&mut transaction, jobs).await? };
    kill_point_in!("api.in_commit", transaction.commit()).await?;
    Ok((new, known))
}

fn answer(job: &NewJob, new: &[Uuid], known: &KnownJobs) -> Accepted {
    if new.contains(&job.id) {
        return Accepted::New(job.id);
    }
    let found = job.idempotency.as_ref().and_then(|idempotency| Some((idempotency, known.job_of(idempotency)?)));
    match found {
        Some((idempotency, known)) if known.body_hash == idempotency.body_hash => {
            Accepted::Known(known.id, known.status)
        }
        _ => Accepted::KeyConflict,
    }
}

/// Inserts what is new and returns its ids.
async fn insert(connection: &mut PgConnection, jobs: &[NewJob]) -> Result<Vec<Uuid>, sqlx::Error> {
    // Two batches with the same keys must wait for each other in the same order.
    let mut jobs: Vec<&NewJob> = jobs.iter().collect();
    jobs.sort_by_key(|job| job.idempotency.as_ref().map(|idempotency| &idempotency.key));

    let column = |value: fn(&NewJob) -> Option<&str>| jobs.iter().map(|job| value(job)).collect::<Vec<_>>();
    let ids: Vec<Uuid> = jobs.iter().map(|job| job.id).collect();
    let client_urls = column(|job| Some(&job.client_url));
    let payloads = column(|job| Some(&job.payload));
    let headers: Vec<_> = jobs.iter().map(|job| Json(&job.headers)).collect();
    let deliver_at: Vec<_> = jobs.iter().map(|job| job.deliver_at).collect();
    let max_attempts: Vec<_> = jobs.iter().map(|job| job.max_attempts).collect();
    let keys = column(|job| job.idempotency.as_ref().map(|idempotency| idempotency.key.as_str()));
    let signed_ids = column(|job| job.idempotency.as_ref()?.signed_id.as_deref());
    let hashes: Vec<_> =
        jobs.iter().map(|job| job.idempotency.as_ref().map(|idempotency| &idempotency.body_hash[..])).collect();
    let traceparents = column(|job| job.traceparent.as_deref());
    let destinations = column(|job| Some(job.destination.as_str()));
    let ordering_keys = column(|job| job.ordering_key.as_deref());
    let timeouts: Vec<_> = jobs.iter().map(|job| job.timeout_ms).collect();
    let payload_bytes: Vec<i32> = jobs.iter().map(|job| i32::try_from(job.payload.len()).unwrap_or(i32::MAX)).collect();
    let sealed_keys: Vec<_> = jobs.iter().map(|job| job.sealed_key.as_deref()).collect();

    sqlx::query_scalar!(
        r#"-- accept_jobs
        WITH accepted AS (
            INSERT INTO webhook_jobs
                (id, outbox_id, deliver_at, max_attempts, timeout_ms, client_url, headers, idempotency_key, body_hash,
                 ordering_key, payload, sealed_key, signed_id)
            SELECT id, nextval('outbox_id_seq'), coalesce(deliver_at, now()), max_attempts, timeout_ms, client_url, headers,
                   idempotency_key, body_hash, ordering_key, payload, sealed_key, signed_id
            FROM unnest($1::uuid[], $2::text[], $3::text[], $4::jsonb[], $5::timestamptz[], $6::integer[], $7::text[],
                        $8::bytea[], $9::integer[], $10::text[], $13::bytea[], $14::text[])
                AS job (id, client_url, payload, headers, deliver_at, max_attempts, idempotency_key, body_hash,
                        timeout_ms, ordering_key, sealed_key, signed_id)
            -- A known key or signed id writes nothing. One that another transaction is writing is waited for.
            ON CONFLICT DO NOTHING
            RETURNING id, outbox_id, deliver_at, ordering_key
        )
        INSERT INTO outbox
            (id, job_id, attempt, due_at, destination, traceparent, ordering_key, payload_bytes, waits_for)
        SELECT outbox_id, id, 0, greatest(deliver_at, now()), destination, traceparent, ordering_key, payload_bytes,
               -- With a key it waits for its turn; scheduled, it takes its place when its time comes.
               CASE WHEN ordering_key IS NOT NULL AND deliver_at <= now() THEN 'order' END
        FROM accepted
        JOIN unnest($1::uuid[], $11::text[], $12::text[], $15::integer[]) AS given (id, traceparent, destination, payload_bytes)
            USING (id)
        RETURNING job_id"#,
        &ids,
        &client_urls as _,
        &payloads as _,
        &headers as _,
        &deliver_at as _,
        &max_attempts as _,
        &keys as _,
        &hashes as _,
        &timeouts as _,
        &ordering_keys as _,
        &traceparents as _,
        &destinations as _,
        &sealed_keys as _,
        &signed_ids as _,
        &payload_bytes,
    )
    .fetch_all(connection)
    .await
}

/// The jobs that hold keys and signed ids of a batch.
#[derive(Default)]
struct KnownJobs {
    by_key: HashMap<String, KnownJob>,
    by_signed_id: HashMap<String, KnownJob>,
}

struct KnownJob {
    id: Uuid,
    status: Status,
    body_hash: Vec<u8>,
}

impl KnownJobs {
    /// The one job that holds the key, the signed id or both; none if they are of different jobs.
    fn job_of(&self, idempotency: &Idempotency) -> Option<&KnownJob> {
        let by_key = self.by_key.get(&idempotency.key);
        let by_signed_id = idempotency.signed_id.as_ref().and_then(|id| self.by_signed_id.get(id));
        match (by_key, by_signed_id) {
            (Some(one), Some(other)) if one.id != other.id => None,
            (found, other) => found.or(other),
        }
    }
}

/// The jobs that hold the batch's keys and signed ids. A statement of its own: the first one's snapshot may be
/// older than the row it ran into.
async fn find_keys(connection: &mut PgConnection, jobs: &[NewJob]) -> Result<KnownJobs, sqlx::Error> {
    let keyed = || jobs.iter().filter_map(|job| job.idempotency.as_ref());
    let keys: Vec<&str> = keyed().map(|idempotency| idempotency.key.as_str()).collect();
    let signed_ids: Vec<&str> = keyed().filter_map(|idempotency| idempotency.signed_id.as_deref()).collect();
    let rows = sqlx::query!(
        r#"-- find_idempotency_keys
        SELECT idempotency_key AS "key!", false AS "signed!", id AS "id!", status AS "status!", body_hash AS "body_hash!"
        FROM webhook_jobs WHERE idempotency_key = ANY($1)
        -- Not OR: each half has an index of its own.
        UNION ALL
        SELECT signed_id, true, id, status, body_hash
        FROM webhook_jobs WHERE signed_id = ANY($2)"#,
        &keys as _,
        &signed_ids as _,
    )
    .fetch_all(connection)
    .await?;
    let mut known = KnownJobs::default();
    for row in rows {
        let status = Status::from_text(&row.status).expect("webhook_jobs_status_known");
        let job = KnownJob { id: row.id, status, body_hash: row.body_hash };
        let jobs = if row.signed { &mut known.by_signed_id } else { &mut known.by_key };
        jobs.insert(row.key, job);
    }
    Ok(known)
}
