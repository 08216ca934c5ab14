//! HTTP alone: what the worker's client and our receiver reach without Outhook, and what the load generator
//! reaches against a server that does nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use reqwest::Client;
use reqwest::redirect::Policy;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::http::signed_post;
use crate::limits::{LOAD, POSTS, TITLE};
use crate::load::{self, Pace};
use crate::phases::Bench;
use crate::receiver::{Receiver, Role};
use crate::report::{Report, Unit, per_second};
use crate::stack::payload;

/// Requests under way at once: the worker's default, and the connections of the headline figures.
const CONCURRENCY: usize = 64;

const TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) async fn run(bench: &Bench<'_>, report: &mut Report) -> anyhow::Result<()> {
    bench.progress.step("bare POSTs");
    let started = Instant::now();
    let posts = posts(bench).await?;
    let rate = per_second(posts, started.elapsed());
    let name = "bare POSTs, the worker's client to the bench's receiver";
    report.section(TITLE).add(POSTS, name, Unit::PerSecond, rate);

    bench.progress.step("the load generator alone");
    let nothing = Receiver::start(Role::Api).await?;
    let request = signed_post(nothing.address(), "secret", &payload());
    let run =
        load::run(nothing.address(), request, CONCURRENCY, Pace::Time(bench.scale.limit)).await?.all_accepted()?;
    let name = "the load generator, against a server that only answers 202";
    report.section(TITLE).add(LOAD, name, Unit::PerSecond, run.rate());
    Ok(())
}

/// Posts until the time is over and returns how often.
async fn posts(bench: &Bench<'_>) -> anyhow::Result<u64> {
    bench.site.receiver.take()?;
    let (client, url) = (client()?, bench.site.receiver.url());
    let end = Instant::now() + bench.scale.limit;
    let mut senders = JoinSet::new();
    for _ in 0..CONCURRENCY {
        senders.spawn(post_until(end, client.clone(), url.clone()));
    }
    let mut posts = 0;
    while let Some(sent) = senders.join_next().await {
        posts += sent.context("a sender panicked")??;
    }
    ensure!(bench.site.receiver.take()?.len() as u64 == posts, "the receiver saw another number of POSTs");
    Ok(posts)
}

/// The same settings as in `worker/src/sender.rs`, but for the guard of its resolver: our URL has no name.
fn client() -> anyhow::Result<Client> {
    let client = Client::builder()
        .user_agent("outhook-bench")
        .redirect(Policy::none())
        .no_proxy()
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(TIMEOUT)
        .pool_idle_timeout(Duration::from_secs(30))
        .pool_max_idle_per_host(CONCURRENCY);
    Ok(client.build()?)
}

async fn post_until(end: Instant, client: Client, url: String) -> anyhow::Result<u64> {
    let (payload, mut posts) = (payload(), 0);
    while Instant::now() < end {
        // As many headers, and as long, as a delivery has.
        let id = Uuid::now_v7().to_string();
        let request = client
            .post(&url)
            .timeout(TIMEOUT)
            .header("content-type", "application/json")
            .header("x-webhook-job-id", &id)
            .header("x-webhook-attempt", "1")
            .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")
            .header("webhook-id", &id)
            .header("webhook-timestamp", "1790000000")
            .header("webhook-signature", "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=")
            .body(payload.clone());
        request.send().await?.error_for_status()?.bytes().await?;
        posts += 1;
    }
    Ok(posts)
}
