//! What the api measures; docs/operating.md lists it.

use outbox::service::notify;
use outbox::service::telemetry::Metric;
use outbox::target::TargetError;

/// The api's metrics.
pub const METRICS: &[Metric] = &[
    Metric::counters("outhook_api_requests_total", "route", &[], "Requests answered, by route and status."),
    Metric::seconds(
        "outhook_api_request_seconds",
        "Time from the head of a request to its answer, its body and the commit included.",
    ),
    Metric::sizes("outhook_api_accept_batch_size", "Jobs in one commit."),
    Metric::gauge("outhook_api_connections", "Connections that are open, of MAX_CONNECTIONS."),
    Metric::counter(
        "outhook_api_connections_made_way_total",
        "Connections that stood still and were closed for others: see MAX_CONNECTIONS.",
    ),
    Metric::gauge("outhook_api_body_bytes", "Bytes of request bodies that have arrived and are not answered yet."),
    Metric::gauge(
        "outhook_api_unverified_bytes",
        "Bytes of request bodies that no signature has vouched for yet, of UNVERIFIED_BODY_BYTES.",
    ),
    Metric::counter(
        "outhook_api_unverified_made_way_total",
        "Request bodies that stood still and were dropped for others: see UNVERIFIED_BODY_BYTES.",
    ),
    Metric::counters(
        "outhook_api_targets_refused_total",
        "reason",
        &TargetError::REASONS,
        "Webhooks refused because they may not be delivered to their URL, by reason.",
    ),
    Metric::counters(
        "outhook_api_signing_keys_total",
        "change",
        &["set", "removed"],
        "Changes of destinations' signing keys.",
    ),
    notify::FAILURES,
    traces::EXPORTED,
    traces::LOST,
];
