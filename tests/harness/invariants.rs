//! What must hold after every fault: the checker that operators have, `outhook check`, and what only the
//! tests can see besides, `evidence.sql`.

use std::sync::Arc;
use std::time::Duration;

use outhook_check::{ALWAYS, AT_REST, Bounds, Invariant, Violation};
use receiver::Received;
use sqlx::PgPool;
use uuid::Uuid;

use crate::Accepted;

/// What callers, receivers and the observer know.
const EVIDENCE: &str = include_str!("evidence.sql");

/// How the invariant begins that compares every recorded status with the receiver's log.
const OF_ANSWERS: &str = "I5: success stands only where the receiver answered";

/// For how long a row may be due once all is quiet.
const OVERDUE: Duration = Duration::from_secs(3);

/// What the invariants compare the database with.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// What was answered with 202.
    pub accepted: &'a [Accepted],
    /// The receiver's log, whole.
    pub received: &'a [Arc<Received>],
    /// Attempts in all of a job that does not say it itself.
    pub max_retries: u32,
}

/// All invariants, in the order in which they are checked.
pub fn invariants() -> impl Iterator<Item = Invariant> {
    [ALWAYS, AT_REST, EVIDENCE].into_iter().flat_map(outhook_check::invariants)
}

/// Checks everything and returns what does not hold. Run it when nothing is under way any more.
pub async fn check(pool: &PgPool, evidence: Evidence<'_>) -> Vec<Violation> {
    check_these(pool, evidence, invariants()).await
}

async fn check_these(
    pool: &PgPool,
    evidence: Evidence<'_>,
    invariants: impl Iterator<Item = Invariant>,
) -> Vec<Violation> {
    load(pool, evidence).await;
    let bounds = Bounds { overdue: OVERDUE, max_retries: Some(evidence.max_retries) };
    let mut connection = pool.acquire().await.expect("Postgres takes connections");
    let mut violations = Vec::new();
    for invariant in invariants {
        let checked = outhook_check::check(&mut connection, invariant, bounds).await;
        violations.extend(checked.unwrap_or_else(|error| panic!("{error}, in: {invariant:?}")));
    }
    violations
}

/// Panics with all that does not hold.
pub async fn assert_hold(pool: &PgPool, evidence: Evidence<'_>) {
    assert_none(&check(pool, evidence).await);
}

/// The same, but for what the receiver's log says of answers: there were others than its own.
pub async fn assert_hold_unheard(pool: &PgPool, evidence: Evidence<'_>) {
    let heard = invariants().filter(|it| !it.sentence.starts_with(OF_ANSWERS));
    assert_none(&check_these(pool, evidence, heard).await);
}

fn assert_none(violations: &[Violation]) {
    let text: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(violations.is_empty(), "{} invariants do not hold:\n{}", violations.len(), text.join("\n"));
}

/// Puts the evidence into the database, so that statements can join it and people can look at it later.
async fn load(pool: &PgPool, evidence: Evidence<'_>) {
    let mut transaction = pool.begin().await.expect("Postgres takes connections");
    sqlx::raw_sql("TRUNCATE harness.accepted, harness.received")
        .execute(&mut *transaction)
        .await
        .expect("the observer's tables exist");

    let job_ids: Vec<Uuid> = evidence.accepted.iter().map(|it| it.job_id).collect();
    let payloads: Vec<Option<&[u8]>> = evidence.accepted.iter().map(|it| it.payload.as_deref()).collect();
    // A request that was answered twice, by its idempotency key, is one webhook.
    sqlx::query("INSERT INTO harness.accepted SELECT * FROM unnest($1::uuid[], $2::bytea[]) ON CONFLICT DO NOTHING")
        .bind(job_ids)
        .bind(payloads)
        .execute(&mut *transaction)
        .await
        .expect("accepted webhooks are taken");

    insert_received(&mut transaction, evidence.received).await;
    transaction.commit().await.expect("the evidence is taken");
}

async fn insert_received(connection: &mut sqlx::PgConnection, received: &[Arc<Received>]) {
    let sequences: Vec<i64> = received.iter().map(|it| it.sequence.cast_signed()).collect();
    let at: Vec<time::OffsetDateTime> = received.iter().map(|it| it.at).collect();
    let job_ids: Vec<Option<Uuid>> =
        received.iter().map(|it| it.job_id.as_deref().and_then(|id| id.parse().ok())).collect();
    let attempts: Vec<Option<i32>> = received.iter().map(|it| it.attempt.map(u32::cast_signed)).collect();
    let webhook_ids: Vec<Option<&str>> = received.iter().map(|it| it.webhook_id.as_deref()).collect();
    let signatures: Vec<String> = received.iter().map(|it| it.signature.to_string()).collect();
    let statuses: Vec<Option<i32>> = received.iter().map(|it| it.status_answered().map(i32::from)).collect();
    let bodies: Vec<&[u8]> = received.iter().map(|it| &it.body[..]).collect();
    sqlx::query(
        "INSERT INTO harness.received (sequence, at, job_id, attempt, webhook_id, signature, status, body)
         SELECT * FROM unnest($1::bigint[], $2::timestamptz[], $3::uuid[], $4::integer[],
                              $5::text[], $6::text[], $7::integer[], $8::bytea[])",
    )
    .bind(sequences)
    .bind(at)
    .bind(job_ids)
    .bind(attempts)
    .bind(webhook_ids)
    .bind(signatures)
    .bind(statuses)
    .bind(bodies)
    .execute(connection)
    .await
    .expect("the receiver's log is taken");
}
