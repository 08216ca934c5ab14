//! What the relay does with the outbox: finds what is due, marks what was published.
//!
//! The rows stay locked from [`claim_due`] or [`claim_chosen`] to the commit of the same transaction. A relay that dies
//! in between frees them at once, and the next one publishes the same message ids again. What somebody else holds is
//! stepped over, and found again because it stays due.

mod count;
mod put_right;

use std::time::{Duration, SystemTime};

use tokio_postgres::{Client, Error, GenericClient, Row, Statement};
use uuid::Uuid;

pub use self::count::{Counted, count};
pub use self::put_right::put_right;
use crate::database::is_of_one_row;
use crate::destination::tend::WHAT_TO_TEND;
use crate::message::{LARGE_PAYLOAD, Message};
use crate::ordering::GIVE_TURNS;

/// An outbox row that is due.
#[derive(Clone, Debug)]
pub struct DueRow {
    /// Its AMQP `message_id`, the same however often it is published.
    pub message_id: Uuid,
    /// Whether it was recorded as published before.
    pub rings_again: bool,
    /// Whether it has an ordering key and must first be given its turn: see [`crate::ordering`].
    pub has_no_turn: bool,
    /// Whether its destination is sick, and it was not set free.
    pub is_held_back: bool,
    /// Since when it is due, by the database's clock.
    pub due_at: SystemTime,
    /// The message to publish; holds the row's id.
    pub message: Message,
}

impl DueRow {
    fn from_row(row: &Row) -> Self {
        // What cannot be read is not known: one such row must not stop the others.
        let traceparent = row.try_get("traceparent").unwrap_or_default();
        let destination = row.try_get("destination").unwrap_or_default();
        let mut message = Message::new(row.get("job_id"), row.get("attempt"), row.get("id"), traceparent)
            .to(destination, row.get("released"));
        message.installation = row.get("installation");
        message.limited = row.get("limited");
        let payload_bytes: i32 = row.get("payload_bytes");
        message.payload_bytes = Some(payload_bytes.unsigned_abs()).filter(|it| *it >= LARGE_PAYLOAD).unwrap_or(0);
        Self {
            message_id: row.get("message_id"),
            rings_again: row.get("rings_again"),
            has_no_turn: row.get("has_no_turn"),
            is_held_back: row.get("is_held_back"),
            due_at: row.get("due_at"),
            message,
        }
    }

    /// The row's id in `outbox`.
    #[must_use]
    pub const fn id(&self) -> i64 {
        self.message.outbox_id
    }
}

/// What is asked again and again, prepared on one connection: planning it costs more than running it.
#[derive(Clone, Debug)]
pub struct Statements {
    pub(crate) give_turns: Statement,
    pub(crate) what_to_tend: Statement,
    claim_due: Statement,
    claim_chosen: Statement,
    scan_due: Statement,
    mark_published: Statement,
    next_due: Statement,
}

impl Statements {
    /// Prepares them.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn prepare(client: &Client) -> Result<Self, Error> {
        Ok(Self {
            give_turns: client.prepare(GIVE_TURNS).await?,
            what_to_tend: client.prepare(WHAT_TO_TEND).await?,
            claim_due: client.prepare(CLAIM_DUE).await?,
            claim_chosen: client.prepare(CLAIM_CHOSEN).await?,
            scan_due: client.prepare(SCAN_DUE).await?,
            mark_published: client.prepare(MARK_PUBLISHED).await?,
            next_due: client.prepare(NEXT_DUE).await?,
        })
    }
}

/// A destination's state if it is sick. Looked up by its name for each row: a list of all that are sick would be made
/// anew by each statement, however many there are. While there are none, the rows pay nothing for it.
macro_rules! is_sick {
    () => {
        "CASE WHEN EXISTS (SELECT FROM destinations WHERE state <> 'closed') THEN
             (SELECT state FROM destinations
              WHERE destinations.destination = outbox.destination AND state <> 'closed') IS NOT NULL
         ELSE false END"
    };
}

/// Rows of sick destinations are left to [`crate::destination`], unless they were set free there. But what is due again
/// is put right first ([`put_right`]), and what is to wait for its turn begins to ([`crate::ordering::line_up`]).
macro_rules! publishable {
    () => {
        concat!(
            "(released OR published_at IS NOT NULL OR ordering_key IS NOT NULL AND NOT turn OR NOT ",
            is_sick!(),
            ")"
        )
    };
}

/// What a [`DueRow`] is made of.
macro_rules! due_row {
    () => {
        concat!(
            "id, due_at, job_id, attempt, message_id, traceparent, destination, released, payload_bytes,
           (SELECT id FROM installation) AS installation,
           published_at IS NOT NULL AS rings_again, ordering_key IS NOT NULL AND NOT turn AS has_no_turn,
           CASE WHEN EXISTS (SELECT FROM destinations WHERE rate_limit IS NOT NULL) THEN
               (SELECT rate_limit FROM destinations WHERE destinations.destination = outbox.destination) IS NOT NULL
           ELSE false END AS limited,
           NOT released AND ",
            is_sick!(),
            " AS is_held_back"
        )
    };
}

// By due time, never by "id > last seen": ids are given out before they commit, in another order.
const CLAIM_DUE: &str = concat!(
    "-- claim_due
    SELECT ",
    due_row!(),
    "
    FROM outbox
    WHERE waits_for IS NULL AND due_at <= now() AND ",
    publishable!(),
    " AND due_at >= coalesce($2::timestamptz, '-infinity')
    ORDER BY due_at, id
    LIMIT $1
    FOR UPDATE SKIP LOCKED"
);

// By id: written so that the index of what is due does not fit, which on a small table looks as good and is read whole.
const CLAIM_CHOSEN: &str = concat!(
    "-- claim_chosen
    SELECT ",
    due_row!(),
    "
    FROM outbox
    WHERE id = ANY($1::bigint[]) AND coalesce(waits_for, '') = '' AND due_at + interval '0' <= now() AND ",
    publishable!(),
    "
    FOR UPDATE SKIP LOCKED"
);

const SCAN_DUE: &str = concat!(
    "-- scan_due
    SELECT id, due_at, destination FROM outbox
    WHERE waits_for IS NULL AND due_at <= now() AND ",
    publishable!(),
    " AND (due_at, id) > (coalesce($2::timestamptz, '-infinity'), $3::bigint)
    ORDER BY due_at, id
    LIMIT $1"
);

const MARK_PUBLISHED: &str = "-- mark_published
    UPDATE outbox
    SET published_at = statement_timestamp(), due_at = statement_timestamp() + make_interval(secs => $2)
    WHERE id = ANY($1)";

// No further than the longest sleep: the entries of rows that were published and are gone since lie ahead as well, and
// cannot be cleaned away while somebody's transaction is open.
const NEXT_DUE: &str = "-- next_due
    SELECT extract(epoch FROM (
               SELECT due_at FROM outbox
               WHERE waits_for IS NULL AND due_at > now() AND due_at <= now() + interval '1 second'
               ORDER BY due_at LIMIT 1) - now())::float8 AS seconds,
           EXISTS (SELECT FROM ordering_checks WHERE id >= $1) AS turns_to_give";

/// Locks up to `limit` rows that are due and that nobody holds, those longest due first; with `since`, only rows that
/// became due then or later.
///
/// # Errors
/// The database cannot be asked.
pub async fn claim_due(
    transaction: &impl GenericClient,
    statements: &Statements,
    limit: i64,
    since: Option<SystemTime>,
) -> Result<Vec<DueRow>, Error> {
    let rows = transaction.query(&statements.claim_due, &[&limit, &since]).await?;
    Ok(rows.iter().map(DueRow::from_row).collect())
}

/// Locks those of the rows that are still due and that nobody holds.
///
/// # Errors
/// The database cannot be asked.
pub async fn claim_chosen(
    transaction: &impl GenericClient,
    statements: &Statements,
    ids: &[i64],
) -> Result<Vec<DueRow>, Error> {
    let rows = transaction.query(&statements.claim_chosen, &[&ids]).await?;
    Ok(rows.iter().map(DueRow::from_row).collect())
}

/// Where a scan of what is due has come to: by due time, and by id among rows of the same moment.
pub type Position = (SystemTime, i64);

/// Reads up to `limit` rows that are due after a position, without locking them: where each stands, and its destination.
///
/// # Errors
/// The database cannot be asked.
pub async fn scan_due(
    client: &impl GenericClient,
    statements: &Statements,
    limit: i64,
    after: Option<Position>,
) -> Result<Vec<(Position, String)>, Error> {
    let (due_at, id) = after.unzip();
    let rows = client.query(&statements.scan_due, &[&limit, &due_at, &id.unwrap_or(i64::MIN)]).await?;
    Ok(rows
        .iter()
        .map(|row| ((row.get("due_at"), row.get("id")), row.try_get("destination").unwrap_or_default()))
        .collect())
}

/// For how many seconds something is due that has been since `due_at`, by the database's clock.
///
/// # Errors
/// The database cannot be asked.
pub async fn age(client: &impl GenericClient, due_at: SystemTime) -> Result<f64, Error> {
    let row = client.query_one("SELECT extract(epoch FROM now() - $1::timestamptz)::float8", &[&due_at]).await?;
    Ok(row.get(0))
}

/// Records that the broker confirmed these rows; should their messages get lost, they are due again after
/// `republish_after`.
///
/// # Errors
/// The database cannot be asked.
pub async fn mark_published(
    transaction: &impl GenericClient,
    statements: &Statements,
    ids: &[i64],
    republish_after: Duration,
) -> Result<(), Error> {
    let marked = transaction.execute(&statements.mark_published, &[&ids, &republish_after.as_secs_f64()]).await?;
    debug_assert_eq!(marked, ids.len() as u64, "the rows are locked since claim_due");
    Ok(())
}

/// Leaves rows that were not confirmed for later.
///
/// # Errors
/// The database cannot be asked.
pub async fn push_back(transaction: &impl GenericClient, ids: &[i64], delay: Duration) -> Result<(), Error> {
    transaction
        .execute(
            "-- push_back
            UPDATE outbox SET due_at = statement_timestamp() + make_interval(secs => $2) WHERE id = ANY($1)",
            &[&ids, &delay.as_secs_f64()],
        )
        .await?;
    Ok(())
}

/// What comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Next {
    /// How long until the next row becomes due, if that is within a second.
    pub due_in: Option<Duration>,
    /// Whether turns of ordering keys are to be given.
    pub turns_to_give: bool,
}

/// Says what comes next. Rows that are due already do not count: they are held by somebody, or were just looked at.
/// Lines of `ordering_checks` count from `from_id` on.
///
/// # Errors
/// The database cannot be asked.
pub async fn next_due(client: &impl GenericClient, statements: &Statements, from_id: i64) -> Result<Next, Error> {
    let row = client.query_one(&statements.next_due, &[&from_id]).await?;
    let seconds: Option<f64> = row.get("seconds");
    let due_in = seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default());
    Ok(Next { due_in, turns_to_give: row.get("turns_to_give") })
}

/// What a look at the rows that wait for somebody's lock came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Rows that are due now.
    pub due: i32,
    /// Rows that are still held.
    pub busy: i32,
    /// Where to go on.
    pub last_id: i64,
}

/// Makes rows due again that nobody holds any more, of up to `limit` lines of `outbox_checks` from `from_id` on. Of
/// fewer, if Postgres cannot read the job of one.
///
/// # Errors
/// The database cannot be asked.
pub async fn make_due_again(client: &impl GenericClient, from_id: i64, mut limit: i32) -> Result<Checked, Error> {
    let statement = "-- make_due_again
        SELECT due, busy, last_id FROM outhook.make_due_again($1, $2)";
    let row = loop {
        match client.query_one(statement, &[&from_id, &limit]).await {
            // That one alone is stepped over.
            Err(error) if limit > 1 && is_of_one_row(&error) => limit /= 2,
            row => break row?,
        }
    };
    Ok(Checked { due: row.get("due"), busy: row.get("busy"), last_id: row.get("last_id") })
}

/// Goes through up to `limit` rows that are due within `horizon`, after a position, and makes those due at once that were
/// published, because the broker lost their messages. What somebody holds is put on the list of those to look at again:
/// also what is due, since another relay may have published it a moment ago and is about to record that. Returns how
/// many rows that were, and the position to go on from; `None` when there are no more.
///
/// # Errors
/// The database cannot be asked.
pub async fn rewind(
    client: &impl GenericClient,
    limit: i64,
    horizon: Duration,
    after: Option<Position>,
) -> Result<(u64, Option<Position>), Error> {
    let (due_at, id) = after.unzip();
    let row = client
        .query_one(
            "-- rewind
            WITH page AS MATERIALIZED (
                SELECT id, due_at, attempt, published_at IS NOT NULL OR due_at <= now() AS may_be_lost FROM outbox
                WHERE waits_for IS NULL AND (due_at, id) > (coalesce($2::timestamptz, '-infinity'), $3::bigint)
                  AND due_at <= now() + make_interval(secs => $4)
                ORDER BY due_at, id
                LIMIT $1
            ), free AS MATERIALIZED (
                SELECT id, published_at, due_at FROM outbox
                WHERE id = ANY(ARRAY(SELECT id FROM page WHERE may_be_lost))
                FOR UPDATE SKIP LOCKED
            ), moved AS (
                UPDATE outbox SET due_at = now()
                WHERE id = ANY(ARRAY(SELECT id FROM free WHERE published_at IS NOT NULL AND due_at > now()))
                RETURNING id
            ), held AS (
                INSERT INTO outbox_checks (outbox_id, attempt)
                SELECT id, attempt FROM page WHERE may_be_lost AND id NOT IN (SELECT id FROM free)
            )
            SELECT (SELECT count(*) FROM moved) AS moved, last.id, last.due_at
            FROM (SELECT) AS one LEFT JOIN (SELECT id, due_at FROM page ORDER BY due_at DESC, id DESC LIMIT 1) AS last ON true",
            &[&limit, &due_at, &id.unwrap_or(i64::MIN), &horizon.as_secs_f64()],
        )
        .await?;
    let last = row.get::<_, Option<SystemTime>>("due_at").zip(row.get::<_, Option<i64>>("id"));
    Ok((row.get::<_, i64>("moved").cast_unsigned(), last))
}
