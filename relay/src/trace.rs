//! The spans of what is published.

use outbox::broker::topology::BrokerConfig;
use outbox::due::DueRow;
use traces::{Attempt, Span};

use crate::confirms::Confirm;

/// Begins a span for each row that is about to be published, and lets its task carry that on. No spans if no traces
/// are made.
pub(crate) fn begin(rows: &mut [DueRow], broker: &BrokerConfig) -> Vec<Option<Span>> {
    if !traces::are_on() {
        return Vec::new();
    }
    let begin = |row: &mut DueRow| {
        let task = &mut row.task;
        // The claim raises it by one.
        let number = task.attempt + 1;
        let attempt = Attempt { job_id: task.job_id, number, parent: task.traceparent.as_deref() };
        let span = traces::publish(attempt, row.message_id, broker)?;
        task.traceparent = Some(span.traceparent());
        Some(span)
    };
    rows.iter_mut().map(begin).collect()
}

/// Ends them with what the broker said.
pub(crate) fn end(spans: Vec<Option<Span>>, confirms: &[Confirm]) {
    for (span, confirm) in spans.into_iter().zip(confirms) {
        let Some(span) = span else { continue };
        match confirm {
            Confirm::Confirmed => drop(span),
            Confirm::Refused => span.failed("refused"),
            Confirm::Unknown => span.failed("unconfirmed"),
        }
    }
}
