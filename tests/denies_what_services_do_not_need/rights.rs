//! What each role may do in Postgres: the promise that `migrations/roles.sql` keeps.
//!
//! Whole: a table, column, view, sequence or function that is missing here fails a test, so that nobody adds
//! one without saying whose it is.

use harness::database::ROLES;

/// Rights of the [`ROLES`], in their order. S: SELECT, I: INSERT, U: UPDATE, D: DELETE, E: EXECUTE, G: USAGE.
pub type Rights = [&'static str; ROLES.len()];

/// Each column of each table.
pub const COLUMNS: &[(&str, &str, Rights)] = &[
    // api, relay, worker, reader, enqueuer
    ("public.webhook_jobs", "id", ["", "S", "S", "S", ""]),
    ("public.webhook_jobs", "created_at", ["", "", "S", "S", ""]),
    ("public.webhook_jobs", "updated_at", ["", "", "SU", "S", ""]),
    ("public.webhook_jobs", "deliver_at", ["", "", "", "S", ""]),
    ("public.webhook_jobs", "lease_until", ["", "S", "SU", "S", ""]),
    ("public.webhook_jobs", "outbox_id", ["", "", "S", "S", ""]),
    ("public.webhook_jobs", "attempt", ["", "", "SU", "S", ""]),
    ("public.webhook_jobs", "retry_count", ["", "", "SU", "S", ""]),
    ("public.webhook_jobs", "max_attempts", ["", "", "S", "S", ""]),
    ("public.webhook_jobs", "timeout_ms", ["", "", "S", "S", ""]),
    ("public.webhook_jobs", "ordering_key", ["", "", "S", "S", ""]),
    ("public.webhook_jobs", "sealed_key", ["", "", "S", "", ""]),
    ("public.webhook_jobs", "status", ["", "S", "SU", "S", ""]),
    ("public.webhook_jobs", "claimed_by", ["", "", "SU", "S", ""]),
    ("public.webhook_jobs", "error", ["", "", "U", "S", ""]),
    ("public.webhook_jobs", "client_url", ["", "", "S", "S", ""]),
    ("public.webhook_jobs", "headers", ["", "", "S", "", ""]),
    ("public.webhook_jobs", "idempotency_key", ["", "", "", "S", ""]),
    ("public.webhook_jobs", "payload", ["", "", "S", "", ""]),
    ("public.idempotency_keys", "created_at", ["", "", "", "S", ""]),
    ("public.idempotency_keys", "job_id", ["", "", "", "S", ""]),
    ("public.idempotency_keys", "is_signed", ["", "", "", "S", ""]),
    ("public.idempotency_keys", "body_hash", ["", "", "", "", ""]),
    ("public.idempotency_keys", "key", ["", "", "", "S", ""]),
    ("public.outbox", "id", ["S", "S", "S", "S", ""]),
    ("public.outbox", "due_at", ["S", "SU", "U", "S", ""]),
    ("public.outbox", "published_at", ["S", "SU", "SU", "S", ""]),
    ("public.outbox", "job_id", ["S", "S", "", "S", ""]),
    ("public.outbox", "message_id", ["S", "S", "U", "S", ""]),
    ("public.outbox", "attempt", ["S", "S", "SU", "S", ""]),
    ("public.outbox", "traceparent", ["S", "S", "", "S", ""]),
    ("public.outbox", "destination", ["S", "S", "S", "S", ""]),
    ("public.outbox", "waits_for", ["S", "SU", "SU", "S", ""]),
    ("public.outbox", "released", ["S", "SU", "U", "S", ""]),
    ("public.outbox", "ordering_key", ["S", "S", "", "S", ""]),
    ("public.outbox", "turn", ["S", "S", "", "S", ""]),
    ("public.outbox", "payload_bytes", ["S", "S", "", "S", ""]),
    ("public.outbox_checks", "id", ["", "S", "", "S", ""]),
    ("public.outbox_checks", "outbox_id", ["", "SI", "I", "S", ""]),
    ("public.outbox_checks", "attempt", ["", "I", "I", "S", ""]),
    ("public.ordering_checks", "id", ["", "S", "", "S", ""]),
    ("public.ordering_checks", "destination", ["", "I", "", "S", ""]),
    ("public.ordering_checks", "ordering_key", ["", "I", "", "S", ""]),
    ("public.url_pauses", "url", ["", "S", "SI", "S", ""]),
    ("public.url_pauses", "until", ["", "SU", "SIU", "S", ""]),
    ("public.destinations", "destination", ["", "S", "SI", "S", ""]),
    ("public.destinations", "state", ["", "SU", "SIU", "S", ""]),
    ("public.destinations", "hold_until", ["", "SU", "IU", "S", ""]),
    ("public.destinations", "changed_at", ["", "SU", "SU", "S", ""]),
    ("public.destinations", "slowed_at", ["", "SU", "SIU", "S", ""]),
    ("public.destinations", "release_limit", ["", "SU", "SIU", "S", ""]),
    ("public.destinations", "openings", ["", "SU", "SIU", "S", ""]),
    ("public.destinations", "rate_limit", ["", "S", "S", "S", ""]),
    ("public.destinations", "next_slot_at", ["", "", "SU", "S", ""]),
    ("public.destinations", "error", ["", "", "IU", "S", ""]),
    ("public.destination_keys", "id", ["SI", "", "S", "", ""]),
    ("public.destination_keys", "created_at", ["S", "", "S", "", ""]),
    ("public.destination_keys", "expires_at", ["SU", "", "S", "", ""]),
    ("public.destination_keys", "scheme", ["SI", "", "", "", ""]),
    ("public.destination_keys", "destination", ["SI", "", "S", "", ""]),
    ("public.destination_keys", "sealed", ["SI", "", "S", "", ""]),
    ("public.webhook_attempts", "job_id", ["S", "", "I", "S", ""]),
    ("public.webhook_attempts", "started_at", ["S", "", "I", "S", ""]),
    ("public.webhook_attempts", "retry_at", ["S", "", "I", "S", ""]),
    ("public.webhook_attempts", "attempt", ["S", "", "I", "S", ""]),
    ("public.webhook_attempts", "duration_ms", ["S", "", "I", "S", ""]),
    ("public.webhook_attempts", "status_code", ["S", "", "I", "S", ""]),
    ("public.webhook_attempts", "outcome", ["S", "", "I", "S", ""]),
    ("public.webhook_attempts", "worker", ["S", "", "I", "S", ""]),
    ("public.webhook_attempts", "error", ["S", "", "I", "S", ""]),
    ("public.webhook_attempts", "response_excerpt", ["S", "", "I", "S", ""]),
    ("public.installation", "id", ["", "S", "S", "S", ""]),
    ("public.schema_version", "version", ["S", "S", "S", "S", ""]),
    ("public.schema_version", "api_hash", ["", "", "", "", ""]),
    ("public.refinery_schema_history", "version", ["", "", "", "", ""]),
    ("public.refinery_schema_history", "name", ["", "", "", "", ""]),
    ("public.refinery_schema_history", "applied_on", ["", "", "", "", ""]),
    ("public.refinery_schema_history", "checksum", ["", "", "", "", ""]),
];

/// What is done to rows or tables as a whole.
pub const TABLES: &[(&str, Rights)] = &[
    ("public.webhook_jobs", ["", "", "", "", ""]),
    ("public.idempotency_keys", ["", "", "", "", ""]),
    ("public.outbox", ["", "D", "D", "", ""]),
    ("public.webhook_attempts", ["", "", "", "", ""]),
    ("public.destinations", ["", "D", "", "", ""]),
    ("public.outbox_checks", ["", "", "", "", ""]),
    ("public.ordering_checks", ["", "", "", "", ""]),
    ("public.url_pauses", ["", "D", "", "", ""]),
    ("public.destination_keys", ["D", "", "", "", ""]),
    ("public.installation", ["", "", "", "", ""]),
    ("public.schema_version", ["", "", "", "", ""]),
    ("public.refinery_schema_history", ["", "", "", "", ""]),
];

/// Each view, with the rights of its owner behind it.
pub const VIEWS: &[(&str, Rights)] = &[
    ("outhook.conservation", ["", "", "", "S", ""]),
    ("outhook.job_details", ["S", "", "", "S", ""]),
    ("outhook.jobs", ["", "", "", "S", ""]),
    ("outhook.outbox_lag", ["", "", "", "S", ""]),
    ("outhook.sick_destinations", ["", "", "", "S", ""]),
    ("outhook.signing_keys", ["", "", "", "S", ""]),
    ("outhook.timeline", ["", "", "", "S", ""]),
];

/// Each sequence.
pub const SEQUENCES: &[(&str, Rights)] = &[
    ("public.outbox_id_seq", ["", "", "", "", ""]),
    ("public.outbox_checks_id_seq", ["", "", "", "", ""]),
    ("public.ordering_checks_id_seq", ["", "", "", "", ""]),
];

/// Each function, by a call of it.
pub const FUNCTIONS: &[(&str, &str, Rights)] = &[
    ("outhook.cancel", "outhook.cancel(gen_random_uuid())", ["E", "", "", "", ""]),
    (
        "outhook.accept_jobs",
        "outhook.accept_jobs('{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', NULL, NULL, NULL, NULL)",
        ["E", "", "", "", ""],
    ),
    ("outhook.take_keys", "outhook.take_keys('{}', '{}', '{}', '{}')", ["", "", "", "", ""]),
    ("outhook.forget_keys", "outhook.forget_keys(30, NULL, 1)", ["", "E", "", "", ""]),
    ("outhook.enqueue", "outhook.enqueue('http://example.com/', '{}')", ["", "", "", "", "E"]),
    ("outhook.enqueue", "outhook.enqueue('http://example.com/', '{}'::json)", ["", "", "", "", "E"]),
    ("outhook.enqueue", "outhook.enqueue('http://example.com/', '{}'::jsonb)", ["", "", "", "", "E"]),
    ("outhook.canonical_url", "outhook.canonical_url('http://example.com/')", ["", "", "", "", ""]),
    ("outhook.destination", "outhook.destination('http://example.com/')", ["", "", "", "", ""]),
    ("outhook.limit_destination", "outhook.limit_destination('http://example.com/', 1)", ["", "", "", "", ""]),
    ("outhook.give_turns", "outhook.give_turns(0, 1)", ["", "E", "", "", ""]),
    ("outhook.make_due_again", "outhook.make_due_again(0, 1)", ["", "E", "", "", ""]),
    ("outhook.url_without_query", "outhook.url_without_query('http://example.com/')", ["", "", "E", "E", ""]),
    ("outhook.uuid_v7", "outhook.uuid_v7()", ["", "", "", "", ""]),
    ("outhook.wake", "outhook.wake()", ["E", "", "E", "", "E"]),
];

/// What nobody but the owner, or a superuser, may do.
pub const DENIED_TO_ALL: &[&str] = &[
    "CREATE TABLE public.intruder ()",
    "CREATE TABLE outhook.intruder ()",
    "CREATE TEMPORARY TABLE intruder ()",
    "CREATE SCHEMA intruder",
    "CREATE FUNCTION public.sha256(text) RETURNS text LANGUAGE sql RETURN $1",
    "CREATE OR REPLACE FUNCTION outhook.wake() RETURNS void LANGUAGE sql AS ''",
    "CREATE VIEW outhook.intruder AS SELECT 1",
    "CREATE INDEX ON public.outbox (attempt)",
    "ALTER TABLE public.webhook_jobs ADD COLUMN intruder text",
    "ALTER TABLE public.webhook_jobs DROP CONSTRAINT webhook_jobs_status_known",
    "ALTER TABLE public.outbox DISABLE TRIGGER ALL",
    "ALTER FUNCTION outhook.cancel(uuid) SECURITY INVOKER",
    "ALTER VIEW outhook.job_details OWNER TO CURRENT_USER",
    "DROP TABLE public.webhook_attempts",
    "DROP FUNCTION outhook.wake()",
    "LOCK TABLE public.webhook_jobs IN ACCESS EXCLUSIVE MODE",
    "SELECT setval('public.outbox_id_seq', 1)",
    "SET ROLE outhook",
    "SET session_replication_role = replica",
    "CREATE ROLE intruder",
    "ALTER ROLE CURRENT_USER SUPERUSER",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "SELECT pg_read_file('postgresql.conf')",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'outhook' AND datname = current_database()",
];
