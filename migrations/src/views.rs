//! Locks that a migration takes in the order of those who read.

use tokio_postgres::Transaction;
use tokio_postgres::error::SqlState;

use crate::LOCK_TIMEOUT;

/// Locks the views, and so the tables beneath them, before anything of either is changed. In the order in which whoever reads
/// a view locks them: a migration that had a table already when it came to the views would wait for a reader that waits for it.
pub(crate) async fn lock_views(transaction: &Transaction<'_>) -> anyhow::Result<()> {
    let limit = LOCK_TIMEOUT.as_millis();
    let lock = format!(
        "SET LOCAL statement_timeout = '{limit}ms';
        DO $$
        DECLARE views text := (SELECT string_agg(format('%I.%I', schemaname, viewname), ', ' ORDER BY viewname)
                               FROM pg_views WHERE schemaname = 'outhook');
        BEGIN
            IF views IS NOT NULL THEN EXECUTE 'LOCK TABLE ' || views || ' IN ACCESS EXCLUSIVE MODE'; END IF;
        END $$;
        SET LOCAL statement_timeout = 0"
    );
    // All of them in the time of one: those that are locked already keep others waiting.
    match transaction.batch_execute(&lock).await {
        Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => Err(ViewsInUse.into()),
        locked => Ok(locked?),
    }
}

/// Somebody reads a view, or uses a table beneath it, for longer than a migration waits.
#[derive(Debug)]
pub(crate) struct ViewsInUse;

impl std::error::Error for ViewsInUse {}

impl std::fmt::Display for ViewsInUse {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("somebody uses the tables and views that are to be changed, and does not end")
    }
}
