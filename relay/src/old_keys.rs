//! Forgets idempotency keys that have held for as long as they are to, however many they are, and nobody waits for that.

use std::time::{Duration, SystemTime};

use outbox::job::keys::forget_keys;
use outbox::service::clock;
use tokio::time::Instant;
use tokio_postgres::{Client, Error};

use crate::scan_start::ScanStart;

/// Keys forgotten in one statement.
const PAGE: u16 = 1_000;

/// What one round may take for keys before it goes on with the rest, and what one statement may. What is left comes with the
/// next round: some ten thousand keys a second are forgotten like this.
const ROUND_TIME: Duration = Duration::from_millis(100);
const STATEMENT_TIME: Duration = Duration::from_millis(300);

/// Between two looks, unless the last one has left some.
const SPACING: Duration = Duration::from_secs(5);

pub(crate) struct OldKeys {
    days: u16,
    look: ScanStart<SystemTime>,
    next: Instant,
}

impl OldKeys {
    pub(crate) fn new(days: u16) -> Self {
        Self { days, look: ScanStart::default(), next: Instant::now() }
    }

    /// Forgets some, if it is time. Returns whether more are left.
    pub(crate) async fn forget(&mut self, client: &mut Client) -> Result<bool, Error> {
        let began = Instant::now();
        if self.next > began {
            return Ok(false);
        }
        self.next = began + SPACING;
        while self.forget_page(client).await? {
            if began.elapsed() >= ROUND_TIME {
                self.next = began;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns whether there may be more.
    async fn forget_page(&mut self, client: &mut Client) -> Result<bool, Error> {
        let began = Instant::now();
        let since = self.look.since(began);
        let forgotten = forget_keys(client, self.days, since, PAGE, STATEMENT_TIME).await?;
        // It took too long. A look from the beginning leaves the place to which others have come; any other goes on with what
        // expires from now on, and what it leaves out is found from the beginning.
        let last = match forgotten {
            Some(forgotten) => forgotten.last,
            None => self.look.last().filter(|_| since.is_none()).unwrap_or_else(|| self.just_expired()),
        };
        // Also back: others may follow those that a look from the beginning has found.
        self.look.saw(Some(last), began.elapsed());
        let keys = forgotten.map_or(0, |forgotten| forgotten.keys);
        metrics::counter!("outhook_relay_keys_forgotten_total").increment(keys.into());
        Ok(keys == u32::from(PAGE))
    }

    fn just_expired(&self) -> SystemTime {
        let days = Duration::from_hours(24) * self.days.into();
        SystemTime::from(clock::now()) - days
    }
}
