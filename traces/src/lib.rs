//! OpenTelemetry traces: a webhook is one trace, from its acceptance to the record of its last attempt. The stored
//! `traceparent` carries it through Postgres, that of the message through RabbitMQ, and the request's to the receiver.
//!
//! Off unless a collector is configured: then each function here is one look at a static, and nothing else.

mod config;
mod export;
mod sampling;
mod spans;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, SpanLimits};
use outbox::service::clock;
use outbox::service::reload::Renewed;
use reqwest::header::HeaderMap;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::{info, warn};

pub use config::TracesConfig;
pub use export::{EXPORTED, LOST};
pub use spans::{Attempt, Span, accept, claim, publish, request, settle};

use crate::export::{Exporter, Queue, Queued};
use crate::sampling::JobIds;

/// Spans that wait for the collector. Those beyond are lost, and nobody waits.
const QUEUE: usize = 16_384;

/// At its end a process waits no longer for the collector.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

static TRACES: OnceLock<Traces> = OnceLock::new();

struct Traces {
    tracer: SdkTracer,
    queue: mpsc::Sender<Queued>,
    /// As they were read last: see [`outbox::service::reload`].
    headers: Arc<Renewed<HeaderMap>>,
}

/// Makes traces from here on, if the configuration says where to; done once. `service` is the process's own name.
///
/// # Errors
/// The HTTP client cannot be set up.
pub fn start(config: &TracesConfig, service: &'static str) -> anyhow::Result<()> {
    let Some(endpoint) = config.endpoint() else { return Ok(()) };
    let headers = Arc::new(Renewed::new(config.headers()));
    let exporter = Exporter::new(endpoint, Arc::clone(&headers), &config.resource(service))?;
    let (queue, spans) = mpsc::channel(QUEUE);
    let provider = SdkTracerProvider::builder()
        .with_span_processor(Queue(queue.clone()))
        .with_sampler(config.sampler())
        .with_id_generator(JobIds::default())
        // Not those of the environment.
        .with_span_limits(SpanLimits::default())
        .build();
    let traces = Traces { tracer: provider.tracer("outhook"), queue, headers };
    if TRACES.set(traces).is_ok() {
        tokio::spawn(exporter.run(spans));
        info!("traces go to the collector");
    }
    Ok(())
}

/// Takes the headers of a configuration that was read anew.
pub fn renew(config: &TracesConfig) {
    if let Some(traces) = TRACES.get() {
        traces.headers.set(config.headers());
    }
}

/// Waits until the collector has what has ended so far, but not for long.
pub async fn flush() {
    let Some(traces) = TRACES.get() else { return };
    let (done, exported) = oneshot::channel();
    let flushed = async {
        traces.queue.send(Queued::Flush(done)).await.ok()?;
        exported.await.ok()
    };
    if timeout(FLUSH_TIMEOUT, flushed).await.is_err() {
        warn!("the collector does not take the last spans: they are lost");
    }
}

/// Whether traces are made.
#[must_use]
pub fn are_on() -> bool {
    TRACES.get().is_some()
}

/// The time, if traces are made.
#[must_use]
pub fn now() -> Option<SystemTime> {
    are_on().then(|| clock::now().into())
}
