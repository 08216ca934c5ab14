//! Where Postgres spends its time, by `pg_stat_statements`: for those who want to make it less.

use crate::report::{Report, Unit, for_each};
use crate::stack::Stack;

/// What Postgres must be started with.
pub(crate) const POSTGRES_OPTIONS: &str =
    "-c shared_preload_libraries=pg_stat_statements -c pg_stat_statements.track_planning=on";

/// Forgets what came before.
pub(crate) async fn reset(stack: &Stack<'_>) -> anyhow::Result<()> {
    let statement = "CREATE EXTENSION IF NOT EXISTS pg_stat_statements; SELECT pg_stat_statements_reset();";
    Ok(stack.client.batch_execute(statement).await?)
}

/// Adds the dearest statements of this database, each with its time for a job.
pub(crate) async fn add(stack: &Stack<'_>, report: &mut Report, jobs: u64) -> anyhow::Result<()> {
    let rows = stack
        .client
        .query(
            "SELECT coalesce(substring(query FROM '^-- ([a-z_]+)'), left(query, 40)), total_exec_time * 1000, calls,
                    wal_bytes::float8, total_plan_time * 1000
             FROM pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
             ORDER BY total_exec_time DESC LIMIT 12",
            &[],
        )
        .await?;
    let section = report.section("Postgres, by statement: execution time a job, without the commit");
    for row in rows {
        let (text, microseconds, calls): (String, f64, i64) = (row.get(0), row.get(1), row.get(2));
        let (wal, planning) = (for_each(row.get(3), jobs), for_each(row.get(4), jobs));
        let name = format!("{text} ({calls} calls; a job: {wal:.0} B of log, {planning:.1} µs of planning)");
        section.add(&format!("statement.{text}"), &name, Unit::Microseconds, for_each(microseconds, jobs));
    }
    Ok(())
}
