-- The pipeline: jobs, their alarm clocks (outbox) and what happened at each attempt.
--
-- Column order: fixed-width columns first, widest first, so that rows carry no padding;
-- then text that changes, then text that does not.

CREATE SCHEMA outhook;
COMMENT ON SCHEMA outhook IS 'Functions and views of Outhook; its tables are in the schema public';

CREATE TABLE webhook_jobs (
    id              uuid        NOT NULL CONSTRAINT webhook_jobs_pkey PRIMARY KEY,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    deliver_at      timestamptz NOT NULL DEFAULT now(),
    lease_until     timestamptz,
    outbox_id       bigint      NOT NULL,
    attempt         integer     NOT NULL DEFAULT 0,
    retry_count     integer     NOT NULL DEFAULT 0,
    max_attempts    integer,
    status          text        NOT NULL DEFAULT 'pending',
    claimed_by      text,
    error           text        NOT NULL DEFAULT '',
    client_url      text        NOT NULL,
    headers         jsonb       NOT NULL DEFAULT '{}',
    idempotency_key text,
    body_hash       bytea,
    payload         text        NOT NULL,

    CONSTRAINT webhook_jobs_status_known
        CHECK (status IN ('pending', 'processing', 'success', 'failed', 'cancelled')),
    CONSTRAINT webhook_jobs_leased_while_processing
        CHECK ((status = 'processing') = (lease_until IS NOT NULL)
           AND (status = 'processing') = (claimed_by IS NOT NULL)),
    CONSTRAINT webhook_jobs_counts_agree
        CHECK (retry_count >= 0 AND retry_count <= attempt),
    CONSTRAINT webhook_jobs_success_has_no_error
        CHECK (status <> 'success' OR error = ''),
    CONSTRAINT webhook_jobs_max_attempts_between_1_and_100
        CHECK (max_attempts BETWEEN 1 AND 100),
    CONSTRAINT webhook_jobs_client_url_is_http
        CHECK (client_url ~* '^https?://.'),
    CONSTRAINT webhook_jobs_client_url_at_most_2048_bytes
        CHECK (octet_length(client_url) <= 2048),
    CONSTRAINT webhook_jobs_payload_at_most_16_mib
        CHECK (octet_length(payload) <= 16777216),
    CONSTRAINT webhook_jobs_headers_are_an_object
        CHECK (jsonb_typeof(headers) = 'object'),
    CONSTRAINT webhook_jobs_idempotency_key_has_hash
        CHECK ((idempotency_key IS NULL) = (body_hash IS NULL)),
    CONSTRAINT webhook_jobs_idempotency_key_between_1_and_255_bytes
        CHECK (octet_length(idempotency_key) BETWEEN 1 AND 255),
    CONSTRAINT webhook_jobs_deliver_at_within_366_days
        CHECK (deliver_at - created_at <= interval '366 days')
) WITH (
    -- Two updates a life, both HOT: leave room for them on the page. Processor time of the server per
    -- job, whole life in batches of 200 on Postgres 15: 55 us with 45, 66 with 70, 83 with 100.
    fillfactor = 45,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 1
);

-- The only index besides the primary key. Its column never changes, so updates stay HOT;
-- an index on status would cost 17 us of processor time a job.
CREATE UNIQUE INDEX webhook_jobs_idempotency_key
    ON webhook_jobs (idempotency_key) WHERE idempotency_key IS NOT NULL;

COMMENT ON TABLE  webhook_jobs IS 'One row a webhook: what to deliver, where, and how far it is';
COMMENT ON COLUMN webhook_jobs.id IS 'Job id, a UUID version 7: the primary key is also the order of acceptance. Sent as webhook-id, the same on every attempt';
COMMENT ON COLUMN webhook_jobs.created_at IS 'When the job was accepted (start of the accepting transaction)';
COMMENT ON COLUMN webhook_jobs.updated_at IS 'Last transition; while status is processing, the moment of the claim';
COMMENT ON COLUMN webhook_jobs.deliver_at IS 'Not delivered before this moment';
COMMENT ON COLUMN webhook_jobs.lease_until IS 'Until when the claiming worker owns the attempt, by this database''s clock; NULL unless processing';
COMMENT ON COLUMN webhook_jobs.outbox_id IS 'The job''s row in outbox, for as long as it is not finished';
COMMENT ON COLUMN webhook_jobs.attempt IS 'Fencing number: +1 at every claim. A worker may write only while it still holds this number';
COMMENT ON COLUMN webhook_jobs.retry_count IS 'Attempts so far that did not succeed';
COMMENT ON COLUMN webhook_jobs.max_attempts IS 'Attempts in all before the job fails; NULL means the worker''s MAX_RETRIES';
COMMENT ON COLUMN webhook_jobs.status IS 'pending (waiting for its outbox row), processing (claimed by a worker), success, failed or cancelled';
COMMENT ON COLUMN webhook_jobs.claimed_by IS 'Name of the worker that holds the lease; NULL unless processing';
COMMENT ON COLUMN webhook_jobs.error IS 'Error of the last attempt, empty when there is none';
COMMENT ON COLUMN webhook_jobs.client_url IS 'Where the payload is posted to';
COMMENT ON COLUMN webhook_jobs.headers IS 'Extra request headers, an object of strings';
COMMENT ON COLUMN webhook_jobs.idempotency_key IS 'The caller''s key: one job a key';
COMMENT ON COLUMN webhook_jobs.body_hash IS 'SHA-256 of the accepted request, compared when its idempotency key comes again';
COMMENT ON COLUMN webhook_jobs.payload IS 'Request body, delivered byte for byte';

CREATE TABLE outbox (
    id           bigint      GENERATED BY DEFAULT AS IDENTITY CONSTRAINT outbox_pkey PRIMARY KEY,
    due_at       timestamptz NOT NULL,
    published_at timestamptz,
    job_id       uuid        NOT NULL,
    message_id   uuid        NOT NULL DEFAULT gen_random_uuid(),
    attempt      integer     NOT NULL,
    traceparent  text,

    CONSTRAINT outbox_attempt_not_negative CHECK (attempt >= 0),
    CONSTRAINT outbox_traceparent_at_most_128_bytes CHECK (octet_length(traceparent) <= 128)
) WITH (
    -- Every row dies young: vacuum by count, not by share, and without pauses.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 50000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0
);

CREATE INDEX outbox_due_at ON outbox (due_at);

COMMENT ON TABLE  outbox IS 'One row for each job that is not finished: its alarm clock. Empty when nothing is in flight';
COMMENT ON COLUMN outbox.id IS 'Outbox row id, the same through all attempts of its job';
COMMENT ON COLUMN outbox.due_at IS 'When the alarm rings: first publication, retry, scheduled delivery, or republication of a lost message';
COMMENT ON COLUMN outbox.published_at IS 'When the broker''s confirm of message_id was recorded; NULL before that';
COMMENT ON COLUMN outbox.job_id IS 'The job in webhook_jobs. No foreign key: it would cost 15 us a job, and outhook.conservation checks it';
COMMENT ON COLUMN outbox.message_id IS 'AMQP message_id of the publication, the same when it is repeated; a retry gets a new one';
COMMENT ON COLUMN outbox.attempt IS 'The job''s attempt when the row was made due: what a claim must find';
COMMENT ON COLUMN outbox.traceparent IS 'W3C trace context of the accepting request, if it had one';

CREATE TABLE webhook_attempts (
    job_id           uuid        NOT NULL,
    started_at       timestamptz NOT NULL,
    retry_at         timestamptz,
    attempt          integer     NOT NULL,
    duration_ms      integer,
    status_code      integer,
    outcome          text        NOT NULL,
    worker           text        NOT NULL,
    error            text        NOT NULL DEFAULT '',
    response_excerpt text        NOT NULL DEFAULT '',

    CONSTRAINT webhook_attempts_pkey PRIMARY KEY (job_id, attempt),
    CONSTRAINT webhook_attempts_attempt_positive CHECK (attempt >= 1),
    CONSTRAINT webhook_attempts_outcome_known CHECK (outcome IN ('success', 'failed', 'unknown')),
    -- IS TRUE: a NULL status code must not pass.
    CONSTRAINT webhook_attempts_success_means_2xx
        CHECK (outcome <> 'success' OR (status_code BETWEEN 200 AND 299) IS TRUE)
);

COMMENT ON TABLE  webhook_attempts IS 'One row for each attempt whose outcome is recorded; append-only';
COMMENT ON COLUMN webhook_attempts.job_id IS 'The job in webhook_jobs';
COMMENT ON COLUMN webhook_attempts.started_at IS 'When the attempt was claimed, by this database''s clock';
COMMENT ON COLUMN webhook_attempts.retry_at IS 'When the next attempt becomes due; NULL when this was the last';
COMMENT ON COLUMN webhook_attempts.attempt IS 'Number of the attempt, from 1 without holes';
COMMENT ON COLUMN webhook_attempts.duration_ms IS 'Milliseconds from the start of the request to the outcome; NULL when unknown';
COMMENT ON COLUMN webhook_attempts.status_code IS 'HTTP status of the answer; NULL when there was none';
COMMENT ON COLUMN webhook_attempts.outcome IS 'success (2xx), failed, or unknown (the worker was lost between the request and its record)';
COMMENT ON COLUMN webhook_attempts.worker IS 'Name of the worker that made the attempt';
COMMENT ON COLUMN webhook_attempts.error IS 'Why it did not succeed, empty when it did';
COMMENT ON COLUMN webhook_attempts.response_excerpt IS 'Beginning of the response body, made safe for text';
