//! A lane: one connection to Postgres, one to RabbitMQ, and the loop that moves rows from the one to the
//! other. It reconnects whichever is lost and keeps the other.

use std::time::{Duration, SystemTime};

use outbox::backoff::Backoff;
use outbox::batch::Pace;
use outbox::database::DatabaseError;
use outbox::due::Statements;
use outbox::kill_point;
use outbox::topology::BrokerError;
use outbox::{destination, due};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Config;
use crate::publish_due::{Database, publish_due};
use crate::publisher::Publisher;
use crate::wake::{Notified, Wake};

/// A turn that takes longer hangs on a server that does not answer: its connections are dropped.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);

/// Between the starts of two turns that leave nothing due: what comes meanwhile shares the next one. A turn
/// costs five statements, however few its rows; the first after a pause of this length waits for nothing.
const TURN_SPACING: Duration = Duration::from_millis(4);

/// How soon to look again whether workers have shortened a queue that was too long.
const FULL_QUEUE_WAIT: Duration = Duration::from_millis(100);

/// Between two looks at destinations that are sick or limited.
const TENDING_SPACING: Duration = Duration::from_millis(100);

/// Rows held in one look, so that those who can be served do not wait for it.
const HOLD_BATCH: i64 = 2_000;

/// Between two looks at all that is due, and how late a row's commit may come to be seen by those in
/// between: it was due from the beginning of its transaction.
const FULL_LOOK: Duration = Duration::from_secs(1);
const LATE_COMMIT: Duration = Duration::from_millis(250);

/// Rows made due in one statement when the broker was wiped.
const REWIND_BATCH: i64 = 1_000;

/// Settings of the lane's connection to Postgres.
///
/// A relay that hangs must not hold its rows: Postgres ends its transaction. And its commits need not
/// wait for the disk: losing one in a crash of Postgres means that its rows ring again, so that their
/// messages are published once more and refused by the claim.
const SESSION: &str = "SET idle_in_transaction_session_timeout = '10s';
    SET statement_timeout = '5s';
    SET synchronous_commit = off";

pub(crate) struct Lane {
    config: Config,
    notified: Notified,
    stop: CancellationToken,
    database: Option<Database>,
    publisher: Option<Publisher>,
    backoff: Backoff,
    pace: Pace,
    tending: Pace,
    look: Look,
    announced: bool,
}

/// How far back a lane looks for what is due.
///
/// Rows that were published leave dead index entries behind, which are skipped one by one for as long as a
/// transaction is open anywhere that could still see them. So most turns begin where the last one ended, and
/// only one in [`FULL_LOOK`] reads the index from its beginning.
#[derive(Default)]
struct Look {
    full: Option<Instant>,
    last: Option<SystemTime>,
}

impl Look {
    /// `None` for all.
    fn since(&mut self) -> Option<SystemTime> {
        if self.full.is_none_or(|full| full.elapsed() >= FULL_LOOK) {
            self.full = Some(Instant::now());
            return None;
        }
        self.last.map(|last| last - LATE_COMMIT)
    }

    fn saw(&mut self, last: Option<SystemTime>) {
        self.last = last.or(self.last);
    }
}

/// What to do after a turn.
enum Next {
    /// There may be more.
    GoOn,
    /// Nothing is due; the next row is, in this time.
    Sleep(Option<Duration>),
    /// The queue is long enough.
    QueueFull,
    /// The broker refused all of it.
    Refused,
}

/// What was lost.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("RabbitMQ takes no messages for now")]
    Blocked,
    #[error("nothing answered in time")]
    Everything,
}

impl From<tokio_postgres::Error> for Lost {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error.into())
    }
}

impl Lane {
    pub(crate) fn new(config: Config, notified: Notified, stop: CancellationToken) -> Self {
        let (backoff, pace) = (Backoff::reconnect(), Pace::new(TURN_SPACING));
        let tending = Pace::new(TENDING_SPACING);
        Self {
            config,
            notified,
            stop,
            database: None,
            publisher: None,
            backoff,
            pace,
            tending,
            look: Look::default(),
            announced: false,
        }
    }

    /// Publishes until it is asked to stop.
    pub(crate) async fn run(mut self) {
        while !self.stop.is_cancelled() {
            let turn = timeout(TURN_TIMEOUT, self.turn()).await.unwrap_or(Err(Lost::Everything));
            let wake = match turn {
                Ok(next) => self.rest(next).await,
                Err(lost) => self.recover(&lost).await,
            };
            if wake == Wake::Shutdown {
                break;
            }
        }
        if let Some(publisher) = self.publisher.take() {
            publisher.close().await;
        }
    }

    /// Connects what is not connected, then publishes a batch.
    async fn turn(&mut self) -> Result<Next, Lost> {
        self.notified.forget();
        self.pace.start();
        self.connect_database().await?;
        self.connect_broker().await?;
        self.announce();
        let (Some(database), Some(publisher)) = (&mut self.database, &mut self.publisher) else {
            unreachable!("both were connected just now");
        };
        let config = &self.config.publish;
        if self.tending.next() <= Instant::now() {
            self.tending.start();
            tend_destinations(&database.client, config.destination_drain_limit).await?;
        }
        let room = publisher.room(config.relay_batch_size.into(), config.relay_queue_limit).await?;
        if room == 0 {
            return Ok(Next::QueueFull);
        }
        let turn = publish_due(database, publisher, room, self.look.since(), config).await?;
        self.look.saw(turn.last);
        if turn.all_refused {
            return Ok(Next::Refused);
        }
        if turn.claimed == room as usize {
            return Ok(Next::GoOn);
        }
        Ok(Next::Sleep(due::next_due(&database.client, &database.statements).await?))
    }

    async fn rest(&mut self, next: Next) -> Wake {
        if !matches!(next, Next::Refused) {
            self.backoff.reset();
        }
        match next {
            Next::GoOn => Wake::Due,
            Next::Sleep(next_due) => {
                let wake = self.notified.sleep(next_due, self.config.publish.poll_interval(), &self.stop).await;
                sleep_until(self.pace.next()).await;
                wake
            }
            Next::QueueFull => self.wait(FULL_QUEUE_WAIT).await,
            Next::Refused => {
                let wait = self.backoff.next_wait();
                self.wait(wait).await
            }
        }
    }

    /// Drops what was lost and waits a while.
    async fn recover(&mut self, lost: &Lost) -> Wake {
        match lost {
            Lost::Database(_) => self.database = None,
            Lost::Broker(_) => self.publisher = None,
            Lost::Blocked => {}
            Lost::Everything => {
                self.database = None;
                self.publisher = None;
            }
        }
        warn!(error = %lost, "not publishing; what is due stays in Postgres");
        metrics::counter!("outhook_relay_reconnects_total").increment(1);
        let wait = self.backoff.next_wait();
        self.wait(wait).await
    }

    async fn wait(&self, wait: Duration) -> Wake {
        tokio::select! {
            () = self.stop.cancelled() => Wake::Shutdown,
            () = sleep(wait) => Wake::Poll,
        }
    }

    async fn connect_database(&mut self) -> Result<(), DatabaseError> {
        if self.database.as_ref().is_none_or(|database| database.client.is_closed()) {
            let client = self.config.database.connect("outhook-relay").await?;
            client.batch_execute(SESSION).await?;
            self.database = Some(Database { statements: Statements::prepare(&client).await?, client });
        }
        Ok(())
    }

    /// Connects to the broker. A queue that is missing was never made, or was wiped with its messages:
    /// all that was published is made due *before* the queue exists anew, so that a relay that is killed
    /// in between leaves the same sight to the next one.
    async fn connect_broker(&mut self) -> Result<(), Lost> {
        match &self.publisher {
            Some(publisher) if publisher.is_blocked() => return Err(Lost::Blocked),
            Some(publisher) if publisher.is_usable() => return Ok(()),
            _ => self.publisher = None,
        }
        let database = &self.database.as_ref().expect("the database is connected first").client;
        let broker = self.config.broker.clone();
        let connection = broker.connect("outhook-relay").await?;
        if !broker.queue_exists(&connection).await? {
            let rows = rewind(database).await?;
            info!(rows, "the queue does not exist: made its messages due again");
            kill_point!("relay.after_rewind");
        }
        self.publisher = Some(Publisher::open(connection, broker).await?);
        kill_point!("relay.after_declare");
        Ok(())
    }

    fn announce(&mut self) {
        if !self.announced {
            info!("ready: publishing");
            self.announced = true;
        }
    }
}

/// Sets free what may go to destinations that are sick or limited, and holds what has become due for them.
async fn tend_destinations(database: &Client, most: i32) -> Result<(), tokio_postgres::Error> {
    if !destination::any_sick(database).await? {
        return Ok(());
    }
    let released = destination::release(database, most).await?;
    let held = destination::hold_due(database, HOLD_BATCH).await?;
    metrics::counter!("outhook_relay_released_total").increment(released);
    metrics::counter!("outhook_relay_held_total").increment(held);
    Ok(())
}

/// Makes all that was published due again. Its commits wait for the disk: once the queue exists anew,
/// nothing else remembers that it was lost.
async fn rewind(database: &Client) -> Result<u64, tokio_postgres::Error> {
    database.batch_execute("SET synchronous_commit = on").await?;
    let mut rows = 0;
    loop {
        let some = due::rewind(database, REWIND_BATCH).await?;
        rows += some;
        if some < REWIND_BATCH.cast_unsigned() {
            database.batch_execute("SET synchronous_commit = off").await?;
            return Ok(rows);
        }
    }
}
