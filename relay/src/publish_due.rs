//! One turn of a lane: claim → publish → confirm → mark.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use outbox::database::DatabaseError;
use outbox::destination::LOOK_AGAIN;
use outbox::due::{self, DueRow, Statements};
use outbox::ordering;
use outbox::{kill_point, kill_point_in};
use tokio_postgres::{Client, GenericClient};
use tracing::{debug, warn};

use crate::config::PublishConfig;
use crate::publisher::{Answer, Publisher};

/// Wait before a row that the broker refused, or did not answer, is published again. The lane's own
/// backoff comes on top: after a failure it reconnects first.
const REFUSED_DELAY: Duration = Duration::from_millis(500);

/// Wait before a row is looked at again whose ordering key somebody else has locked for a moment.
const BUSY_DELAY: Duration = Duration::from_millis(50);

/// A lane's connection to Postgres.
pub(crate) struct Database {
    pub client: Client,
    pub statements: Statements,
}

/// What a turn did.
pub(crate) struct Turn {
    /// Rows that were claimed; as many as asked for means that there may be more.
    pub claimed: usize,
    /// Since when the last of them was due.
    pub last: Option<SystemTime>,
    /// Whether the broker took none of what was published.
    pub all_refused: bool,
}

/// Publishes up to `limit` rows that are due, `since` then if it says so. A crash at any point frees the rows as
/// they were.
pub(crate) async fn publish_due(
    Database { client, statements }: &mut Database,
    publisher: &mut Publisher,
    limit: u32,
    since: Option<SystemTime>,
    config: &PublishConfig,
) -> Result<Turn, DatabaseError> {
    let transaction = client.transaction().await?;
    let claimed = due::claim_due(&transaction, statements, limit.into(), since).await?;
    let Some(last) = claimed.last().map(|row| row.due_at) else {
        return Ok(Turn { claimed: 0, last: None, all_refused: false });
    };
    kill_point!("relay.after_claim");
    let turn_size = claimed.len();
    let rows = due::put_right(&transaction, claimed).await?;
    let rows = keep_order(&transaction, rows).await?;
    let answers = publisher.publish(&rows).await;

    kill_point!("relay.before_mark");
    let (confirmed, others) = split(&rows, &answers);
    if !confirmed.is_empty() {
        due::mark_published(&transaction, statements, &confirmed, config.republish_interval()).await?;
    }
    if !others.is_empty() {
        due::push_back(&transaction, &others, REFUSED_DELAY).await?;
    }
    kill_point!("relay.before_commit");
    kill_point_in!("relay.in_commit", transaction.commit()).await?;
    kill_point!("relay.after_commit");

    count(&rows, &answers);
    if !others.is_empty() {
        warn!(confirmed = confirmed.len(), others = others.len(), "RabbitMQ did not confirm all; the others stay due");
    }
    debug!(claimed = turn_size, confirmed = confirmed.len(), others = others.len(), "published");
    let all_refused = confirmed.is_empty() && !others.is_empty();
    Ok(Turn { claimed: turn_size, last: Some(last), all_refused })
}

/// Leaves rows whose turn in their ordering key has not come; returns the others.
async fn keep_order(transaction: &impl GenericClient, rows: Vec<DueRow>) -> Result<Vec<DueRow>, DatabaseError> {
    let turns = ordering::take_turns(transaction, &rows).await?;
    if !turns.waiting.is_empty() {
        ordering::wait_for_turn(transaction, &turns.waiting, LOOK_AGAIN).await?;
        metrics::counter!("outhook_relay_waiting_for_turn_total").increment(turns.waiting.len() as u64);
    }
    if !turns.busy.is_empty() {
        due::push_back(transaction, &turns.busy, BUSY_DELAY).await?;
    }
    let left: HashSet<i64> = turns.waiting.into_iter().chain(turns.busy).collect();
    Ok(rows.into_iter().filter(|row| !left.contains(&row.id())).collect())
}

/// The ids of the confirmed rows, and those of the others.
fn split(rows: &[DueRow], answers: &[Answer]) -> (Vec<i64>, Vec<i64>) {
    let (mut confirmed, mut others) = (Vec::new(), Vec::new());
    for (row, answer) in rows.iter().zip(answers) {
        if *answer == Answer::Confirmed { confirmed.push(row.id()) } else { others.push(row.id()) }
    }
    (confirmed, others)
}

fn count(rows: &[DueRow], answers: &[Answer]) {
    for (row, answer) in rows.iter().zip(answers) {
        match answer {
            Answer::Confirmed if row.rings_again => metrics::counter!("outhook_relay_republished_total").increment(1),
            Answer::Confirmed => metrics::counter!("outhook_relay_published_total").increment(1),
            Answer::Refused => metrics::counter!("outhook_relay_refused_total").increment(1),
            Answer::Unknown => metrics::counter!("outhook_relay_unconfirmed_total").increment(1),
        }
    }
    metrics::histogram!("outhook_relay_batch_size").record(u32::try_from(rows.len()).unwrap_or(u32::MAX));
}
