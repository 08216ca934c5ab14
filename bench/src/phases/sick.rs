//! A destination that never answers, under many webhooks: what the others feel of it, and what it costs.

use std::net::SocketAddr;

use anyhow::Context;
use tokio::net::TcpListener;

use crate::distribution::Distribution;
use crate::load::Pace;
use crate::phases::Bench;
use crate::phases::conservation::{self, Filled};
use crate::phases::latency::{from_accepted, post_and_receive};
use crate::report::{Report, Unit};
use crate::stack::{Stack, payload};

/// Webhooks a second to a destination that is well.
const RATE: f64 = 500.0;

/// Webhooks to the one that is not: fewer with --quick.
const SICK: i64 = 20_000;

/// Runs that [`run`] announces.
pub(crate) const STEPS: u64 = 2;

pub(crate) async fn run(bench: &Bench<'_>, report: &mut Report) -> anyhow::Result<()> {
    once(bench, report, 0).await?;
    once(bench, report, if bench.options.quick { SICK / 4 } else { SICK }).await?;
    let median = |key: &str| report.find(key).map_or(f64::NAN, crate::report::Figure::median);
    let ratios = ["p50", "p99"].map(|it| median(&format!("sick.beside.{it}")) / median(&format!("sick.alone.{it}")));
    let section = report.section("Beside a sick destination, relative to alone");
    section.add("sick.ratio.p50", "202 to received, p50", Unit::Times, ratios[0]);
    section.add("sick.ratio.p99", "202 to received, p99", Unit::Times, ratios[1]);
    Ok(())
}

async fn once(bench: &Bench<'_>, report: &mut Report, sick: i64) -> anyhow::Result<()> {
    let (key, title) = if sick > 0 { ("beside", "Beside a sick destination") } else { ("alone", "Without it") };
    bench.progress.step(title);
    let (relays, workers) = bench.deliveries();
    let stack = Stack::start(&bench.site, relays, workers).await?;
    let silent = never_answers().await?;
    let url = format!("http://{silent}/hook");
    let enqueue = "SELECT count(outhook.enqueue($1, $2)) FROM generate_series(1, $3::bigint)";
    stack.client.query_one(enqueue, &[&url, &payload(), &sick]).await?;
    let wal = stack.wal_bytes().await?;

    let pace = Pace::Rate(RATE, bench.options.beside_sick());
    let (run, arrivals) = post_and_receive(&stack, pace).await?;
    conservation::settled(&stack, sick).await?;
    let wal = stack.wal_bytes().await? - wal;
    let attempts = stack.count("SELECT count(*) FROM webhook_attempts WHERE outcome <> 'success'").await?;
    let updates = stack.count("SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'outbox'").await?;
    let filled = Filled { future: sick, ..Filled::default() };
    report.violations.extend(conservation::violations(&stack, &run.accepted, &arrivals, filled).await?);

    let (section, key) = (report.section(title), format!("sick.{key}"));
    let latencies: Distribution = from_accepted(&run.accepted, &arrivals);
    latencies.add_to(section, &key, "202 to received at 500 jobs/s");
    let mut add = |figure: &str, name, unit, value: i64| -> anyhow::Result<()> {
        section.add(&format!("{key}.{figure}"), name, unit, f64::from(i32::try_from(value).context("too many")?));
        Ok(())
    };
    add("wal", "write-ahead log", Unit::Bytes, wal)?;
    add("updates", "updates of outbox", Unit::Rows, updates)?;
    add("attempts", "attempts at the sick destination", Unit::Rows, attempts)?;
    stack.remove().await
}

/// Takes every connection and says nothing, until the process ends.
async fn never_answers() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            held.push(connection);
        }
    });
    Ok(address)
}
