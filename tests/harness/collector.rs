//! A collector of traces that keeps what it is sent: OTLP over HTTP, read by the specification's own messages.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::wait::{PATIENCE, wait_until};

/// A listening collector. It ends when it is dropped.
pub struct Collector {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    serving: JoinHandle<()>,
}

/// A request with spans.
#[derive(Clone)]
pub struct Request {
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, as it came.
    pub body: Bytes,
}

/// A span, its ids in hexadecimal.
#[derive(Clone, Debug)]
pub struct Span {
    /// Attributes of the process that it is of.
    pub resource: BTreeMap<String, String>,
    /// Its name.
    pub name: String,
    /// What it is to others.
    pub kind: SpanKind,
    /// Its trace.
    pub trace_id: String,
    /// Itself.
    pub span_id: String,
    /// The span that it is under; empty if it is under none.
    pub parent_id: String,
    /// When it began and ended, in nanoseconds since 1970.
    pub time: (u64, u64),
    /// Its attributes, as text.
    pub attributes: BTreeMap<String, String>,
    /// Whether it says that it failed.
    pub failed: bool,
}

impl Span {
    /// The service that it is of.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.resource["service.name"]
    }

    /// What its name says first: `publish` of `publish webhooks:webhook.jobs`.
    #[must_use]
    pub fn verb(&self) -> &str {
        self.name.split(' ').next().unwrap_or_default()
    }

    /// An attribute; empty if it has none of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    /// The traceparent that says it is the parent.
    #[must_use]
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-01", self.trace_id, self.span_id)
    }
}

impl Collector {
    /// Listens on a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound socket has an address");
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let router = Router::new().route("/v1/traces", post(keep)).with_state(Arc::clone(&requests));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves for ever") });
        Self { address, requests, serving }
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` has to be.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All spans so far, in the order in which they began.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        let mut spans: Vec<Span> = self.requests().iter().flat_map(|request| read(&request.body)).collect();
        spans.sort_by_key(|span| span.time);
        spans
    }

    /// The spans of a job.
    #[must_use]
    pub fn spans_of(&self, job_id: uuid::Uuid) -> Vec<Span> {
        let job_id = job_id.to_string();
        self.spans().into_iter().filter(|span| span.get("outhook.job_id") == job_id).collect()
    }

    /// Waits until a job has so many.
    pub async fn wait_for(&self, job_id: uuid::Uuid, count: usize) -> Vec<Span> {
        wait_until("the job's spans", PATIENCE, async || self.spans_of(job_id).len() >= count).await;
        self.spans_of(job_id)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn keep(State(requests): State<Arc<Mutex<Vec<Request>>>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    requests.lock().unwrap_or_else(PoisonError::into_inner).push(Request { headers, body });
    StatusCode::OK
}

fn read(body: &[u8]) -> Vec<Span> {
    let request = ExportTraceServiceRequest::decode(body).expect("it is the specification's message");
    let mut spans = Vec::new();
    for resource_spans in request.resource_spans {
        let resource = text(resource_spans.resource.map(|resource| resource.attributes).unwrap_or_default());
        for span in resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.push(Span {
                resource: resource.clone(),
                kind: span.kind(),
                name: span.name,
                trace_id: hex::encode(span.trace_id),
                span_id: hex::encode(span.span_id),
                parent_id: hex::encode(span.parent_span_id),
                time: (span.start_time_unix_nano, span.end_time_unix_nano),
                attributes: text(span.attributes),
                failed: span.status.is_some_and(|status| status.code() == SpanStatus::Error),
            });
        }
    }
    spans
}

fn text(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |attribute: KeyValue| {
        let value = match attribute.value.and_then(|value| value.value) {
            Some(Value::StringValue(text)) => text,
            Some(Value::IntValue(number)) => number.to_string(),
            other => format!("{other:?}"),
        };
        (attribute.key, value)
    };
    attributes.into_iter().map(text).collect()
}
