//! The load generator: one thread with a runtime of its own, so that it costs little and its costs are known.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};
use uuid::Uuid;

use crate::http::Connection;

/// What a run may take longer than it is meant to, before it is given up.
const GRACE: Duration = Duration::from_mins(1);

/// A count of requests has no time of its own: this is the longest that is waited for it.
const LONGEST: Duration = Duration::from_mins(15);

/// When the requests are sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// So many, each as soon as its connection is free.
    Count(u64),
    /// For so long, each as soon as its connection is free.
    Time(Duration),
    /// So many a second for so long, whether or not earlier ones were answered.
    Rate(f64, Duration),
}

impl Pace {
    /// When the request of this number is to be sent, or `None` at the end.
    fn due(self, number: u64, started: Instant) -> Option<Instant> {
        let now = Instant::now();
        match self {
            Self::Count(count) => (number < count).then_some(now),
            Self::Time(time) => (now < started + time).then_some(now),
            Self::Rate(rate, time) => {
                #[allow(clippy::cast_precision_loss, reason = "no run has 2^52 requests")]
                let after = Duration::from_secs_f64(number as f64 / rate);
                (after < time).then(|| started + after)
            }
        }
    }

    fn limit(self) -> Duration {
        match self {
            Self::Count(_) => LONGEST,
            Self::Time(time) | Self::Rate(_, time) => time + GRACE,
        }
    }
}

/// A request that was answered with 202.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accepted {
    /// Its job.
    pub job_id: Uuid,
    /// When it was sent; or when it should have been, if its connection was not free by then.
    pub due: Instant,
    /// When the whole answer was there.
    pub answered: Instant,
}

/// What came of a run.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// What was accepted, in the order of each connection.
    pub accepted: Vec<Accepted>,
    /// Answers other than 202.
    pub refused: usize,
}

impl Run {
    /// From when a request was due to its answer.
    pub(crate) fn latencies(&self) -> impl Iterator<Item = Duration> {
        self.accepted.iter().map(|it| it.answered - it.due)
    }

    /// From the first request to the last answer.
    pub(crate) fn duration(&self) -> Duration {
        let first = self.accepted.iter().map(|it| it.due).min();
        let last = self.accepted.iter().map(|it| it.answered).max();
        first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first)
    }

    /// Answers a second.
    #[allow(clippy::cast_precision_loss, reason = "no run has 2^52 requests")]
    pub(crate) fn rate(&self) -> f64 {
        self.accepted.len() as f64 / self.duration().as_secs_f64().max(f64::EPSILON)
    }

    /// Fails unless all was accepted.
    pub(crate) fn all_accepted(self) -> anyhow::Result<Self> {
        if self.refused > 0 || self.accepted.is_empty() {
            bail!("{} requests were not answered with 202, {} were", self.refused, self.accepted.len());
        }
        Ok(self)
    }
}

/// Posts the request over so many connections, all open before the first one is sent.
pub(crate) async fn run(address: SocketAddr, request: Vec<u8>, connections: usize, pace: Pace) -> anyhow::Result<Run> {
    let (sender, receiver) = oneshot::channel();
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("load".to_owned()).spawn(move || {
        let outcome =
            runtime.block_on(async { timeout(pace.limit(), drive(address, request, connections, pace)).await });
        // Nobody listens when the bench is being stopped.
        let _ = sender.send(outcome);
    })?;
    receiver.await?.context("the requests were not answered in time")?
}

async fn drive(address: SocketAddr, request: Vec<u8>, connections: usize, pace: Pace) -> anyhow::Result<Run> {
    let mut open = Vec::with_capacity(connections);
    for _ in 0..connections {
        open.push(Connection::open(address).await?);
    }
    let (request, next, started) = (Arc::new(request), Arc::new(AtomicU64::new(0)), Instant::now());
    let mut senders = JoinSet::new();
    for connection in open {
        senders.spawn(send(connection, Arc::clone(&request), Arc::clone(&next), pace, started));
    }
    let mut run = Run::default();
    while let Some(sent) = senders.join_next().await {
        let sent = sent.context("a sender panicked")??;
        run.accepted.extend(sent.accepted);
        run.refused += sent.refused;
    }
    Ok(run)
}

/// Sends over one connection until the run is at its end.
async fn send(
    mut connection: Connection,
    request: Arc<Vec<u8>>,
    next: Arc<AtomicU64>,
    pace: Pace,
    started: Instant,
) -> anyhow::Result<Run> {
    let mut run = Run::default();
    while let Some(mut due) = pace.due(next.fetch_add(1, Ordering::Relaxed), started) {
        if due > Instant::now() {
            sleep_until(due.into()).await;
            // The timer is late by up to a millisecond, which is none of the api's. A connection that was not
            // free in time is: then the time that it was due stands.
            due = Instant::now();
        }
        let answer = connection.exchange(&request).await?;
        let answered = Instant::now();
        match (answer.status, job_id(answer.body)) {
            (202, Some(job_id)) => run.accepted.push(Accepted { job_id, due, answered }),
            _ => run.refused += 1,
        }
    }
    Ok(run)
}

/// The job's id in the api's answer.
fn job_id(body: &[u8]) -> Option<Uuid> {
    const BEFORE: &[u8] = b"\"job_id\":\"";
    let start = body.windows(BEFORE.len()).position(|window| window == BEFORE)? + BEFORE.len();
    Uuid::try_parse_ascii(body.get(start..start + 36)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_job_in_the_answer() {
        let id = Uuid::from_u128(7);
        let body = format!(r#"{{"job_id":"{id}","status":"pending"}}"#);
        assert_eq!(job_id(body.as_bytes()), Some(id));
        assert_eq!(job_id(b"{}"), None);
    }

    #[test]
    fn a_rate_has_an_end() {
        let (started, pace) = (Instant::now(), Pace::Rate(50.0, Duration::from_secs(2)));
        assert_eq!(pace.due(99, started), Some(started + Duration::from_millis(1_980)));
        assert_eq!(pace.due(100, started), None);
    }
}
