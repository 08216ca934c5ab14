//! The trace that an attempt belongs to, and its spans.

use outbox::broker::task::Task;
use outbox::job::claim::Claimed;
use outbox::trace_context::TraceParent;
use traces::{Attempt, Span};

use crate::claimer::Claim;
use crate::response::Exchange;
use crate::worker::Worker;

/// What the receiver gets: the span of the request, or else one that nobody records.
pub(crate) fn traceparent(span: Option<&Span>, task: &Task, job: &Claimed) -> String {
    span.map_or_else(|| child_of(task.traceparent.as_deref(), job), Span::traceparent)
}

/// The attempt's trace context (W3C Trace Context, level 1): the accepting request's trace, or else one
/// that bears the job's id; the attempt is a span of its own in it.
fn child_of(traceparent: Option<&str>, job: &Claimed) -> String {
    let job_id = job.job_id.simple().to_string();
    let (trace_id, flags) =
        traceparent.and_then(TraceParent::parse).map_or((job_id.as_str(), "00"), |it| (it.trace_id, it.flags));
    // A span id must not be zero.
    let span = rand::random_range(1..=u64::MAX);
    format!("00-{trace_id}-{span:016x}-{flags}")
}

/// Begins the span of the attempt's request.
pub(crate) fn request(job: &Claimed, task: &Task) -> Option<Span> {
    traces::request(attempt(job, task))
}

/// Ends it.
pub(crate) fn answered(span: Option<Span>, exchange: &Exchange) {
    match (span, exchange) {
        (Some(span), Ok(response)) => span.answered(response.status),
        (Some(span), Err(error)) => span.failed(error.kind()),
        (None, _) => {}
    }
}

/// Records the span of a claim.
pub(crate) fn claimed(worker: &Worker, claim: &Claim, task: &Task) {
    if traces::are_on() {
        let (asked, answered) = (claim.asked.elapsed(), claim.answered.elapsed());
        traces::claim(attempt(&claim.job, task), &worker.config.broker, asked, answered);
    }
}

/// Begins the span of the attempt's record.
pub(crate) fn settle(worker: &Worker, job: &Claimed, task: &Task) -> Option<Span> {
    traces::settle(attempt(job, task), &worker.config.broker)
}

fn attempt<'a>(job: &Claimed, task: &'a Task) -> Attempt<'a> {
    Attempt { job_id: job.job_id, number: job.attempt, parent: task.traceparent.as_deref() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sender::tests::job;

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
