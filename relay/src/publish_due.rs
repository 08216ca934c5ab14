//! One batch of a lane: claim → publish → confirm → mark.

use std::time::{Duration, SystemTime};

use outbox::due::ordering;
use outbox::due::{self, DueRow, Statements};
use outbox::service::database::DatabaseError;
use outbox::{kill_point, kill_point_in};
use tokio::time::Instant;
use tokio_postgres::{Client, GenericClient};
use tracing::{debug, warn};

use crate::config::PublishConfig;
use crate::confirms::Confirm;
use crate::publisher::Publisher;
use crate::scan_window::{LATE_COMMIT, ScanWindow};
use crate::upkeep::Latecomers;

/// Wait before a row that the broker refused, or did not answer, is published again. The lane's own
/// backoff comes on top: after a failure it reconnects first.
const REFUSED_DELAY: Duration = Duration::from_millis(500);

/// Rows that are read ahead at once.
const PAGE: u16 = 20_000;

/// Batches of the window that are tried for one that is free, in one transaction.
const WINDOW_TRIES: u32 = 20;

/// A lane's connection to Postgres.
pub(crate) struct Database {
    pub client: Client,
    pub statements: Statements,
}

/// What a batch came to.
pub(crate) struct Batch {
    /// Rows that were claimed; as many as asked for means that there may be more.
    pub claimed: usize,
    /// Whether the broker took none of what was published.
    pub all_refused: bool,
}

/// How a lane finds what is due: by due time, as long as one batch takes it all; then by reading ahead.
pub(crate) struct Search {
    /// Since when the last row was due: the next look goes on from there.
    last: Option<SystemTime>,
    window: ScanWindow,
    latecomers: Latecomers,
    /// Whether the last batch was of latecomers.
    was_late: bool,
}

impl Search {
    pub(crate) fn new(latecomers: Latecomers) -> Self {
        Self { last: None, window: ScanWindow::default(), latecomers, was_late: false }
    }
}

/// Publishes up to `limit` rows that are due. A crash at any point frees the rows as they were.
pub(crate) async fn publish_due(
    Database { client, statements }: &mut Database,
    publisher: &mut Publisher,
    search: &mut Search,
    limit: u32,
    config: &PublishConfig,
) -> Result<Batch, DatabaseError> {
    read_ahead(client, statements, &mut search.window).await?;
    let transaction = client.transaction().await?;
    let claimed = claim(&transaction, statements, search, limit).await?;
    if claimed.is_empty() {
        // Not the end, if there is more to be looked at.
        let claimed = if search.window.has_rows() { limit as usize } else { 0 };
        return Ok(Batch { claimed, all_refused: false });
    }
    kill_point!("relay.after_claim");
    let batch_size = claimed.len();
    let rows = due::sift_published(&transaction, claimed).await?;
    let mut rows = ordering::line_up(&transaction, rows).await?;
    let confirms = publisher.publish(&mut rows).await;

    kill_point!("relay.before_mark");
    let (confirmed, others) = split(&rows, &confirms);
    if !confirmed.is_empty() {
        due::mark_published(&transaction, statements, &confirmed, config.republish_interval()).await?;
    }
    if !others.is_empty() {
        due::postpone(&transaction, &others, REFUSED_DELAY).await?;
    }
    kill_point!("relay.before_commit");
    kill_point_in!("relay.in_commit", transaction.commit()).await?;
    kill_point!("relay.after_commit");

    count(&rows, &confirms);
    if !others.is_empty() {
        warn!(
            confirmed = confirmed.len(),
            others = others.len(),
            "RabbitMQ did not confirm all: see the limits of its queue; the others stay due"
        );
    }
    debug!(claimed = batch_size, confirmed = confirmed.len(), others = others.len(), "published");
    let all_refused = confirmed.is_empty() && !others.is_empty();
    // There may be more while a window is open, and after latecomers.
    let claimed = if search.window.is_open() || search.was_late { limit as usize } else { batch_size };
    Ok(Batch { claimed, all_refused })
}

/// Reads the next page of what is due, while there is more than one batch takes.
async fn read_ahead(client: &Client, statements: &Statements, window: &mut ScanWindow) -> Result<(), DatabaseError> {
    let began = Instant::now();
    window.renew(began);
    if window.wants_page(began) {
        let page = due::scan_due(client, statements, PAGE.into(), window.position()).await?;
        window.read(page, PAGE.into(), Instant::now(), began.elapsed());
    }
    Ok(())
}

async fn claim(
    transaction: &impl GenericClient,
    statements: &Statements,
    Search { last, window, latecomers, was_late }: &mut Search,
    limit: u32,
) -> Result<Vec<DueRow>, DatabaseError> {
    let late = latecomers.take();
    if window.is_open() {
        window.add(late);
    } else if !late.is_empty() {
        let ids: Vec<i64> = late.iter().take(limit as usize).map(|((_, id), _)| *id).collect();
        let claimed = due::claim_chosen(transaction, statements, &ids).await?;
        *was_late = !claimed.is_empty();
        if *was_late {
            return Ok(claimed);
        }
    }
    *was_late = false;
    // What somebody else holds, or has published meanwhile, comes up empty: there is more behind it.
    for _ in 0..WINDOW_TRIES {
        if !window.has_rows() {
            break;
        }
        let claimed = due::claim_chosen(transaction, statements, &window.take(limit as usize)).await?;
        if !claimed.is_empty() {
            return Ok(claimed);
        }
    }
    if window.has_rows() {
        return Ok(Vec::new());
    }
    let since = last.map(|last| last - LATE_COMMIT);
    let claimed = due::claim_due(transaction, statements, limit.into(), since).await?;
    *last = claimed.last().map(|row| row.due_at).or(*last);
    if claimed.len() == limit as usize && !window.is_open() {
        window.open(Instant::now());
    }
    Ok(claimed)
}

/// The ids of the confirmed rows, and those of the others.
fn split(rows: &[DueRow], confirms: &[Confirm]) -> (Vec<i64>, Vec<i64>) {
    let (mut confirmed, mut others) = (Vec::new(), Vec::new());
    for (row, confirm) in rows.iter().zip(confirms) {
        if *confirm == Confirm::Confirmed { confirmed.push(row.id()) } else { others.push(row.id()) }
    }
    (confirmed, others)
}

fn count(rows: &[DueRow], confirms: &[Confirm]) {
    for (row, confirm) in rows.iter().zip(confirms) {
        match confirm {
            Confirm::Confirmed if row.was_published => {
                metrics::counter!("outhook_relay_republished_total").increment(1);
            }
            Confirm::Confirmed => metrics::counter!("outhook_relay_published_total").increment(1),
            Confirm::Refused => metrics::counter!("outhook_relay_refused_total").increment(1),
            Confirm::Unknown => metrics::counter!("outhook_relay_unconfirmed_total").increment(1),
        }
    }
    metrics::histogram!("outhook_relay_batch_size").record(u32::try_from(rows.len()).unwrap_or(u32::MAX));
}
