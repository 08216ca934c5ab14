//! sqlx's connections, shared.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
use std::time::Duration;

use deadpool::managed::{self, Metrics, Object, PoolError, QueueMode, RecycleError, RecycleResult};
use sqlx::Connection;
use sqlx::postgres::PgConnection;
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use super::failure::is_of_one_row;
use super::opener::{Opener, timed_out};
use super::overdue::{Overdue, Process, close, wait_for_end};
use super::pooler::Pooler;
use super::settings::STATEMENT_TIMEOUT;
use super::{DatabaseConfig, NO_WRITES};
use crate::service::backoff::Backoff;

/// A connection that was idle for longer is tested before it is used.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// A connection that is older is replaced: a server's process grows with what it has seen.
const MAX_AGE: Duration = Duration::from_mins(30);

/// A connection that is given back has this long to say that it is well.
const TEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Connections to a server that takes writes, opened when they are needed and shared.
#[derive(Clone, Debug)]
pub struct Pool {
    connections: managed::Pool<Opener>,
    /// Nobody waits for one for longer.
    acquire_timeout: Duration,
    overdue: Overdue,
}

impl DatabaseConfig {
    /// A pool of connections; none is opened before it is needed.
    ///
    /// A caller waits at most `acquire_timeout` for a free one.
    #[must_use]
    pub fn pool(&self, application: &str, connections: u32, acquire_timeout: Duration) -> Pool {
        self.pool_with(application, connections, acquire_timeout, &[])
    }

    /// The same, with settings of Postgres that take the place of the usual ones.
    #[must_use]
    pub fn pool_with(
        &self,
        application: &str,
        connections: u32,
        acquire_timeout: Duration,
        settings: &[(&str, &str)],
    ) -> Pool {
        let opener = self.opener(application, settings, self.pooler());
        // The one that was used last: a few busy sessions cost Postgres less than many that take turns.
        let pool = managed::Pool::builder(opener).max_size(connections as usize).queue_mode(QueueMode::Lifo).build();
        let connections = pool.expect("without time-outs it needs no runtime");
        Pool { connections, acquire_timeout, overdue: Overdue::default() }
    }
}

/// A connection of a pool.
#[derive(Debug)]
pub(super) struct Session {
    connection: PgConnection,
    /// The server's process that it has for itself, if it has one.
    pub process: Option<Process>,
}

impl Deref for Session {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl managed::Manager for Opener {
    type Type = Session;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<Session, sqlx::Error> {
        let mut connection = self.open().await?;
        let process = if self.pooler == Pooler::None { Some(Process::of(&mut connection).await?) } else { None };
        Ok(Session { connection, process })
    }

    async fn recycle(&self, connection: &mut Session, metrics: &Metrics) -> RecycleResult<sqlx::Error> {
        if metrics.age() > MAX_AGE {
            return Err(RecycleError::message("it is old"));
        }
        // It was well when it was given back, a moment ago.
        if metrics.last_used() > TRUSTED_FOR {
            connection.ping().await?;
        }
        Ok(())
    }
}

impl Pool {
    /// Whether a commit does not end, as when a synchronous standby or a disk is away.
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        self.overdue.load(Ordering::Relaxed) > 0
    }

    /// Waits for a connection. While the server cannot be reached, that is tried again until the time is up: most often
    /// it is being started anew.
    async fn acquire(&self) -> Result<Lent, sqlx::Error> {
        let mut failed = None;
        let waiting = async {
            let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(200));
            loop {
                match self.connections.get().await {
                    Ok(session) => return Ok(Lent { session: Some(session), overdue: self.overdue.clone() }),
                    Err(PoolError::Backend(error)) if is_away(&error) => failed = Some(error),
                    Err(PoolError::Backend(error)) => return Err(error),
                    // Its other errors are those of time-outs and closed pools, of which there are none.
                    Err(_) => return Err(sqlx::Error::PoolClosed),
                }
                sleep(backoff.next_wait()).await;
            }
        };
        let waited = timeout(self.acquire_timeout, waiting).await;
        waited.unwrap_or_else(|_| Err(failed.unwrap_or(sqlx::Error::PoolTimedOut)))
    }
}

/// Whether the server is one to read from only, for now.
#[must_use]
pub fn takes_no_writes(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Configuration(error) => error.to_string() == NO_WRITES,
        // read_only_sql_transaction
        sqlx::Error::Database(error) => error.code().as_deref() == Some("25006"),
        _ => false,
    }
}

/// Whether there is no server, or none that takes writes yet.
fn is_away(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Configuration(_) => true,
        // It starts, or stops.
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code.starts_with("57P")),
        _ => false,
    }
}

/// A connection whose answer is waited for. Unless it is taken out, nobody does that any more.
struct Lent {
    session: Option<Object<Opener>>,
    overdue: Overdue,
}

impl Lent {
    fn leave(&mut self, is_late: bool) {
        let Some(session) = self.session.take() else { return };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(wait_for_end(session, self.overdue.clone(), is_late))),
            Err(_) => close(session),
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.leave(false);
    }
}

/// Runs a statement on a connection of the pool, or several in one transaction. A connection that does not answer in
/// time, or whose caller goes away, is not given back before it does; one that has said anything but that the rows are not
/// as they should be is closed: neither must wait in the pool for the next one.
///
/// # Errors
/// The statement failed, or there was no connection or no answer in time ([`super::Failure::Unavailable`]).
pub async fn on_connection<T>(
    pool: &Pool,
    statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    let mut lent = pool.acquire().await?;
    let session = lent.session.as_mut().expect("it was put there when it was lent");
    let opener = pool.connections.manager();
    // Postgres ends a statement by itself; a second more means that it cannot say so.
    let running = opener.pooler.run(session, &opener.settings, statement);
    let Ok(result) = timeout(STATEMENT_TIMEOUT + Duration::from_secs(1), running).await else {
        lent.leave(true);
        return Err(timed_out());
    };
    if let Some(session) = lent.session.take() {
        if result.as_ref().err().is_none_or(leaves_a_good_connection) { give_back(session) } else { close(session) }
    }
    result
}

/// Whether the next statement may be luckier on this connection. Not so once a server takes no writes any more, is
/// being shut down, or does not know what was prepared: errors of one row, classes 22, 40, 55, P0 and 57014 are about this
/// statement alone (Postgres manual, appendix A).
fn leaves_a_good_connection(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::RowNotFound | sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => true,
        error if is_of_one_row(error) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            ["22", "40", "55", "P0"].iter().any(|class| code.starts_with(class)) || code == "57014"
        }),
        _ => false,
    }
}

/// Sends what was put off until the next statement, such as the rollback of a transaction that was dropped.
fn give_back(mut session: Object<Opener>) {
    session.shrink_buffers();
    if !session.should_flush() {
        return;
    }
    tokio::spawn(async move {
        if !matches!(timeout(TEST_TIMEOUT, session.ping()).await, Ok(Ok(()))) {
            close(session);
        }
    });
}
