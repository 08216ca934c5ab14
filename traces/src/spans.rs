//! The spans of a webhook. Their attributes are those of OpenTelemetry's semantic conventions for HTTP and messaging, but
//! for what names a URL or a host, which no trace does; and the job and the number of the attempt.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer,
};
use opentelemetry::{Context, KeyValue};
use outbox::broker::topology::BrokerConfig;
use outbox::service::clock;
use outbox::trace_context::TraceParent;
use uuid::Uuid;

use crate::TRACES;
use crate::sampling::trace_of;

/// An attempt, whose spans go under the traceparent that came with it.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// The job.
    pub job_id: Uuid,
    /// The attempt's number, from 1.
    pub number: i32,
    /// The span before; without one the trace bears the job's id.
    pub parent: Option<&'a str>,
}

/// A span that has begun. It ends when it is dropped at the latest.
#[derive(Debug)]
pub struct Span {
    span: opentelemetry_sdk::trace::Span,
    /// The first HTTP status that is its failure.
    first_error: u16,
}

/// The request that a webhook is accepted by, since `began`; under `caller`, the caller's traceparent.
#[must_use]
pub fn accept(job_id: Uuid, caller: Option<&str>, began: SystemTime) -> Option<Span> {
    let mut span = begin(job_id, caller, || {
        let attributes = [KeyValue::new("http.request.method", "POST"), KeyValue::new("http.route", "/webhooks")];
        span("POST /webhooks", SpanKind::Server).with_start_time(began).with_attributes(attributes)
    })?;
    // What a caller did wrong is no failure of the server's.
    span.first_error = 500;
    Some(span)
}

/// The publication of an attempt's message, to its confirm.
#[must_use]
pub fn publish(attempt: Attempt<'_>, message_id: Uuid, broker: &BrokerConfig) -> Option<Span> {
    begin(attempt.job_id, attempt.parent, || {
        let destination = destination(&[broker.exchange(), broker.routing_key()]);
        let name = format!("publish {destination}");
        let attributes = messaging(attempt, "publish", "send", destination).into_iter().chain([
            KeyValue::new("messaging.message.id", message_id.to_string()),
            KeyValue::new("messaging.rabbitmq.destination.routing_key", broker.routing_key().to_owned()),
        ]);
        span(name, SpanKind::Producer).with_attributes(attributes)
    })
}

/// The statement that claimed the attempt, with others perhaps: so long ago it was asked, and answered.
pub fn claim(attempt: Attempt<'_>, broker: &BrokerConfig, asked: Duration, answered: Duration) {
    let claimed = begin(attempt.job_id, attempt.parent, || {
        let destination = consumed(broker);
        let name = format!("claim {destination}");
        let attributes = messaging(attempt, "claim", "receive", destination);
        span(name, SpanKind::Client).with_start_time(clock::now() - asked).with_attributes(attributes)
    });
    if let Some(mut claimed) = claimed {
        claimed.span.end_with_timestamp((clock::now() - answered).into());
    }
}

/// The attempt's request, from resolving the name to the answer.
#[must_use]
pub fn request(attempt: Attempt<'_>) -> Option<Span> {
    begin(attempt.job_id, attempt.parent, || {
        let attributes = of(attempt).into_iter().chain([KeyValue::new("http.request.method", "POST")]);
        span("POST", SpanKind::Client).with_attributes(attributes)
    })
}

/// The record of the attempt, to its commit.
#[must_use]
pub fn settle(attempt: Attempt<'_>, broker: &BrokerConfig) -> Option<Span> {
    begin(attempt.job_id, attempt.parent, || {
        let destination = consumed(broker);
        let name = format!("settle {destination}");
        span(name, SpanKind::Client).with_attributes(messaging(attempt, "settle", "settle", destination))
    })
}

impl Span {
    /// As whoever comes next gets it.
    #[must_use]
    pub fn traceparent(&self) -> String {
        let context = self.span.span_context();
        format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8())
    }

    /// Ends it with the job that was accepted, now or before, and the status that was answered.
    pub fn accepted(mut self, job_id: Uuid, status: u16) {
        self.span.set_attribute(job(job_id));
        self.answered(status);
    }

    /// Ends it with the status that was answered.
    pub fn answered(mut self, status: u16) {
        self.span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if status >= self.first_error {
            self.failed(status.to_string());
        }
    }

    /// Ends it with what went wrong, in one word.
    pub fn failed(mut self, error: impl Into<Cow<'static, str>>) {
        self.span.set_attribute(KeyValue::new("error.type", error.into()));
        self.span.set_status(Status::error(""));
    }

    /// Ends it with what became of the attempt.
    pub fn recorded(mut self, outcome: &'static str) {
        self.span.set_attribute(KeyValue::new("outhook.outcome", outcome));
    }
}

fn span(name: impl Into<Cow<'static, str>>, kind: SpanKind) -> SpanBuilder {
    SpanBuilder::from_name(name).with_kind(kind)
}

/// Begins a span, if traces are made: nothing of it is put together otherwise.
fn begin(job_id: Uuid, parent: Option<&str>, builder: impl FnOnce() -> SpanBuilder) -> Option<Span> {
    let traces = TRACES.get()?;
    let context = match parent.and_then(TraceParent::parse).and_then(remote) {
        Some(parent) => Context::new().with_remote_span_context(parent),
        None => Context::new(),
    };
    let span = trace_of(job_id, || traces.tracer.build_with_context(builder(), &context));
    Some(Span { span, first_error: 400 })
}

/// `None` never happens: what was parsed is hexadecimal.
fn remote(parent: TraceParent<'_>) -> Option<SpanContext> {
    let trace_id = TraceId::from_hex(parent.trace_id).ok()?;
    let span_id = SpanId::from_hex(parent.parent_id).ok()?;
    let flags = TraceFlags::new(u8::from_str_radix(parent.flags, 16).ok()?);
    Some(SpanContext::new(trace_id, span_id, flags, true, TraceState::default()))
}

fn messaging(attempt: Attempt<'_>, name: &'static str, kind: &'static str, destination: String) -> Vec<KeyValue> {
    let [job, number] = of(attempt);
    vec![
        job,
        number,
        KeyValue::new("messaging.system", "rabbitmq"),
        KeyValue::new("messaging.operation.name", name),
        KeyValue::new("messaging.operation.type", kind),
        KeyValue::new("messaging.destination.name", destination),
    ]
}

fn of(attempt: Attempt<'_>) -> [KeyValue; 2] {
    [job(attempt.job_id), KeyValue::new("outhook.attempt", i64::from(attempt.number))]
}

fn job(job_id: Uuid) -> KeyValue {
    KeyValue::new("outhook.job_id", job_id.to_string())
}

fn consumed(broker: &BrokerConfig) -> String {
    destination(&[broker.exchange(), broker.routing_key(), broker.queue()])
}

/// As the conventions want it for RabbitMQ: exchange, routing key and queue, without what is said already.
fn destination(parts: &[&str]) -> String {
    let mut said: Vec<&str> = Vec::with_capacity(parts.len());
    for part in parts {
        if !said.contains(part) {
            said.push(part);
        }
    }
    said.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_says_nothing_twice() {
        assert_eq!(destination(&["webhooks", "webhook.jobs", "webhook.jobs"]), "webhooks:webhook.jobs");
        assert_eq!(destination(&["a", "b", "c"]), "a:b:c");
    }

    #[test]
    fn a_traceparent_is_the_remote_parent() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        let parent = TraceParent::parse(text).and_then(remote).expect("it is one");
        assert!(parent.is_remote() && !parent.is_sampled());
        assert_eq!(parent.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(parent.span_id().to_string(), "00f067aa0ba902b7");
    }

    #[test]
    fn without_a_collector_there_are_no_spans() {
        let attempt = Attempt { job_id: Uuid::from_u128(1), number: 1, parent: None };
        assert!(crate::now().is_none() && request(attempt).is_none());
    }
}
