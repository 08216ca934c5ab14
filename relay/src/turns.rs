//! Gives turns to ordering keys, as part of a lane's batch: whoever waits for one waits for nothing else. While all lanes
//! wait for RabbitMQ, the upkeep gives them: that needs Postgres only.

use std::time::Duration;

use outbox::due::{self, Statements, ordering};
use outbox::kill_point;
use tokio::time::Instant;
use tokio_postgres::{Client, Error};

use crate::next::Next;
use crate::scan_start::ScanStart;

/// Lines gone through in one look, so that those who can be published do not wait for it.
const KEYS: i32 = 100;

/// Between two looks, unless turns are known to be given.
const SPACING: Duration = Duration::from_millis(100);

/// Between two looks at keys whose first rows somebody holds.
const BUSY_WAIT: Duration = Duration::from_millis(250);

/// While another relay gives turns, or somebody holds the list, there is nothing to do here; longer each time.
const OTHERS_WAIT: Duration = Duration::from_millis(2);
const OTHERS_WAITS: u32 = 50;

/// Pages of keys whose first rows are all held that are gone through without a pause: others come after them.
const BUSY_PAGES: u32 = 200;

pub(crate) struct Turns {
    keys: ScanStart<i64>,
    next: Instant,
    /// Whether the outbox said that there are turns to give, or the last look gave some.
    to_give: bool,
    /// Nothing can be given before.
    busy_until: Option<Instant>,
    /// Looks in a row that gave no turn.
    in_vain: u32,
}

impl Turns {
    pub(crate) fn new() -> Self {
        Self { keys: ScanStart::default(), next: Instant::now(), to_give: true, busy_until: None, in_vain: 0 }
    }

    /// The first line of `ordering_checks` that was not seen.
    pub(crate) fn next_line(&self) -> i64 {
        self.keys.last().unwrap_or(0)
    }

    /// Whether it is time to begin at the first line.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.keys.is_due(now)
    }

    /// What to do next, given what the outbox says.
    pub(crate) fn then(&mut self, next: due::Next) -> Next {
        self.to_give = next.turns_to_give;
        match self.busy_until {
            _ if !next.turns_to_give => Next::Sleep(next.due_in),
            // Nothing else can be given.
            Some(until) if until > Instant::now() => {
                let wait = until - Instant::now();
                Next::Sleep(Some(next.due_in.map_or(wait, |due_in| due_in.min(wait))))
            }
            _ => Next::GoOn,
        }
    }

    /// Gives what turns there are to give. Returns how many it gave.
    pub(crate) async fn give(&mut self, client: &Client, statements: &Statements) -> Result<u64, Error> {
        let now = Instant::now();
        let is_time = self.to_give || self.next <= now;
        if !is_time || self.busy_until.is_some_and(|until| until > now) {
            return Ok(0);
        }
        self.next = now + SPACING;
        let from = self.keys.since(now).unwrap_or(0);
        let given = ordering::give_turns(client, statements, from, KEYS).await?;
        if given.rows > 0 {
            kill_point!("relay.after_turns");
        }
        // Never back: what commits late is found by the looks from the beginning.
        self.keys.saw(self.keys.last().max(Some(given.last_id)), now.elapsed());
        self.to_give = given.rows > 0 || given.lines == KEYS;
        self.in_vain = if given.rows > 0 { 0 } else { self.in_vain.saturating_add(1) };
        self.busy_until = match given {
            _ if given.rows > 0 => None,
            // Others may come after those that are held.
            _ if given.lines == KEYS && !self.in_vain.is_multiple_of(BUSY_PAGES) => None,
            _ if given.busy > 0 => Some(now + BUSY_WAIT),
            _ => Some(now + OTHERS_WAIT * self.in_vain.min(OTHERS_WAITS)),
        };
        let rows = given.rows.unsigned_abs().into();
        metrics::counter!("outhook_relay_turns_given_total").increment(rows);
        Ok(rows)
    }
}
