//! Connections whose statement nobody waits for any more, though the server may still be at it.
//!
//! Postgres limits the time of statements, but not that of a commit: it waits for its synchronous standbys, or for a disk, as
//! long as it takes, also when its client has gone. So such a connection keeps its place in the pool until the server's
//! process has ended its work. Otherwise each try would leave one more behind, until the server takes nobody in.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use deadpool::managed::Object;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Row};
use tokio::time::timeout;
use tracing::{info, warn};

use super::opener::Opener;

/// Before the first look at what the process does, and between two others. What is well has answered by the first.
const FIRST_LOOK: Duration = Duration::from_secs(1);
const LOOK_SPACING: Duration = Duration::from_secs(5);

/// A server that does not say in this time what its process does cannot be reached.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// How many connections of a pool are like this.
pub(super) type Overdue = Arc<AtomicUsize>;

/// A process of the server, not to be taken for a later one of the same number, nor for one of another server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    pid: i32,
    /// In microseconds since 1970, by the server's clock.
    started: i64,
}

impl Process {
    /// The one that serves this connection.
    pub(super) async fn of(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let own = "SELECT pid, (extract(epoch FROM backend_start) * 1e6)::bigint AS started
            FROM pg_stat_activity WHERE pid = pg_backend_pid()";
        let row = sqlx::raw_sql(own).fetch_one(connection).await?;
        Ok(Self { pid: row.try_get("pid")?, started: row.try_get("started")? })
    }
}

/// Keeps a connection until its process has answered, which makes it good for the next one, or does nothing for us any
/// more. `is_late` says whether its statement has had all its time.
pub(super) async fn wait_for_end(mut session: Object<Opener>, overdue: Overdue, mut is_late: bool) {
    let (Some(pool), Some(process)) = (Object::pool(&session), session.process) else { return close(session) };
    let mut counted = None;
    let mut spacing = FIRST_LOOK;
    let has_answered = {
        let mut answer = pin!(session.ping());
        loop {
            if let Ok(answer) = timeout(spacing, answer.as_mut()).await {
                break answer.is_ok();
            }
            let Some(waits_for) = work_of(pool.manager(), process).await else { break false };
            if is_late && counted.is_none() {
                warn!(
                    process = process.pid,
                    waits_for, "a commit does not end, and keeps its connection until it does"
                );
                counted = Some(Counted::in_(&overdue));
            }
            (is_late, spacing) = (true, LOOK_SPACING);
        }
    };
    if counted.is_some() {
        info!(process = process.pid, "the commit has ended, or its server has");
    }
    if !has_answered {
        close(session);
    }
}

/// What the process waits for while it works for us; `None` if it does not, or if nobody can be asked.
async fn work_of(opener: &Opener, process: Process) -> Option<String> {
    let asked = async {
        let mut connection = opener.open().await?;
        let work = sqlx::query_scalar(
            "-- look_at_process
            SELECT coalesce(wait_event, 'nothing') FROM pg_stat_activity
            WHERE pid = $1 AND (extract(epoch FROM backend_start) * 1e6)::bigint = $2 AND state = 'active' AND wait_event_type IS DISTINCT FROM 'Client'",
        );
        work.bind(process.pid).bind(process.started).fetch_optional(&mut connection).await
    };
    match timeout(LOOK_TIMEOUT, asked).await {
        Ok(Ok(work)) => work,
        // It is there, and has no room for one who asks.
        Ok(Err(sqlx::Error::Database(error))) if error.code().is_some_and(|code| code.starts_with("53")) => {
            Some("unknown".to_owned())
        }
        Ok(Err(_)) | Err(_) => None,
    }
}

/// Closes a connection, whose place another one may take.
pub(super) fn close(session: Object<Opener>) {
    drop(Object::take(session));
}

/// One more, until it is dropped.
struct Counted(Overdue);

impl Counted {
    fn in_(overdue: &Overdue) -> Self {
        overdue.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(overdue))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
