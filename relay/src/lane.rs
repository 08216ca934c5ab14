//! A lane: one connection to Postgres, one to RabbitMQ, and the loop that moves rows from the one to the
//! other. It reconnects whichever is lost and keeps the other.

use std::time::Duration;

use lapin::Connection;
use outbox::broker::topology::{BrokerConfig, BrokerError, within};
use outbox::due::{self, Statements};
use outbox::kill_point;
use outbox::service::backoff::Backoff;
use outbox::service::batch::Pace;
use outbox::service::database::DatabaseError;
use outbox::service::telemetry::{Readiness, Server};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Config;
use crate::lost::Lost;
use crate::next::Next;
use crate::publish_due::{Database, Search, publish_due};
use crate::publisher::Publisher;
use crate::queue_length::QueueLength;
use crate::turns::Turns;
use crate::upkeep::Latecomers;
use crate::wake::{Notified, Wake};

/// A batch that takes longer hangs on a server that does not answer: its connections are dropped.
const BATCH_TIMEOUT: Duration = Duration::from_secs(30);

/// Between the starts of two batches that leave nothing due: what comes meanwhile shares the next one. A batch
/// costs five statements, however few its rows; the first after a pause of this length waits for nothing.
const BATCH_SPACING: Duration = Duration::from_millis(4);

/// How soon to look again whether workers have shortened a queue that was too long.
const FULL_QUEUE_WAIT: Duration = Duration::from_millis(20);

/// A queue that is missing is not declared again before this: declared within some 20 ms, RabbitMQ 3.10 and 3.12 leave
/// those who consumed from the one before without tasks and without a word. From 50 ms on they are told.
const DEAD_QUEUE_WAIT: Duration = Duration::from_secs(1);

/// Rows gone through in one statement when the broker was wiped.
const REWIND_PAGE: i64 = 2_000;

/// What was published is due again no later than this, or the republish interval: the longest lease, and some.
const LONGEST_LEASE: Duration = Duration::from_secs(320);

/// The commits of a lane need not wait for the disk: losing one in a crash of Postgres means that its rows are due
/// again, so that their tasks are published once more and refused by the claim.
const SESSION: &str = "SET synchronous_commit = off";

pub(crate) struct Lane {
    config: Config,
    notified: Notified,
    stop: CancellationToken,
    readiness: Readiness,
    database: Option<Database>,
    publisher: Option<Publisher>,
    backoff: Backoff,
    pace: Pace,
    search: Search,
    turns: Turns,
    queue: QueueLength,
    announced: bool,
    /// Whether this lane has declared what it publishes to, and nothing has come back since.
    declared: bool,
}

impl Lane {
    /// `shared` is what the lanes of a relay have in common.
    pub(crate) fn new(
        config: Config,
        (notified, latecomers, readiness, queue): (Notified, Latecomers, Readiness, QueueLength),
        stop: CancellationToken,
    ) -> Self {
        Self {
            config,
            notified,
            stop,
            readiness,
            database: None,
            publisher: None,
            backoff: Backoff::reconnect(),
            pace: Pace::new(BATCH_SPACING),
            search: Search::new(latecomers),
            turns: Turns::new(),
            queue,
            announced: false,
            declared: false,
        }
    }

    /// Publishes until it is asked to stop.
    pub(crate) async fn run(mut self) {
        while !self.stop.is_cancelled() {
            let batch = timeout(BATCH_TIMEOUT, self.batch()).await.unwrap_or(Err(Lost::Everything));
            let wake = match batch {
                Ok(next) => {
                    self.readiness.made_progress();
                    self.rest(next).await
                }
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
    async fn batch(&mut self) -> Result<Next, Lost> {
        self.notified.forget();
        self.pace.start();
        self.connect_database().await?;
        self.readiness.reached(Server::Postgres);
        self.connect_broker().await?;
        self.announce();
        let (Some(database), Some(publisher)) = (&mut self.database, &mut self.publisher) else {
            unreachable!("both were connected just now");
        };
        if !publisher.has_caught_up().await? {
            return Err(Lost::Unconfirmed);
        }
        self.readiness.reached(Server::RabbitMq);
        let config = &self.config.publish;
        self.turns.give(&database.client, &database.statements).await?;
        let room = publisher.room(config.relay_batch_size.into(), config.relay_queue_limit).await?;
        if room == 0 {
            return Ok(Next::QueueFull);
        }
        let batch = publish_due(database, publisher, &mut self.search, room, config).await?;
        if batch.all_refused {
            return Ok(Next::Refused);
        }
        if batch.claimed == room as usize {
            return Ok(Next::GoOn);
        }
        let next = due::next_due(&database.client, &database.statements, self.turns.next_line()).await?;
        Ok(self.turns.then(next))
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
            Lost::Blocked | Lost::Unconfirmed => {}
            Lost::Everything => {
                self.database = None;
                self.publisher = None;
            }
        }
        lost.report(&self.readiness);
        warn!(error = %lost, "not publishing; what is due stays in Postgres");
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
            let client = self.config.database.connect_service("outhook-relay").await?;
            client.batch_execute(SESSION).await?;
            self.database = Some(Database { statements: Statements::prepare(&client).await?, client });
        }
        Ok(())
    }

    /// Connects to the broker. A queue that is missing was never made, or was wiped with its tasks:
    /// all that was published is made due *before* the queue exists anew, so that a relay that is killed
    /// in between leaves the same sight to the next one.
    async fn connect_broker(&mut self) -> Result<(), Lost> {
        match &self.publisher {
            Some(publisher) if publisher.is_blocked() => return Err(Lost::Blocked),
            Some(publisher) if publisher.is_usable() => return Ok(()),
            Some(publisher) => self.declared &= !publisher.is_unroutable(),
            None => {}
        }
        self.publisher = None;
        let database = &self.database.as_ref().expect("the database is connected first").client;
        let broker = self.config.broker.clone();
        let connection = broker.connect("outhook-relay").await?;
        if !broker.queue_exists(&connection).await? {
            let seen = Instant::now();
            let rows = rewind(database, self.config.publish.republish_interval() + LONGEST_LEASE).await?;
            info!(rows, "the queue does not exist: made its messages due again");
            kill_point!("relay.after_rewind");
            // Unless there never was one.
            if self.announced || rows > 0 {
                sleep_until(seen + DEAD_QUEUE_WAIT).await;
            }
        }
        if !self.declared || !broker.is_declared(&connection).await? {
            self.declared = false;
            declare(&broker, &connection).await?;
            self.declared = true;
        }
        self.publisher = Some(Publisher::open(connection, broker, self.queue.clone()).await?);
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

/// Declares what is published to, and so sees that what exists is as it must be. What a lane has declared once, it only
/// looks for when it connects again: a declaration waits for all nodes of a cluster. Nor is the right to declare needed
/// where everything exists.
async fn declare(broker: &BrokerConfig, connection: &Connection) -> Result<(), BrokerError> {
    let channel = async || within("a channel", connection.create_channel()).await;
    match broker.declare(&channel().await?).await {
        Err(error) if error.is_access_refused() && broker.is_declared(connection).await? => {
            broker.bind(&channel().await?).await
        }
        declared => declared,
    }
}

/// Makes all that was published due again. Its commits wait for the disk, since once the queue exists anew
/// nothing else remembers that it was lost; not for a standby, which may be away.
async fn rewind(database: &Client, horizon: Duration) -> Result<u64, tokio_postgres::Error> {
    database.batch_execute("SET synchronous_commit = local").await?;
    let (mut rows, mut after) = (0, None);
    loop {
        let (some, last) = due::rewind(database, REWIND_PAGE, horizon, after).await?;
        rows += some;
        if last.is_none() {
            database.batch_execute(SESSION).await?;
            return Ok(rows);
        }
        after = last;
    }
}
