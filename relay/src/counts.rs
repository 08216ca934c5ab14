//! What is counted for people to see: destinations that are sick, and rows of the outbox by what they wait for.

use std::time::Duration;

use outbox::destination::upkeep::{Work, count_sick};
use outbox::due::{self, Counted};
use outbox::service::database::is_of_one_row;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};
use tracing::warn;

use crate::measures::SICK;

/// Between two counts, and how many of each kind are counted.
const COUNT_SPACING: Duration = Duration::from_secs(5);
const MOST_COUNTED: i64 = 10_000;

/// Of rows there may be many: the next count comes after this many times what the last one took.
const ROWS_COST: u32 = 200;
const LONGEST_COUNT_SPACING: Duration = Duration::from_mins(2);

pub(crate) struct Counts {
    next_sick: Instant,
    /// Whether there were any.
    had_sick: bool,
    next_rows: Instant,
}

impl Counts {
    pub(crate) const fn new(now: Instant) -> Self {
        Self { next_sick: now, had_sick: false, next_rows: now }
    }

    /// At most so often: it is for people to see.
    pub(crate) async fn sick(&mut self, client: &Client, work: Work) -> Result<(), Error> {
        if self.next_sick <= Instant::now() && (work.sick || self.had_sick) {
            self.next_sick = Instant::now() + COUNT_SPACING;
            self.had_sick = work.sick;
            let counted = count_sick(client, MOST_COUNTED).await?;
            for state in SICK {
                let count = counted.get(state).copied().unwrap_or_default();
                metrics::gauge!("outhook_relay_sick_destinations", "state" => state).set(count);
            }
        }
        Ok(())
    }

    pub(crate) async fn rows(&mut self, client: &Client) -> Result<(), Error> {
        let began = Instant::now();
        if self.next_rows > began {
            return Ok(());
        }
        // Also if it fails: it would fail again.
        self.next_rows = began + LONGEST_COUNT_SPACING;
        match due::count(client, MOST_COUNTED).await {
            Ok(counted) => set_rows(counted),
            // The rest of the round is not for people alone, and goes on without it. It may take longer than a statement may.
            Err(error) if is_of_one_row(&error) || error.code() == Some(&SqlState::QUERY_CANCELED) => {
                warn!(%error, "cannot count the rows of the outbox; the metric stays as it is");
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        self.next_rows = Instant::now() + (began.elapsed() * ROWS_COST).clamp(COUNT_SPACING, LONGEST_COUNT_SPACING);
        Ok(())
    }
}

fn set_rows(counted: Counted) {
    let Counted { due, published, scheduled, held, ordered } = counted;
    for (state, count) in
        [("due", due), ("published", published), ("scheduled", scheduled), ("held", held), ("ordered", ordered)]
    {
        metrics::gauge!("outhook_relay_rows", "state" => state).set(count);
    }
}
