//! What must hold after every measurement: accepted = finished = received, nothing failed, nothing twice.
//! A fast bench that loses a job has measured nothing.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::ensure;
use outhook_check::{ALWAYS, AT_REST, Bounds, begin_snapshot, check, invariants};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::load::Accepted;
use crate::receiver::Arrival;
use crate::stack::Stack;

/// The last settlements come after the last delivery, but not much.
const SETTLE_TIMEOUT: Duration = Duration::from_mins(1);

/// For one statement of the checker, over 50,000 jobs or so.
const CHECK_TIMEOUT: Duration = Duration::from_mins(1);

const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Waits until no job is on its way, but for so many that are due far in the future.
pub(crate) async fn settled(stack: &Stack<'_>, future: i64) -> anyhow::Result<()> {
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    loop {
        let left = stack.count("SELECT count(*) FROM outbox").await? - future;
        if left <= 0 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{left} jobs were received but not finished within {SETTLE_TIMEOUT:?}");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Jobs that were written by SQL, beside those that were accepted over HTTP.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Filled {
    /// Finished before; never delivered here.
    pub finished: i64,
    /// Due now; delivered here.
    pub backlog: i64,
    /// Due far in the future; untouched.
    pub future: i64,
}

/// Everything that does not hold, in sentences.
pub(crate) async fn violations(
    stack: &Stack<'_>,
    accepted: &[Accepted],
    arrivals: &[Arrival],
    filled: Filled,
) -> anyhow::Result<Vec<String>> {
    let row = stack
        .client
        .query_one(
            "SELECT count(*) FILTER (WHERE status = 'success'), count(*) FILTER (WHERE status = 'failed'),
                    count(*) FILTER (WHERE status IN ('pending', 'processing')), (SELECT count(*) FROM outbox)
             FROM webhook_jobs",
            &[],
        )
        .await?;
    let delivered = i64::try_from(accepted.len())? + filled.backlog;
    let sent: HashSet<Uuid> = accepted.iter().map(|it| it.job_id).collect();
    let received: HashSet<Uuid> = arrivals.iter().map(|it| it.job_id).collect();

    let mut found = Vec::new();
    let mut expect = |what: &str, value: i64, expected: i64| {
        if value != expected {
            found.push(format!("{}: {what}: {value} instead of {expected}", stack.database));
        }
    };
    expect("jobs finished", row.get(0), delivered + filled.finished);
    expect("jobs failed", row.get(1), 0);
    expect("jobs unfinished", row.get(2), filled.future);
    expect("outbox rows", row.get(3), filled.future);
    expect("accepted jobs not received", i64::try_from(sent.difference(&received).count())?, 0);
    expect("different jobs received", i64::try_from(received.len())?, delivered);
    expect("deliveries", i64::try_from(arrivals.len())?, delivered);
    // Not over millions of rows that SQL has written.
    if filled.finished == 0 {
        found.extend(broken_invariants(stack, filled).await?);
    }
    Ok(found)
}

/// What `outhook check` says of the database.
async fn broken_invariants(stack: &Stack<'_>, filled: Filled) -> anyhow::Result<Vec<String>> {
    let mut connection = PgConnection::connect(&stack.database_url()).await?;
    begin_snapshot(&mut connection, CHECK_TIMEOUT).await?;
    // A worker that has just delivered its last job may still hold a transaction for a moment.
    let bounds = Bounds { overdue: Duration::from_secs(5), max_retries: None };
    let at_rest = if filled.future == 0 { AT_REST } else { "" };
    let mut found = Vec::new();
    for invariant in [ALWAYS, at_rest].into_iter().flat_map(invariants) {
        let violation = check(&mut connection, invariant, bounds).await?;
        found.extend(violation.map(|violation| format!("{}: {violation}", stack.database)));
    }
    Ok(found)
}
