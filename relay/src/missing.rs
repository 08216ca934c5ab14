//! Publishes again what RabbitMQ has lost without a word, and says so.

use std::time::Duration;

use outbox::due::Position;
use outbox::due::missing::{LOST_AFTER, find_unclaimed, make_due};
use outbox::service::database::STATEMENT_TIMEOUT;
use tokio::time::Instant;
use tokio_postgres::{Client, Error};
use tracing::warn;

use crate::queue_length::QueueLength;

/// Rows gone through in one look, and so the most that are published again in a second.
const PAGE: i64 = 2_000;

/// Between two looks.
const SPACING: Duration = Duration::from_secs(1);

/// A look costs no more than this part of the time.
const COST: u32 = 20;

/// After a round that found something, the next one waits until what it published again might be missing once more, and
/// this much longer, twice as long each time: what is lost again and again, as by a policy while no worker runs, is not
/// published again and again.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

pub(crate) struct Missing {
    queue: QueueLength,
    /// Where the round has come to.
    position: Option<Position>,
    next: Instant,
    /// Rows that this round made due.
    found: u64,
    wait: Duration,
}

impl Missing {
    pub(crate) fn new(queue: QueueLength) -> Self {
        Self { queue, position: None, next: Instant::now(), found: 0, wait: SPACING }
    }

    /// Looks at the next page of what is published, if it is time. Returns how many rows are due again.
    pub(crate) async fn look(&mut self, client: &Client, horizon: Duration) -> Result<u64, Error> {
        let began = Instant::now();
        let Some(ready) = self.queue.longest(began).filter(|_| self.next <= began) else { return Ok(0) };
        // Also if it fails: it would fail again.
        self.next = began + STATEMENT_TIMEOUT * COST;
        let page = find_unclaimed(client, PAGE, horizon, self.position).await?;
        let rows = lost(&page.unclaimed, ready);
        let due = if rows.is_empty() { 0 } else { make_due(client, rows).await? };
        say(due, ready);
        self.found += due;
        self.position = page.next;
        let pause = if page.next.is_none() { self.end_of_round() } else { SPACING };
        self.next = began + pause.max(began.elapsed() * COST);
        Ok(due)
    }

    /// The wait until the next round.
    fn end_of_round(&mut self) -> Duration {
        let found = std::mem::take(&mut self.found);
        if found == 0 {
            self.wait = SPACING;
            return SPACING;
        }
        let wait = self.wait;
        self.wait = (wait * 2).min(LONGEST_WAIT);
        LOST_AFTER + wait
    }
}

/// The rows whose tasks are not in the queue. A queue hands out the oldest first, so those that it has are the
/// youngest.
fn lost(unclaimed: &[i64], ready: u32) -> &[i64] {
    &unclaimed[..unclaimed.len().saturating_sub(ready as usize)]
}

fn say(rows: u64, ready: u32) {
    if rows > 0 {
        metrics::counter!("outhook_relay_missing_total").increment(rows);
        warn!(
            rows,
            ready,
            "RabbitMQ has lost messages, which are published again: see whether its queue was purged, is consumed by \
             somebody else, or has a policy with message-ttl, max-length or expires (rabbitmqctl list_policies)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_youngest_are_in_the_queue() {
        assert_eq!(lost(&[1, 2, 3], 0), [1, 2, 3]);
        assert_eq!(lost(&[1, 2, 3], 1), [1, 2]);
        assert_eq!(lost(&[1, 2, 3], 5), [0_i64; 0]);
    }

    #[test]
    fn what_is_lost_again_and_again_is_waited_for_longer() {
        let mut missing = Missing::new(QueueLength::default());
        let mut after = |found| {
            missing.found = found;
            missing.end_of_round().as_secs()
        };
        assert_eq!([0, 5, 5, 5, 5, 5, 5, 0, 5].map(&mut after), [1, 7, 8, 10, 14, 22, 36, 1, 7]);
    }
}
