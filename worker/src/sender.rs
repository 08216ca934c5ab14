//! One HTTP request, bounded in every way.

use std::sync::Arc;
use std::time::Duration;

use outbox::claim::Claimed;
use outbox::headers::{self, HeaderError};
use outbox::target::TargetPolicy;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;
use url::Url;

use crate::config::DeliveryConfig;
use crate::egress::EgressConfig;
use crate::keyring::Keyring;
pub(crate) use crate::send_error::SendError;
use crate::send_error::{describe, lacks_descriptors};
use crate::target_guard::{GuardedResolver, Lookup, SystemLookup};

/// A connection that is not used for this long is closed. Sooner than most receivers close it, whose time is
/// 5 s or more: a request that meets the other end's close on its way fails, for nobody knows whether it was
/// read.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// The status is known once the headers are there; a body is waited for no longer than this.
const BODY_TIMEOUT: Duration = Duration::from_secs(2);

/// How soon to look again whether a file descriptor is free.
const DESCRIPTOR_WAIT: Duration = Duration::from_millis(100);

/// What the receiver answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The Retry-After header as it came.
    pub retry_after: Option<String>,
    /// Beginning of the body, made safe for text.
    pub excerpt: String,
}

pub(crate) struct Sender {
    client: Client,
    policy: TargetPolicy,
    /// Whether connections lead to a proxy, whose own address is none of the policy's business.
    by_proxy: bool,
    keyring: Keyring,
    timeout: Duration,
    excerpt_bytes: usize,
}

impl Sender {
    pub(crate) fn new(
        config: &DeliveryConfig,
        policy: TargetPolicy,
        egress: &EgressConfig,
        keyring: Keyring,
    ) -> Result<Self, reqwest::Error> {
        Self::with_lookup(config, policy, egress, keyring, SystemLookup)
    }

    fn with_lookup(
        config: &DeliveryConfig,
        policy: TargetPolicy,
        egress: &EgressConfig,
        keyring: Keyring,
        lookup: impl Lookup,
    ) -> Result<Self, reqwest::Error> {
        let mut builder = Client::builder()
            .user_agent(concat!("outhook/", env!("CARGO_PKG_VERSION")))
            // A redirect or the environment's proxy would lead past the guard; an attempt is one request.
            .redirect(Policy::none())
            .no_proxy()
            .retry(reqwest::retry::never())
            .referer(false)
            // Shorter than the attempt, so that its record tells the one time-out from the other.
            .connect_timeout(config.timeout() * 3 / 4)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(config.worker_concurrency.into());
        builder = egress.apply(builder)?;
        // With a proxy, its own name is the only one that is resolved here.
        if !egress.has_proxy() {
            builder = builder.dns_resolver(Arc::new(GuardedResolver::new(policy.clone(), lookup)));
        }
        Ok(Self {
            client: builder.build()?,
            policy,
            by_proxy: egress.has_proxy(),
            keyring,
            timeout: config.timeout(),
            excerpt_bytes: config.response_excerpt_bytes as usize,
        })
    }

    /// Posts the job's payload, once. Takes no longer than the total time-out.
    pub(crate) async fn post(
        &self,
        job: &Claimed,
        traceparent: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<Answer, SendError> {
        let answer = self.attempt(job, traceparent, now).await;
        if let Err(SendError::Target(refused)) = &answer {
            metrics::counter!("outhook_worker_targets_refused_total", "reason" => refused.reason()).increment(1);
        }
        answer
    }

    async fn attempt(
        &self,
        job: &Claimed,
        traceparent: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<Answer, SendError> {
        let url = self.policy.check_url(&job.client_url)?;
        let headers = self.headers(job, &url, traceparent, now)?;
        let own = job.timeout_ms.map(|timeout| Duration::from_millis(timeout.unsigned_abs().into()));
        let timeout = own.unwrap_or(self.timeout);
        let deadline = Instant::now() + timeout;
        let answer = timeout_at(deadline, self.exchange(url, headers, job.payload.clone(), deadline));
        answer.await.map_err(|_| SendError::Timeout(timeout))?
    }

    async fn exchange(
        &self,
        url: Url,
        headers: HeaderMap,
        payload: String,
        deadline: Instant,
    ) -> Result<Answer, SendError> {
        let response = self.send(self.client.post(url).headers(headers).body(payload)).await?;
        // The guard has checked what was connected to; should it ever be got round, it shows here.
        if let Some(peer) = response.remote_addr().filter(|_| !self.by_proxy) {
            self.policy.check_address(peer.ip())?;
        }
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
        let body_deadline = deadline.min(Instant::now() + BODY_TIMEOUT);
        let excerpt = read_excerpt(response, self.excerpt_bytes, body_deadline).await;
        Ok(Answer { status, retry_after, excerpt })
    }

    /// Sends the request. That no socket can be opened is no fault of the receiver's and must not count as a
    /// failed attempt: nothing was sent, so it waits, in its slot, for others to end.
    async fn send(&self, request: RequestBuilder) -> Result<Response, SendError> {
        let mut waited = false;
        loop {
            let again = request.try_clone().expect("a body of text can be sent again");
            match again.send().await {
                Ok(response) => return Ok(response),
                Err(error) if error.is_connect() && lacks_descriptors(&error) => {}
                Err(error) => return Err(describe(&error)),
            }
            if !waited {
                warn!("no file descriptor is free: waiting for one");
                metrics::counter!("outhook_worker_descriptor_waits_total").increment(1);
                waited = true;
            }
            sleep(DESCRIPTOR_WAIT).await;
        }
    }

    fn headers(
        &self,
        job: &Claimed,
        url: &Url,
        traceparent: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<HeaderMap, SendError> {
        let mut headers = headers::check(job.headers.as_object().ok_or(HeaderError::NotText)?)?;
        headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
        // Ours last: a job's own headers never replace them.
        let id = job.job_id.to_string();
        let mut insert = |name: &'static str, value: &str| {
            headers.insert(name, HeaderValue::try_from(value).expect("ids, numbers and base64 are header values"));
        };
        insert("x-webhook-job-id", &id);
        insert("x-webhook-attempt", &job.attempt.to_string());
        insert("traceparent", &child_of(traceparent, job));
        if let Some(keys) = self.keyring.keys_for(job, url)? {
            for (name, value) in keys.headers(&id, now.unix_timestamp(), job.payload.as_bytes()) {
                insert(name, &value);
            }
        }
        Ok(headers)
    }
}

/// The attempt's trace context (W3C Trace Context, level 1): the accepting request's trace, or else one
/// that bears the job's id; the attempt is a span of its own in it.
fn child_of(traceparent: Option<&str>, job: &Claimed) -> String {
    let hex = |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts: Option<Vec<&str>> = traceparent.map(|parent| parent.split('-').collect());
    let (trace, flags) = match parts.as_deref() {
        Some([_, trace, _, flags]) if hex(trace, 32) && hex(flags, 2) => ((*trace).to_owned(), (*flags).to_owned()),
        _ => (job.job_id.simple().to_string(), "00".to_owned()),
    };
    // A span id must not be zero.
    let span = rand::random_range(1..=u64::MAX);
    format!("00-{trace}-{span:016x}-{flags}")
}

/// Reads up to `limit` bytes and drops the rest. Whatever goes wrong here, the status stands.
async fn read_excerpt(mut response: Response, limit: usize, deadline: Instant) -> String {
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
mod tests {
    use outbox::clock;
    use uuid::Uuid;

    use super::*;

    pub(super) fn job() -> Claimed {
        Claimed {
            job_id: Uuid::from_u128(0xabc),
            attempt: 1,
            retry_count: 0,
            max_attempts: None,
            timeout_ms: None,
            ordering_key: None,
            client_url: String::new(),
            payload: String::new(),
            headers: serde_json::json!({}),
            sealed_key: None,
            destination_keys: None,
            started_at: clock::now(),
            created_at: clock::now(),
        }
    }

    #[test]
    fn an_attempt_is_a_span_of_the_callers_trace() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let child = child_of(Some(parent), &job());
        assert!(child.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"), "{child}");
        assert!(child.ends_with("-01") && child.len() == parent.len() && child != parent, "{child}");
    }

    #[test]
    fn without_a_caller_the_trace_bears_the_jobs_id() {
        for parent in [None, Some("garbage"), Some("00-xyz-1-01"), Some("00-\r\n-1-01")] {
            let child = child_of(parent, &job());
            assert!(child.starts_with("00-00000000000000000000000000000abc-"), "{child}");
        }
    }
}
