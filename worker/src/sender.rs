//! One HTTP request, bounded in every way.

mod detours;
mod outgoing;
mod payload;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outbox::job::claim::Claimed;
use outbox::target::TargetPolicy;
use outbox::target::headers::{self, HeaderError};
use reqwest::Client;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout_at};
use url::Url;

use self::detours::Detours;
use self::outgoing::{Outgoing, Sent, send};
use crate::config::DeliveryConfig;
use crate::egress::EgressConfig;
use crate::keyring::Keyring;
use crate::response::{Exchange, Response};
use crate::send_error::SendError;
use crate::target_guard::{GuardedResolver, Lookup, SystemLookup};
use crate::tls::TlsSetupError;

/// A connection that is not used for this long is closed. Sooner than most receivers close it, whose time is
/// 5 s or more: a request that meets the other end's close on its way fails, for nobody knows whether it was
/// read.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// The status is known once the headers are there; a body is waited for no longer than this.
const BODY_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection of HTTP/2 carries all requests to its receiver. One that answers no PING in this time is dead, and the
/// next request opens another.
const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

const TRACEPARENT: &str = "traceparent";

pub(crate) struct Sender {
    client: Client,
    /// The same, with a connection of its own for each request.
    fresh_client: Client,
    detours: Detours,
    http2: bool,
    policy: TargetPolicy,
    /// Whether connections lead to a proxy, whose own address is none of the policy's business.
    by_proxy: bool,
    keyring: Keyring,
    timeout: Duration,
    excerpt_bytes: usize,
}

/// Why there is no sender.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// See there.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    /// The HTTP client does not take its settings.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(#[from] reqwest::Error),
}

impl Sender {
    pub(crate) fn new(
        config: &DeliveryConfig,
        policy: TargetPolicy,
        egress: &EgressConfig,
        keyring: Keyring,
    ) -> Result<Self, SetupError> {
        Self::with_lookup(config, policy, egress, keyring, SystemLookup)
    }

    fn with_lookup(
        config: &DeliveryConfig,
        policy: TargetPolicy,
        egress: &EgressConfig,
        keyring: Keyring,
        lookup: impl Lookup,
    ) -> Result<Self, SetupError> {
        let resolver = Arc::new(GuardedResolver::new(policy.clone(), lookup));
        let tls = egress.tls(config.http2)?;
        let client = |kept_connections: usize| {
            let mut builder = Client::builder()
                .user_agent(concat!("outhook/", env!("CARGO_PKG_VERSION")))
                // A redirect or the environment's proxy would lead past the guard; an attempt is one request.
                .redirect(Policy::none())
                .no_proxy()
                .retry(reqwest::retry::never())
                .referer(false)
                .tls_backend_preconfigured(tls.clone())
                // Shorter than the attempt, so that its record tells the one time-out from the other.
                .connect_timeout(config.timeout() * 3 / 4)
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_max_idle_per_host(kept_connections)
                .http2_keep_alive_interval(PING_INTERVAL)
                .http2_keep_alive_timeout(PING_TIMEOUT);
            if !config.http2 {
                builder = builder.http1_only();
            }
            builder = egress.apply(builder)?;
            // With a proxy, its own name is the only one that is resolved here.
            if !egress.has_proxy() {
                builder = builder.dns_resolver(Arc::clone(&resolver));
            }
            builder.build()
        };
        Ok(Self {
            client: client(config.worker_concurrency.into())?,
            fresh_client: client(0)?,
            detours: Detours::default(),
            http2: config.http2,
            policy,
            by_proxy: egress.has_proxy(),
            keyring,
            timeout: config.timeout(),
            excerpt_bytes: config.response_excerpt_bytes as usize,
        })
    }

    /// Posts the payload for the job, once, as this span of its trace. Takes no longer than the total time-out.
    pub(crate) async fn post(&self, job: &Claimed, payload: Bytes, traceparent: &str, now: OffsetDateTime) -> Exchange {
        let exchange = self.attempt(job, payload, traceparent, now).await;
        if let Err(SendError::Target(refused) | SendError::Addresses(refused)) = &exchange {
            metrics::counter!("outhook_worker_targets_refused_total", "reason" => refused.reason()).increment(1);
        }
        exchange
    }

    async fn attempt(&self, job: &Claimed, payload: Bytes, traceparent: &str, now: OffsetDateTime) -> Exchange {
        if let Some(column) = job.unreadable {
            return Err(SendError::Unreadable(column));
        }
        let url = self.policy.check_url(&job.client_url)?;
        let headers = self.headers(job, &payload, &url, traceparent, now)?;
        let own = job.timeout_ms.map(|timeout| Duration::from_millis(timeout.unsigned_abs().into()));
        let timeout = own.unwrap_or(self.timeout);
        let deadline = Instant::now() + timeout;
        let request = Outgoing { url, headers, payload };
        // The connection may have been what was wrong with the attempt before.
        let is_shared = job.retry_count == 0 && !self.detours.is_on(&request.url, Instant::now());
        let exchange = timeout_at(deadline, self.exchange(&request, is_shared, deadline)).await;
        exchange.unwrap_or_else(|_| {
            // A job that gives its receiver much less time than others says nothing about the connection.
            if is_shared && self.may_be_shared(&request.url) && timeout >= self.timeout / 2 {
                self.detours.begin(&request.url, Instant::now());
            }
            Err(SendError::Timeout(timeout))
        })
    }

    /// Whether requests of others may go by the same connection at the same time.
    fn may_be_shared(&self, url: &Url) -> bool {
        self.http2 && url.scheme() == "https"
    }

    async fn exchange(&self, request: &Outgoing, is_shared: bool, deadline: Instant) -> Exchange {
        let response = self.send(request, is_shared).await?;
        // The guard has checked what was connected to; should it ever be got round, it shows here.
        if let Some(peer) = response.remote_addr().filter(|_| !self.by_proxy) {
            self.policy.check_address(peer.ip())?;
        }
        let status = response.status().as_u16();
        let retry_after = response.headers().get_all(RETRY_AFTER).iter();
        let retry_after = retry_after.filter_map(|value| value.to_str().ok()).map(ToOwned::to_owned).collect();
        let body_deadline = deadline.min(Instant::now() + BODY_TIMEOUT);
        let excerpt = read_excerpt(response, self.excerpt_bytes, body_deadline).await;
        Ok(Response { status, retry_after, excerpt })
    }

    /// Sends it by a connection that was kept, and that others may share, or by one of its own.
    ///
    /// A receiver may take few requests at once on a connection and answer them slowly, or few at all, and refuse what is on
    /// its way beyond those: what has not begun to leave after a quarter of the time-out, and what it has not begun with, is
    /// sent by a connection of its own, once.
    async fn send(&self, request: &Outgoing, is_shared: bool) -> Result<reqwest::Response, SendError> {
        if !is_shared {
            return match send(&self.fresh_client, request, None).await? {
                Sent::Answered(response) => Ok(response),
                Sent::Unsent(error) => Err(error),
                Sent::NoTurn => unreachable!("it waits for its turn as long as that takes"),
            };
        }
        let patience = self.may_be_shared(&request.url).then_some(self.timeout / 4);
        match send(&self.client, request, patience).await? {
            Sent::Answered(response) => return Ok(response),
            Sent::NoTurn => self.detours.begin(&request.url, Instant::now()),
            Sent::Unsent(_) => {}
        }
        metrics::counter!("outhook_worker_resent_total").increment(1);
        // With what it has waited, as long as connecting may take.
        match send(&self.fresh_client, request, Some(self.timeout / 2)).await? {
            Sent::Answered(response) => Ok(response),
            Sent::Unsent(error) => Err(error),
            Sent::NoTurn => Err(SendError::not_connected()),
        }
    }

    fn headers(
        &self,
        job: &Claimed,
        payload: &[u8],
        url: &Url,
        traceparent: &str,
        now: OffsetDateTime,
    ) -> Result<HeaderMap, SendError> {
        let mut headers = headers::check(job.headers.as_object().ok_or(HeaderError::NotText)?)?;
        headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
        // A job may say itself which trace it belongs to.
        if !headers.contains_key(TRACEPARENT) {
            headers.insert(TRACEPARENT, header_value(traceparent));
        }
        // Ours last: a job's own headers never replace them.
        let id = job.job_id.to_string();
        let mut insert = |name: &'static str, value: &str| {
            headers.insert(name, header_value(value));
        };
        insert("x-webhook-job-id", &id);
        insert("x-webhook-attempt", &job.attempt.to_string());
        if let Some(keys) = self.keyring.keys_for(job, url)? {
            for (name, value) in keys.headers(&id, now.unix_timestamp(), payload) {
                insert(name, &value);
            }
        }
        Ok(headers)
    }
}

fn header_value(text: &str) -> HeaderValue {
    HeaderValue::try_from(text).expect("ids, numbers and base64 are header values")
}

/// Reads up to `limit` bytes and drops the rest. Whatever goes wrong here, the status stands.
async fn read_excerpt(mut response: reqwest::Response, limit: usize, deadline: Instant) -> String {
    let mut bytes = Vec::new();
    while bytes.len() <= limit {
        match timeout_at(deadline, response.chunk()).await {
            Ok(Ok(Some(chunk))) => bytes.extend_from_slice(&chunk[..chunk.len().min(limit + 1 - bytes.len())]),
            _ => break,
        }
    }
    bytes.truncate(limit);
    // Postgres text holds no U+0000.
    String::from_utf8_lossy(&bytes).replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod rebinding;

#[cfg(test)]
pub(crate) mod tests {
    use outbox::service::clock;
    use uuid::Uuid;

    use super::*;

    pub(crate) fn job() -> Claimed {
        Claimed {
            job_id: Uuid::from_u128(0xabc),
            attempt: 1,
            retry_count: 0,
            max_attempts: None,
            timeout_ms: None,
            ordered: false,
            client_url: String::new(),
            payload: String::new(),
            headers: serde_json::json!({}),
            unreadable: None,
            sealed_key: None,
            destination_keys: None,
            started_at: clock::now(),
            created_at: clock::now(),
        }
    }
}
