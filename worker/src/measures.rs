//! What the worker measures; docs/operating.md lists it.

use outbox::service::notify;
use outbox::service::telemetry::Metric;
use outbox::target::TargetError;

/// The worker's metrics.
pub const METRICS: &[Metric] = &[
    Metric::counters(
        "outhook_worker_attempts_total",
        "outcome",
        &["success", "pending", "failed", "lease_lost", "unclear", "not_recorded", "held"],
        "Attempts, by what became of their job (pending: to be tried again), or why they could not be recorded.",
    ),
    Metric::seconds("outhook_worker_request_seconds", "Time of one attempt, from resolving the name to the answer."),
    Metric::hours(
        "outhook_worker_delivery_seconds",
        "Time from acceptance to a 2xx, waits for deliver_at, for retries and for others included.",
    ),
    Metric::gauge(
        "outhook_worker_deliveries",
        "Deliveries under way, of WORKER_CONCURRENCY and those not recorded yet.",
    ),
    Metric::gauge("outhook_worker_waiting_messages", "Tasks at hand that wait for a slot of their destination."),
    Metric::counter(
        "outhook_worker_resent_total",
        "Requests sent by a connection of their own after the kept one failed.",
    ),
    Metric::counter(
        "outhook_worker_descriptor_waits_total",
        "Requests that waited because the process had no file descriptors left.",
    ),
    Metric::counters(
        "outhook_worker_targets_refused_total",
        "reason",
        &TargetError::REASONS,
        "Attempts that were not sent because their URL may not be delivered to, by reason.",
    ),
    Metric::counters(
        "outhook_worker_unopened_keys_total",
        "owner",
        &["job", "destination"],
        "Deliveries that were not sent because their signing key could not be opened, by whose it is.",
    ),
    Metric::sizes("outhook_worker_claim_batch_size", "Tasks whose jobs were claimed in one statement."),
    Metric::sizes("outhook_worker_settle_batch_size", "Attempts recorded in one transaction."),
    Metric::gauge(
        "outhook_worker_settlements_held",
        "Attempts that cannot be recorded while somebody holds their job's row.",
    ),
    Metric::counter(
        "outhook_worker_outbox_rows_missing_total",
        "Jobs to be tried again that had lost their outbox row.",
    ),
    Metric::counter("outhook_worker_takeovers_total", "Attempts recorded as unknown for a worker that was lost."),
    Metric::counter("outhook_worker_refused_total", "Tasks that found their job claimed, finished or cancelled."),
    Metric::counter("outhook_worker_held_total", "Tasks given back because their destination is sick."),
    Metric::counter("outhook_worker_put_off_total", "Tasks given back because there was no slot for them."),
    Metric::counter("outhook_worker_paused_total", "Tasks given back because their URL asked for a pause."),
    Metric::counter("outhook_worker_poison_total", "Tasks that could not be read, now in the dead-letter queue."),
    Metric::counters(
        "outhook_worker_destination_reports_total",
        "kind",
        &["down", "still_down", "slow", "recovered"],
        "Findings about destinations that were reported for all to see.",
    ),
    Metric::counter(
        "outhook_worker_reconnects_total",
        "How often the connection to the broker was lost or not to be had.",
    ),
    Metric::counter(
        "outhook_worker_broken_queues_total",
        "Queues that the broker could not work with, deleted to be made anew.",
    ),
    Metric::counter(
        "outhook_worker_deaf_total",
        "Times that a consumer heard nothing although there was something for it.",
    ),
    Metric::counter("outhook_worker_strays_total", "Tasks of another installation, given back to its workers."),
    notify::FAILURES,
    traces::EXPORTED,
    traces::LOST,
];
