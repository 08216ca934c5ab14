//! Which traces are made, and under which id. Each process decides by itself, and all of them decide the same: what a
//! caller or another process has begun is made if its traceparent says so, anything else by the trace's id.

use std::cell::Cell;

use opentelemetry::trace::{Link, SpanId, SpanKind, TraceId, TraceState};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SamplingDecision, SamplingResult, ShouldSample};
use uuid::Uuid;

/// A share of all traces, by the last 32 bits of their ids. The library's own goes by the first of the last 64, which say
/// the version and the millisecond in the ids of jobs (UUIDs of version 7, RFC 9562): only the last 32 are random in each.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    /// Ids whose last bits are less are made.
    below: u64,
}

const BITS: u32 = 32;

impl Share {
    /// `ratio` is from 0 to 1.
    pub(crate) fn of(ratio: f64) -> Self {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is from 0 to 2^32")]
        let below = (ratio * 2_f64.powi(BITS.cast_signed())) as u64;
        Self { below }
    }

    fn holds(&self, trace_id: TraceId) -> bool {
        u128::from_be_bytes(trace_id.to_bytes()) % (1 << BITS) < u128::from(self.below)
    }
}

impl ShouldSample for Share {
    fn should_sample(
        &self,
        _: Option<&Context>,
        trace_id: TraceId,
        _: &str,
        _: &SpanKind,
        _: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        let decision = if self.holds(trace_id) { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop };
        SamplingResult { decision, attributes: Vec::new(), trace_state: TraceState::default() }
    }
}

thread_local! {
    /// The id of the trace that the next span begins.
    static TRACE: Cell<Option<TraceId>> = const { Cell::new(None) };
}

/// Builds a span. If nobody has begun its trace, that bears the job's id: so all attempts of a webhook that came from SQL
/// are one trace, although nothing stores one.
pub(crate) fn trace_of<Span>(job_id: Uuid, build: impl FnOnce() -> Span) -> Span {
    TRACE.set(Some(TraceId::from_bytes(job_id.into_bytes())));
    let span = build();
    TRACE.set(None);
    span
}

/// Ids: the library's builder takes none.
#[derive(Debug, Default)]
pub(crate) struct JobIds(RandomIdGenerator);

impl IdGenerator for JobIds {
    fn new_trace_id(&self) -> TraceId {
        TRACE.take().unwrap_or_else(|| self.0.new_trace_id())
    }

    fn new_span_id(&self) -> SpanId {
        self.0.new_span_id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_jobs_is_that_share() {
        let ids: Vec<TraceId> = (0..10_000).map(|_| TraceId::from_bytes(Uuid::now_v7().into_bytes())).collect();
        for (ratio, least, most) in [(0.0, 0, 0), (0.1, 800, 1_200), (0.5, 4_700, 5_300), (1.0, 10_000, 10_000)] {
            let share = Share::of(ratio);
            let held = ids.iter().filter(|id| share.holds(**id)).count();
            assert!((least..=most).contains(&held), "{held} of 10,000 at {ratio}");
        }
    }

    #[test]
    fn a_trace_that_nobody_began_bears_the_jobs_id() {
        let job_id = Uuid::from_u128(0xabc);
        let ids = JobIds::default();
        assert_eq!(trace_of(job_id, || ids.new_trace_id()), TraceId::from(0xabc_u128));
        assert_ne!(ids.new_trace_id(), TraceId::from(0xabc_u128));
    }
}
