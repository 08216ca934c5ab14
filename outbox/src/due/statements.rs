//! The SQL of what a relay asks again and again.

use tokio_postgres::{Client, Error, Statement};

/// What is asked again and again, prepared on one connection: planning it costs more than running it.
#[derive(Clone, Debug)]
pub struct Statements {
    pub(super) claim_due: Statement,
    pub(super) claim_chosen: Statement,
    pub(super) scan_due: Statement,
    pub(super) mark_published: Statement,
    pub(super) next_due: Statement,
    pub(super) give_turns: Statement,
    pub(crate) what_to_do: Statement,
}

impl Statements {
    /// Prepares them.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn prepare(client: &Client) -> Result<Self, Error> {
        Ok(Self {
            claim_due: client.prepare(CLAIM_DUE).await?,
            claim_chosen: client.prepare(CLAIM_CHOSEN).await?,
            scan_due: client.prepare(SCAN_DUE).await?,
            mark_published: client.prepare(MARK_PUBLISHED).await?,
            next_due: client.prepare(NEXT_DUE).await?,
            give_turns: client.prepare(GIVE_TURNS).await?,
            what_to_do: client.prepare(WHAT_TO_DO).await?,
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
/// is put right first ([`super::sift_published`]), and what is to wait for its turn begins to ([`crate::due::ordering::line_up`]).
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
           published_at IS NOT NULL AS was_published, ordering_key IS NOT NULL AND NOT turn AS has_no_turn,
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

const GIVE_TURNS: &str = "-- give_turns
    SELECT given, busy, lines, last_id FROM outhook.give_turns($1, $2)";

const WHAT_TO_DO: &str = "-- what_to_do
    SELECT EXISTS (SELECT FROM destinations WHERE state <> 'closed') AS sick,
           EXISTS (SELECT FROM outbox WHERE waits_for = 'destination') AS held,
           EXISTS (SELECT FROM outbox_checks WHERE id >= $1) AS checks,
           EXISTS (SELECT FROM ordering_checks WHERE id >= $2) AS turns,
           EXISTS (SELECT FROM url_pauses WHERE until < now())
           OR EXISTS (SELECT FROM destinations WHERE state = 'closed' AND rate_limit IS NULL
                      AND changed_at < now() - interval '1 hour') AS leftovers";
