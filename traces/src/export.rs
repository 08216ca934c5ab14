//! The way of spans to the collector: a queue that nobody waits for, and a task that empties it. A collector that is away,
//! slow or hostile costs spans and nothing else.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use outbox::service::backoff::Backoff;
use outbox::service::reload::Renewed;
use outbox::service::telemetry::Metric;
use prost::Message;
use prost::bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Response};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};
use url::Url;

/// Spans in one request, and how long the first of them waits for the others.
const BATCH: usize = 512;
const GATHER: Duration = Duration::from_secs(1);

/// One request, from connecting to the end of the answer; the specification's own.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How often a batch is sent, if what is in the way may pass.
const TRIES: u32 = 3;

/// The answer says next to nothing. What is longer is not read.
const LONGEST_ANSWER: usize = 64 * 1_024;

/// A collector that has taken everything for so long is well again.
const WELL_AFTER: Duration = Duration::from_mins(1);

/// A metric of every process.
pub const EXPORTED: Metric = Metric::counter("outhook_spans_exported_total", "Spans that the collector has taken.");

/// The same.
pub const LOST: Metric = Metric::counters(
    "outhook_spans_lost_total",
    "reason",
    &["queue_full", "not_taken"],
    "Spans that are lost, because the collector is slower than they come, or does not take them.",
);

/// What waits for the collector.
pub(crate) enum Queued {
    Span(Box<SpanData>),
    /// Dropped when all that came before was sent.
    Flush(oneshot::Sender<()>),
}

/// Takes spans when they end, and never waits.
#[derive(Debug)]
pub(crate) struct Queue(pub mpsc::Sender<Queued>);

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.0.try_send(Queued::Span(Box::new(span))).is_err() {
            metrics::counter!("outhook_spans_lost_total", "reason" => "queue_full").increment(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Why spans were not taken, in words that name no host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Failure {
    #[error("no connection to it can be made")]
    NotReached,
    #[error("it does not answer in time")]
    NotInTime,
    #[error("it answers {0}")]
    Status(u16),
    #[error("the request was broken off")]
    BrokenOff,
}

impl Failure {
    fn of(error: &reqwest::Error) -> Self {
        match error {
            _ if error.is_timeout() => Self::NotInTime,
            _ if error.is_connect() => Self::NotReached,
            _ => Self::BrokenOff,
        }
    }

    /// Whether it may pass soon: the statuses are OTLP's. One that hangs has had its time.
    const fn passes(self) -> bool {
        matches!(self, Self::NotReached | Self::BrokenOff | Self::Status(429 | 502..=504))
    }
}

/// Sends spans to the collector.
pub(crate) struct Exporter {
    client: Client,
    endpoint: Url,
    headers: Arc<Renewed<HeaderMap>>,
    resource: ResourceAttributesWithSchema,
    /// When the collector took something not, if it is not well again since.
    trouble: Option<Instant>,
}

impl Exporter {
    pub(crate) fn new(endpoint: Url, headers: Arc<Renewed<HeaderMap>>, resource: &Resource) -> anyhow::Result<Self> {
        let client = Client::builder()
            .user_agent(concat!("outhook/", env!("CARGO_PKG_VERSION")))
            // Neither the collector nor the environment says where else spans go.
            .redirect(Policy::none())
            .no_proxy()
            .http1_only()
            .referer(false)
            .tls_backend_preconfigured(tls(&endpoint)?)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .pool_max_idle_per_host(1)
            .build()?;
        Ok(Self { client, endpoint, headers, resource: resource.into(), trouble: None })
    }

    /// Sends what comes, for as long as the process lives.
    pub(crate) async fn run(mut self, mut queue: mpsc::Receiver<Queued>) {
        while let Some(first) = queue.recv().await {
            let (spans, flushed) = gather(first, &mut queue).await;
            if !spans.is_empty() {
                self.export(spans).await;
            }
            drop(flushed);
        }
    }

    async fn export(&mut self, spans: Vec<SpanData>) {
        let count = spans.len() as u64;
        let resource_spans = group_spans_by_resource_and_scope(spans, &self.resource);
        let body = Bytes::from(ExportTraceServiceRequest { resource_spans }.encode_to_vec());
        let sent = self.send(body).await;
        let refused = sent.map_or(count, |refused| refused.min(count));
        metrics::counter!("outhook_spans_exported_total").increment(count - refused);
        metrics::counter!("outhook_spans_lost_total", "reason" => "not_taken").increment(refused);
        self.look(sent.err(), refused);
    }

    /// Sends a batch, again if need be. Returns how many of its spans the collector refuses.
    async fn send(&self, body: Bytes) -> Result<u64, Failure> {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(4));
        let mut tries = 0;
        loop {
            tries += 1;
            match self.send_once(body.clone()).await {
                Err(failure) if failure.passes() && tries < TRIES => sleep(backoff.next_wait()).await,
                sent => return sent,
            }
        }
    }

    async fn send_once(&self, body: Bytes) -> Result<u64, Failure> {
        let mut headers = HeaderMap::clone(&self.headers.get());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let sending = self.client.post(self.endpoint.clone()).headers(headers).body(body).send();
        let response = sending.await.map_err(|error| Failure::of(&error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(Failure::Status(status.as_u16()));
        }
        let answer = read(response).await.map_err(|error| Failure::of(&error))?;
        let answer = ExportTraceServiceResponse::decode(answer.as_slice()).unwrap_or_default();
        let refused = answer.partial_success.map_or(0, |it| it.rejected_spans);
        Ok(refused.max(0).cast_unsigned())
    }

    /// Says once that spans are lost, and once that they are no more.
    fn look(&mut self, failure: Option<Failure>, refused: u64) {
        let was_well = self.trouble.is_none();
        match failure {
            Some(failure) => {
                self.trouble = Some(Instant::now());
                if was_well {
                    warn!(%failure, "the collector takes no spans: they are lost until it does");
                }
            }
            None if refused > 0 => {
                self.trouble = Some(Instant::now());
                if was_well {
                    warn!(refused, "the collector refuses spans");
                }
            }
            None if self.trouble.is_some_and(|since| since.elapsed() > WELL_AFTER) => {
                self.trouble = None;
                info!("the collector takes spans again");
            }
            None => {}
        }
    }
}

/// A batch that begins with this: what comes within its time, up to a flush.
async fn gather(first: Queued, queue: &mut mpsc::Receiver<Queued>) -> (Vec<SpanData>, Option<oneshot::Sender<()>>) {
    let until = Instant::now() + GATHER;
    let mut spans = Vec::new();
    let mut next = Some(first);
    while let Some(queued) = next {
        match queued {
            Queued::Span(span) => spans.push(*span),
            Queued::Flush(flushed) => return (spans, Some(flushed)),
        }
        if spans.len() == BATCH {
            break;
        }
        next = timeout_at(until, queue.recv()).await.ok().flatten();
    }
    (spans, None)
}

/// The answer's body, or nothing of one that is too long.
async fn read(mut response: Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > LONGEST_ANSWER {
            return Ok(Vec::new());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Trusts whom the system trusts.
fn tls(endpoint: &Url) -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore::empty();
    if endpoint.scheme() == "https" {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    Ok(builder.with_safe_default_protocol_versions()?.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanBuilder, Tracer, TracerProvider};
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    #[test]
    fn a_full_queue_loses_spans_and_nobody_waits() {
        let (queue, mut spans) = mpsc::channel(1);
        let provider = SdkTracerProvider::builder().with_span_processor(Queue(queue)).build();
        let tracer = provider.tracer("test");
        for name in ["kept", "lost"] {
            drop(tracer.build_with_context(SpanBuilder::from_name(name), &Context::new()));
        }
        assert!(matches!(spans.try_recv(), Ok(Queued::Span(span)) if span.name == "kept"));
        assert!(spans.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_batch_ends_with_a_flush() {
        let (queue, mut spans) = mpsc::channel(10);
        let provider = SdkTracerProvider::builder().with_span_processor(Queue(queue.clone())).build();
        let tracer = provider.tracer("test");
        let (done, _) = oneshot::channel();
        drop(tracer.build_with_context(SpanBuilder::from_name("before"), &Context::new()));
        assert!(queue.try_send(Queued::Flush(done)).is_ok());
        drop(tracer.build_with_context(SpanBuilder::from_name("after"), &Context::new()));
        let first = spans.recv().await.expect("it was sent");
        let (batch, flushed) = gather(first, &mut spans).await;
        assert_eq!(batch.iter().map(|span| &*span.name).collect::<Vec<_>>(), ["before"]);
        assert!(flushed.is_some());
    }
}
