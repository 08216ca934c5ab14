//! The trace that a caller's request belongs to.

use axum::http::HeaderMap;
use outbox::target::headers;
use outbox::trace_context::{MAX_TRACESTATE_BYTES, TraceParent};
use serde_json::{Map, Value};

const TRACESTATE: &str = "tracestate";

/// The caller's trace context, if it is one. Its `tracestate` goes along as a header of the job's, unless the job has one.
pub(super) fn trace_context(headers: &HeaderMap, job: &mut Map<String, Value>) -> Option<String> {
    let traceparent = headers.get("traceparent")?.to_str().ok()?;
    TraceParent::parse(traceparent)?;
    let is_said = |name: &str| job.keys().any(|key| key.eq_ignore_ascii_case(name));
    if !is_said("traceparent") && !is_said(TRACESTATE) {
        let values: Option<Vec<&str>> = headers.get_all(TRACESTATE).iter().map(|value| value.to_str().ok()).collect();
        let state = values.unwrap_or_default().join(",");
        if (1..=MAX_TRACESTATE_BYTES).contains(&state.len()) {
            job.insert(TRACESTATE.to_owned(), state.into());
            // The job's own headers may have left no room for it.
            if headers::check(job).is_err() {
                job.remove(TRACESTATE);
            }
        }
    }
    Some(traceparent.to_owned())
}
