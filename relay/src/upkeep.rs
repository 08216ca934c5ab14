//! What a relay does besides publishing: makes rows due again that somebody held, gives turns that no lane gives, looks after
//! destinations that are sick, finds what was committed long after it was due and what RabbitMQ has lost, and forgets what is
//! over. All of it on a connection of its own, so that no look, however long, keeps anything from being published. Each is a bounded statement
//! that waits for nobody; relays that do it side by side step over each other's rows.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use outbox::destination::Destination;
use outbox::destination::hold::{free_strays, hold_due};
use outbox::destination::release::release;
use outbox::destination::upkeep::{Work, forget, work};
use outbox::due::{self, Position, Statements};
use outbox::service::backoff::Backoff;
use outbox::service::database::DatabaseError;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Client, Error};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::Config;
use crate::counts::Counts;
use crate::missing::Missing;
use crate::old_keys::OldKeys;
use crate::queue_length::QueueLength;
use crate::scan_start::ScanStart;
use crate::turns::Turns;
use crate::wake::Waker;

/// Between two rounds while there is something to tend, and while there was nothing for a while.
const BUSY_SPACING: Duration = Duration::from_millis(100);
const IDLE_SPACING: Duration = Duration::from_millis(500);

/// A round that takes longer hangs on a server that does not answer.
const ROUND_TIMEOUT: Duration = Duration::from_secs(30);

/// Lines gone through, and rows held, in one statement.
const CHECKS: i32 = 1_000;
const HOLD: i64 = 2_000;

/// Rows that are looked at from the beginning of what is due.
const LATE: i64 = 5_000;

/// Between two looks at rows that somebody holds.
const CHECK_SPACING: Duration = Duration::from_millis(250);

/// Between two notifications to itself.
const CALL_SPACING: Duration = Duration::from_secs(5);

/// Between two looks at what may be forgotten.
const FORGET_SPACING: Duration = Duration::from_secs(1);

/// What one round may take for destinations before it goes on with the rest.
const DESTINATIONS_TIME: Duration = Duration::from_millis(300);

/// The next round comes after this many times what the last one took to find out what there is to do: what is gone
/// leaves dead entries, which may have to be stepped over for as long as somebody's transaction is open.
const COST: u32 = 10;
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Rows that are due and that the lanes' own looks may have missed: those go on from where the last one ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latecomers(Arc<Mutex<Vec<(Position, Destination)>>>);

impl Latecomers {
    /// Takes them; they are another lane's then no more.
    pub(crate) fn take(&self) -> Vec<(Position, Destination)> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn put(&self, page: Vec<(Position, Destination)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = page;
    }
}

pub(crate) struct Upkeep {
    config: Config,
    waker: Waker,
    latecomers: Latecomers,
    database: Option<(Client, Statements)>,
    checks: ScanStart<i64>,
    checked: Instant,
    turns: Turns,
    hold: ScanStart<SystemTime>,
    late: ScanStart<()>,
    /// The destination that the last look at strays ended with.
    stray: String,
    forgotten: Instant,
    counts: Counts,
    called: Instant,
    missing: Missing,
    old_keys: OldKeys,
}

impl Upkeep {
    pub(crate) fn new(config: Config, waker: Waker, latecomers: Latecomers, queue: QueueLength) -> Self {
        let now = Instant::now();
        let old_keys = OldKeys::new(config.publish.idempotency_days);
        Self {
            config,
            waker,
            latecomers,
            database: None,
            checks: ScanStart::default(),
            checked: now,
            turns: Turns::new(),
            hold: ScanStart::default(),
            late: ScanStart::default(),
            stray: String::new(),
            forgotten: now,
            counts: Counts::new(now),
            called: now,
            missing: Missing::new(queue),
            old_keys,
        }
    }

    /// Goes on until it is asked to stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::reconnect();
        loop {
            let round = timeout(ROUND_TIMEOUT, self.round()).await.unwrap_or(Err(DatabaseError::Timeout));
            let wait = match round {
                Ok(wait) => {
                    backoff.reset();
                    wait
                }
                Err(error) => {
                    self.database = None;
                    if matches!(error, DatabaseError::Timeout) {
                        // Whether it was notified is not known.
                        self.waker.heard();
                    }
                    warn!(%error, "cannot look after what waits; trying again");
                    backoff.next_wait()
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(wait) => {}
            }
        }
    }

    /// Does what there is to do. Returns how soon to look again.
    async fn round(&mut self) -> Result<Duration, DatabaseError> {
        let (mut client, statements) = match self.database.take() {
            Some(database) if !database.0.is_closed() => database,
            _ => self.connect().await?,
        };
        self.call(&client).await?;
        let began = Instant::now();
        let work = work(&client, &statements, self.checks.last().unwrap_or(0), self.turns.next_line()).await?;
        let cost = (began.elapsed() * COST).min(LONGEST_PAUSE);
        let mut moved = 0;
        if (work.checks || self.checks.is_due(began)) && self.checked <= began {
            self.checked = began + CHECK_SPACING;
            moved += self.make_due_again(&client).await?;
        }
        if work.turns || self.turns.is_due(began) {
            moved += self.turns.give(&client, &statements).await?;
        }
        moved += self.look_after_destinations(&mut client, work).await?;
        self.find_latecomers(&client, &statements).await?;
        if work.leftovers && self.forgotten <= began {
            self.forgotten = began + FORGET_SPACING;
            forget(&client).await?;
        }
        // After the rest: what it looks through may be much.
        moved += self.missing.look(&client, self.config.publish.republish_interval()).await?;
        if moved > 0 {
            self.waker.wake();
        }
        let more_keys = self.old_keys.forget(&mut client).await?;
        self.counts.rows(&client).await?;
        self.database = Some((client, statements));
        let is_busy = work.sick || work.held || work.checks || work.turns || more_keys;
        Ok(cost.max(if is_busy { BUSY_SPACING } else { IDLE_SPACING }))
    }

    async fn connect(&self) -> Result<(Client, Statements), DatabaseError> {
        let client = self.config.database.connect_service("outhook-relay upkeep").await?;
        // As for the lanes: what a crash of Postgres undoes is found anew.
        client.batch_execute("SET synchronous_commit = off").await?;
        let statements = Statements::prepare(&client).await?;
        Ok((client, statements))
    }

    /// Notifies this process, among others: see [`Waker::calls`].
    async fn call(&mut self, client: &Client) -> Result<(), Error> {
        let now = Instant::now();
        if self.called <= now {
            self.called = now + CALL_SPACING;
            self.waker.calls(now);
            // The commit of one who notifies waits for that of another, which may wait for a standby that is away.
            let call = "SELECT set_config('lock_timeout', '100ms', true), pg_notify('outhook_outbox', '')";
            if let Err(error) = client.batch_execute(call).await {
                self.waker.heard();
                // Refused, as while the queue of notifications is full: those who have something to notify say so.
                return if error.code().is_some() { Ok(()) } else { Err(error) };
            }
        }
        Ok(())
    }

    async fn make_due_again(&mut self, client: &Client) -> Result<u64, Error> {
        let now = Instant::now();
        let from = self.checks.since(now).unwrap_or(0);
        let checked = due::make_due_again(client, from, CHECKS).await?;
        self.checks.saw(self.checks.last().max(Some(checked.last_id)), now.elapsed());
        metrics::counter!("outhook_relay_due_again_total").increment(checked.due.unsigned_abs().into());
        metrics::gauge!("outhook_relay_rows_held_by_others").set(f64::from(checked.busy));
        Ok(checked.due.unsigned_abs().into())
    }

    async fn look_after_destinations(&mut self, client: &mut Client, work: Work) -> Result<u64, Error> {
        let mut freed = 0;
        if work.sick {
            freed += self.release(client).await?;
        }
        if work.sick {
            let now = Instant::now();
            let (held, last) = hold_due(client, HOLD, self.hold.since_late(now)).await?;
            self.hold.saw(last, now.elapsed());
            metrics::counter!("outhook_relay_held_total").increment(held);
        }
        self.counts.sick(client, work).await?;
        if work.held {
            let (next, strays) = free_strays(client, &self.stray).await?;
            self.stray = next;
            freed += strays;
        }
        metrics::counter!("outhook_relay_released_total").increment(freed);
        Ok(freed)
    }

    async fn release(&self, client: &mut Client) -> Result<u64, Error> {
        let (began, mut freed) = (Instant::now(), 0);
        loop {
            let tended = release(client, self.config.publish.destination_drain_limit).await?;
            freed += tended.freed;
            if tended.freed > 0 {
                self.waker.wake();
            }
            if !tended.more || began.elapsed() >= DESTINATIONS_TIME {
                return Ok(freed);
            }
        }
    }

    /// Hands the lanes what stands at the beginning of what is due.
    async fn find_latecomers(&mut self, client: &Client, statements: &Statements) -> Result<(), Error> {
        let now = Instant::now();
        if !self.late.is_due(now) {
            return Ok(());
        }
        self.late.since(now);
        let page = due::scan_due(client, statements, LATE, None).await?;
        self.late.saw(Some(()), now.elapsed());
        let oldest = match page.first() {
            Some(((due_at, _), _)) => due::age(client, *due_at).await?,
            None => 0.0,
        };
        metrics::gauge!("outhook_relay_oldest_due_age_seconds").set(oldest);
        if !page.is_empty() {
            self.latecomers.put(page);
            self.waker.wake();
        }
        Ok(())
    }
}
