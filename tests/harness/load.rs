//! Many webhooks at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::client::send;
use crate::{Client, PATIENCE, Webhook};

/// Wait before a request that got no answer is sent again.
const REPEAT_AFTER: Duration = Duration::from_millis(20);

/// A burst of different webhooks, each with an idempotency key. As a careful caller does, it sends again
/// what got no answer or a 503, with the same key, until it knows.
pub struct Burst {
    senders: JoinHandle<Outcome>,
    answered: watch::Receiver<usize>,
}

/// What came of a burst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Answered with 202.
    pub accepted: usize,
    /// Answered with 200: an earlier request, whose answer was lost, had been accepted.
    pub known: usize,
    /// Requests sent again.
    pub repeated: usize,
}

impl Burst {
    /// Starts to post `count` webhooks over `connections` at once.
    #[must_use]
    pub fn start(client: &Client, client_url: &str, count: usize, connections: usize) -> Self {
        Self::start_like(client, &Webhook::to(client_url), count, connections)
    }

    /// The same with webhooks like this one, each with a payload of its own.
    #[must_use]
    pub fn start_like(client: &Client, webhook: &Webhook, count: usize, connections: usize) -> Self {
        let (answered, watched) = watch::channel(0);
        let next = Arc::new(AtomicUsize::new(0));
        let mut senders = JoinSet::new();
        for _ in 0..connections {
            let next = Arc::clone(&next);
            let (client, webhook, answered) = (client.clone(), webhook.clone(), answered.clone());
            senders.spawn(async move {
                let mut outcome = Outcome::default();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return outcome;
                    }
                    post(&client, webhook.clone(), number, &mut outcome).await;
                    answered.send_modify(|answered| *answered += 1);
                }
            });
        }
        Self { senders: tokio::spawn(sum(senders)), answered: watched }
    }

    /// Returns as soon as so many were answered.
    pub async fn wait_for(&mut self, count: usize) {
        let waited =
            tokio::time::timeout(PATIENCE, self.answered.wait_for(|answered| *answered >= count)).await.is_ok();
        assert!(waited, "waited in vain for {count} answers; there are {}", *self.answered.borrow());
    }

    /// Waits until all were answered.
    pub async fn outcome(self) -> Outcome {
        let outcome = tokio::time::timeout(5 * PATIENCE, self.senders).await;
        outcome.expect("the burst ends in time").expect("no sender panicked")
    }
}

/// Webhooks at a steady rate until it is stopped, from callers as careful as those of a [`Burst`].
pub struct Flow {
    senders: JoinHandle<Outcome>,
    stop: CancellationToken,
}

impl Flow {
    /// Starts to post `rate` webhooks a second, to the URLs in turn; the rate holds while an answer takes no
    /// longer than a second.
    #[must_use]
    pub fn start(client: &Client, urls: Vec<String>, rate: u32) -> Self {
        let stop = CancellationToken::new();
        let (next, urls) = (Arc::new(AtomicUsize::new(0)), Arc::new(urls));
        let started = Instant::now();
        let mut senders = JoinSet::new();
        for _ in 0..rate {
            let (next, urls, client, stop) = (Arc::clone(&next), Arc::clone(&urls), client.clone(), stop.clone());
            senders.spawn(async move {
                let mut outcome = Outcome::default();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let turn =
                        started + Duration::from_secs(1) * u32::try_from(number).expect("a flow ends before") / rate;
                    if stop.run_until_cancelled(sleep_until(turn)).await.is_none() {
                        return outcome;
                    }
                    post(&client, Webhook::to(&urls[number % urls.len()]), number, &mut outcome).await;
                }
            });
        }
        Self { senders: tokio::spawn(sum(senders)), stop }
    }

    /// Begins no more, and waits until all that was begun was answered.
    pub async fn stop(self) -> Outcome {
        self.stop.cancel();
        let outcome = tokio::time::timeout(5 * PATIENCE, self.senders).await;
        outcome.expect("the flow ends in time").expect("no sender panicked")
    }
}

async fn sum(senders: JoinSet<Outcome>) -> Outcome {
    senders.join_all().await.into_iter().fold(Outcome::default(), |sum, it| Outcome {
        accepted: sum.accepted + it.accepted,
        known: sum.known + it.known,
        repeated: sum.repeated + it.repeated,
    })
}

async fn post(client: &Client, webhook: Webhook, number: usize, outcome: &mut Outcome) {
    let payload = format!("{{\"number\": {number}}}");
    let body = webhook.payload(&payload).body();
    loop {
        let request = client.request(body.clone()).header("Idempotency-Key", format!("burst-{number}"));
        match send(request).await {
            Ok(response) if response.status == 202 || response.status == 200 => {
                client.remember(response.job_id(), Some(&payload));
                let counter = if response.status == 202 { &mut outcome.accepted } else { &mut outcome.known };
                *counter += 1;
                return;
            }
            Ok(response) => assert_eq!(response.status, 503, "{}", response.body),
            // The connection broke: nobody knows whether it was accepted.
            Err(_) => {}
        }
        outcome.repeated += 1;
        tokio::time::sleep(REPEAT_AFTER).await;
    }
}
