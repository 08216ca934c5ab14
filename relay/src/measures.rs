//! What the relay measures; docs/operating.md lists it.

use outbox::service::telemetry::Metric;

/// The relay's metrics.
pub const METRICS: &[Metric] = &[
    Metric::gauge(
        "outhook_relay_oldest_due_age_seconds",
        "How long the oldest row that is due and not published has been due; 0 if there is none.",
    ),
    Metric::gauges(
        "outhook_relay_rows",
        "state",
        &["due", "published", "scheduled", "held", "ordered"],
        "Rows of the outbox by state. 10,000 of each are counted at the most; of published and scheduled ones together, \
         those soonest due.",
    ),
    Metric::counter("outhook_relay_published_total", "Rows published for the first time, after the broker's confirm."),
    Metric::counter(
        "outhook_relay_republished_total",
        "Rows published again, because their task came to nothing within REPUBLISH_INTERVAL_SEC or was lost.",
    ),
    Metric::counter("outhook_relay_refused_total", "Tasks that the broker refused or had no queue for."),
    Metric::counter("outhook_relay_unconfirmed_total", "Tasks that the broker did not confirm in time."),
    Metric::sizes("outhook_relay_batch_size", "Rows published in one transaction."),
    Metric::gauge(
        "outhook_relay_queue_ready_messages",
        "Tasks that wait in the queue for a worker, as last asked of the broker.",
    ),
    Metric::gauge(
        "outhook_relay_queue_members",
        "Nodes of the broker's cluster that have the queue, by RABBITMQ_MANAGEMENT_URL; 0 if that is not known.",
    ),
    Metric::gauge(
        "outhook_relay_broker_nodes",
        "Nodes of the broker's cluster, by RABBITMQ_MANAGEMENT_URL; 0 if that is not known.",
    ),
    Metric::gauge(
        "outhook_relay_blocked",
        "Connections from which the broker takes no tasks, for it lacks memory or disk.",
    ),
    Metric::counter(
        "outhook_relay_missing_total",
        "Rows published again because the broker had lost their tasks: a purge, a policy, another consumer.",
    ),
    Metric::counters(
        "outhook_relay_reconnects_total",
        "server",
        &["postgres", "rabbitmq"],
        "Turns that failed, after which what was lost is connected anew, by the server that failed.",
    ),
    Metric::counter(
        "outhook_relay_listen_failures_total",
        "How often the relay stopped hearing notifications; it polls meanwhile.",
    ),
    Metric::counter("outhook_relay_turns_given_total", "Turns given to webhooks with an ordering key."),
    Metric::counter(
        "outhook_relay_due_again_total",
        "Rows made due again after somebody had held them, or at the end of a lost worker's lease.",
    ),
    Metric::gauge("outhook_relay_rows_held_by_others", "Listed rows that somebody's lock or lease holds."),
    Metric::gauges(
        "outhook_relay_sick_destinations",
        "state",
        &SICK,
        "Destinations that are held back, by the state of their circuit breaker; 10,000 in all are counted at the most.",
    ),
    Metric::counter("outhook_relay_held_total", "Rows held because their destination is sick."),
    Metric::counter("outhook_relay_released_total", "Rows of sick destinations set free."),
    Metric::counter("outhook_relay_keys_forgotten_total", "Idempotency keys forgotten after IDEMPOTENCY_DAYS."),
    traces::EXPORTED,
    traces::LOST,
];

/// The states of a circuit breaker that hold webhooks back.
pub(crate) const SICK: [&str; 3] = ["metered", "open", "half_open"];
