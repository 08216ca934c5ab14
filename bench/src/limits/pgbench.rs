//! Postgres alone: pgbench inserts a job and its outbox row, as one statement and one commit.

use anyhow::Context;
use tokio::process::Command;

use crate::limits::{HUNDRED_A_COMMIT, ONE_A_COMMIT, TITLE};
use crate::phases::Bench;
use crate::report::{Report, Unit};
use crate::services::output;
use crate::stack::{Stack, payload};

const CLIENTS: &str = "64";

pub(crate) async fn run(bench: &Bench<'_>, report: &mut Report) -> anyhow::Result<()> {
    for (key, name, rows) in [
        (ONE_A_COMMIT, "pgbench, job and outbox row, one a commit, 64 clients", 1),
        (HUNDRED_A_COMMIT, "pgbench, the same, 100 a commit, 64 clients", 100),
    ] {
        bench.progress.step(name);
        let transactions = transactions_per_second(bench, rows).await?;
        report.section(TITLE).add(key, name, Unit::PerSecond, transactions * f64::from(rows));
    }
    Ok(())
}

async fn transactions_per_second(bench: &Bench<'_>, rows: u32) -> anyhow::Result<f64> {
    let stack = Stack::create(&bench.site).await?;
    let script = bench.site.logs.join(format!("pgbench-{rows}.sql"));
    std::fs::write(&script, statement(rows))?;
    let mut command = Command::new(bench.site.servers.postgres_program("pgbench"));
    command
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=2", "--client", CLIENTS, "--time"])
        .arg(bench.scale.limit.as_secs().to_string())
        .arg("--file")
        .arg(script)
        .arg(bench.site.servers.database_url(&stack.database));
    let printed = output(&mut command, bench.scale.limit * 10).await?;
    stack.remove().await?;
    read_rate(&printed).context("pgbench printed no tps")
}

/// As `outbox::job::accept` does it, but for what is an array there. On one line: pgbench ends a statement only at
/// a semicolon.
fn statement(rows: u32) -> String {
    format!(
        "WITH accepted AS (\
           INSERT INTO webhook_jobs (id, outbox_id, client_url, payload) \
           SELECT outhook.uuid_v7(), nextval('outbox_id_seq'), 'http://127.0.0.1:9080/hook', '{}' \
           FROM generate_series(1, {rows}) RETURNING id, outbox_id) \
         INSERT INTO outbox (id, job_id, attempt, due_at) SELECT outbox_id, id, 0, now() FROM accepted;\n",
        // A colon would begin one of pgbench's variables.
        payload().replace(':', " "),
    )
}

fn read_rate(printed: &str) -> Option<f64> {
    printed.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    #[test]
    fn finds_the_rate() {
        let printed = "latency average = 7.0 ms\ntps = 9021.125 (without initial connection time)\n";
        assert_eq!(super::read_rate(printed), Some(9_021.125));
    }
}
