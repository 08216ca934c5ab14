-- The tables: jobs, their rows in the outbox, what happened at each attempt, and what is known of destinations. What is done
-- with them stands in ../sql_api; who may do it in ../roles.sql.
--
-- Column order: fixed-width columns first, widest first, so that rows carry no padding;
-- then text that changes, then text that does not.

CREATE SCHEMA outhook;
COMMENT ON SCHEMA outhook IS 'Functions and views of Outhook; its tables are in the schema public';

CREATE TABLE schema_version (
    version  integer NOT NULL CONSTRAINT schema_version_pkey PRIMARY KEY,
    api_hash text    NOT NULL,

    CONSTRAINT schema_version_positive CHECK (version >= 1)
);
CREATE UNIQUE INDEX schema_version_one_row ON schema_version ((true));
COMMENT ON TABLE  schema_version IS 'One row: what this database was brought to by outhook migrate. A program refuses to work with another version than its own';
COMMENT ON COLUMN schema_version.version IS 'Of tables, functions and views together';
COMMENT ON COLUMN schema_version.api_hash IS 'SHA-256 of the SQL that functions and views were made by: the same SQL is not run again';

CREATE TABLE installation (
    id uuid NOT NULL DEFAULT gen_random_uuid() CONSTRAINT installation_pkey PRIMARY KEY
);
INSERT INTO installation DEFAULT VALUES;
COMMENT ON TABLE  installation IS 'One row: which installation of Outhook this database is. RabbitMQ''s messages name it';
COMMENT ON COLUMN installation.id IS 'Made once. A copy of the database has the same: give it another one before both use one broker';

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
    timeout_ms      integer,
    status          text        NOT NULL DEFAULT 'pending',
    claimed_by      text,
    error           text        NOT NULL DEFAULT '',
    client_url      text        NOT NULL,
    headers         jsonb       NOT NULL DEFAULT '{}',
    idempotency_key text,
    ordering_key    text,
    sealed_key      bytea,
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
    CONSTRAINT webhook_jobs_timeout_between_100_ms_and_5_min
        CHECK (timeout_ms BETWEEN 100 AND 300000),
    CONSTRAINT webhook_jobs_client_url_is_http
        CHECK (client_url ~* '^https?://.'),
    CONSTRAINT webhook_jobs_client_url_at_most_2048_bytes
        CHECK (octet_length(client_url) <= 2048),
    CONSTRAINT webhook_jobs_payload_at_most_16_mib
        CHECK (octet_length(payload) <= 16777216),
    CONSTRAINT webhook_jobs_headers_are_an_object
        CHECK (jsonb_typeof(headers) = 'object'),
    CONSTRAINT webhook_jobs_idempotency_key_between_1_and_255_bytes
        CHECK (octet_length(idempotency_key) BETWEEN 1 AND 255),
    CONSTRAINT webhook_jobs_ordering_key_between_1_and_255_bytes
        CHECK (octet_length(ordering_key) BETWEEN 1 AND 255),
    CONSTRAINT webhook_jobs_sealed_key_between_31_and_1024_bytes
        CHECK (octet_length(sealed_key) BETWEEN 31 AND 1024),
    CONSTRAINT webhook_jobs_deliver_at_within_366_days
        CHECK (deliver_at - created_at <= interval '366 days')
) WITH (
    -- Two updates a life, both HOT: leave room for them on the page. Processor time of the server per job, whole life in
    -- batches of 200 on Postgres 15: 55 us with 45, 66 with 70, 83 with 100. With a 250-byte payload, 45 puts nine rows on a
    -- page, whose two updates fit only if old versions are cleaned up in between; 35 puts seven. Under load 98 % of the
    -- updates are HOT instead of 86 %, and a job writes 1,875 bytes of log instead of 1,980; the heap is 29 % larger.
    fillfactor = 35,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 1
);
-- No index besides the primary key: one on status would cost 17 us of processor time a job.

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
COMMENT ON COLUMN webhook_jobs.timeout_ms IS 'Milliseconds that an attempt may take; NULL means the worker''s HTTP_CLIENT_TIMEOUT_SEC';
COMMENT ON COLUMN webhook_jobs.status IS 'pending (waiting for its outbox row), processing (claimed by a worker), success, failed or cancelled';
COMMENT ON COLUMN webhook_jobs.claimed_by IS 'Name of the worker that holds the lease; NULL unless processing';
COMMENT ON COLUMN webhook_jobs.error IS 'Error of the last attempt, empty when there is none';
COMMENT ON COLUMN webhook_jobs.client_url IS 'Where the payload is posted to, as outhook.canonical_url has it';
COMMENT ON COLUMN webhook_jobs.headers IS 'Extra request headers, an object of strings';
COMMENT ON COLUMN webhook_jobs.idempotency_key IS 'The caller''s key, or else the signed id, for people: which job holds a key says idempotency_keys';
COMMENT ON COLUMN webhook_jobs.ordering_key IS 'Jobs of one key and one destination are delivered one after the other in the order of outbox_id, a retry holding the next ones back; NULL means no order';
COMMENT ON COLUMN webhook_jobs.sealed_key IS 'The job''s own signing key, instead of its destination''s, sealed with SECRETS_KEY for this job; NULL when it has none';
COMMENT ON COLUMN webhook_jobs.payload IS 'Request body, delivered byte for byte';

-- A table of its own: jobs without a key pay nothing, and what holds a key can be forgotten while its job stays.
CREATE TABLE idempotency_keys (
    -- Each row's own moment, not its transaction's: whoever goes through old ones in parts knows where to go on.
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    job_id     uuid        NOT NULL,
    is_signed  boolean     NOT NULL,
    body_hash  bytea       NOT NULL,
    key        text        NOT NULL,

    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (key, is_signed),
    CONSTRAINT idempotency_keys_key_between_1_and_255_bytes CHECK (octet_length(key) BETWEEN 1 AND 255)
) WITH (
    -- As many are deleted as come, and none is updated.
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 1
);
CREATE INDEX idempotency_keys_created_at ON idempotency_keys (created_at);
COMMENT ON TABLE  idempotency_keys IS 'One row for each key that holds a job: a request with that key makes no other one. A relay deletes it after IDEMPOTENCY_DAYS';
COMMENT ON COLUMN idempotency_keys.created_at IS 'When the job was accepted';
COMMENT ON COLUMN idempotency_keys.job_id IS 'The job in webhook_jobs, written in the same transaction';
COMMENT ON COLUMN idempotency_keys.is_signed IS 'Whether it is the webhook-id that the request was signed with: one job an id, whatever idempotency key a replay comes with, since that is not signed. Otherwise it is an idempotency key';
COMMENT ON COLUMN idempotency_keys.body_hash IS 'SHA-256 of the accepted request, compared when the key comes again';
COMMENT ON COLUMN idempotency_keys.key IS 'The caller''s key, or the id';

CREATE TABLE outbox (
    id            bigint      GENERATED BY DEFAULT AS IDENTITY CONSTRAINT outbox_pkey PRIMARY KEY,
    due_at        timestamptz NOT NULL,
    published_at  timestamptz,
    job_id        uuid        NOT NULL,
    message_id    uuid        NOT NULL DEFAULT gen_random_uuid(),
    attempt       integer     NOT NULL,
    payload_bytes integer     NOT NULL DEFAULT 0,
    released      boolean     NOT NULL DEFAULT false,
    turn          boolean     NOT NULL DEFAULT false,
    waits_for     text,
    destination   text        NOT NULL DEFAULT '',
    ordering_key  text,
    traceparent   text,

    CONSTRAINT outbox_attempt_not_negative CHECK (attempt >= 0),
    CONSTRAINT outbox_waits_for_known CHECK (waits_for IN ('destination', 'order')),
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

-- Rows that wait are in none of what the relay looks through for what is due, however many they are. With id, so that rows of
-- one moment, such as those of one transaction, can be gone through in parts.
CREATE INDEX outbox_due_at ON outbox (due_at, id) WHERE waits_for IS NULL;
-- A webhook without a key to a destination that is well is in none of these.
CREATE INDEX outbox_held ON outbox (destination, attempt, id) WHERE waits_for = 'destination';
CREATE INDEX outbox_waiting_for_turn ON outbox (destination, ordering_key, id) WHERE waits_for = 'order';
-- I13, kept by the database: whoever would give a second row of a key its turn fails.
CREATE UNIQUE INDEX outbox_turn ON outbox (destination, ordering_key) WHERE turn;

COMMENT ON TABLE  outbox IS 'One row for each job that is not finished: it says when the job is due. Empty when nothing is in flight';
COMMENT ON COLUMN outbox.id IS 'Outbox row id, the same through all attempts of its job';
COMMENT ON COLUMN outbox.due_at IS 'When it is to be published: first publication, retry, scheduled delivery, or republication of a lost message. Of a row that waits, since when it does';
COMMENT ON COLUMN outbox.published_at IS 'When the broker''s confirm of message_id was recorded, or when a worker last said that it has the message; NULL before that';
COMMENT ON COLUMN outbox.job_id IS 'The job in webhook_jobs. No foreign key: it would cost 15 us a job, and outhook.conservation checks it';
COMMENT ON COLUMN outbox.message_id IS 'AMQP message_id of the publication, the same when it is repeated; a retry gets a new one';
COMMENT ON COLUMN outbox.attempt IS 'The job''s attempt when the row was made due: what a claim must find';
COMMENT ON COLUMN outbox.payload_bytes IS 'Length of the job''s payload, by which workers bound what they hold in memory; 0 if not known';
COMMENT ON COLUMN outbox.released IS 'Set free from a hold of its destination: it is published whatever the destination''s state is, and its outcome tells how the destination fares';
COMMENT ON COLUMN outbox.turn IS 'Of rows with an ordering key: it may be published. One row of a key and destination at most, until it is deleted';
COMMENT ON COLUMN outbox.waits_for IS 'destination (held until its destination takes more), order (an earlier job of its key is not finished), or NULL. A row that waits is not due, whatever due_at says';
COMMENT ON COLUMN outbox.destination IS 'Where the job goes, as scheme://host:port: what destinations.destination is compared with';
COMMENT ON COLUMN outbox.ordering_key IS 'As in webhook_jobs; rows of one key and one destination go one after the other';
COMMENT ON COLUMN outbox.traceparent IS 'W3C trace context of the accepting request, if it had one';

CREATE TABLE outbox_checks (
    id        bigint  GENERATED BY DEFAULT AS IDENTITY CONSTRAINT outbox_checks_pkey PRIMARY KEY,
    outbox_id bigint  NOT NULL,
    attempt   integer NOT NULL
);
COMMENT ON TABLE  outbox_checks IS 'Published rows of the outbox whose message was dropped because somebody held the job or the row, or a lease: due again as soon as they are free';
COMMENT ON COLUMN outbox_checks.id IS 'Order of the lines';
COMMENT ON COLUMN outbox_checks.outbox_id IS 'The row in outbox';
COMMENT ON COLUMN outbox_checks.attempt IS 'The row''s attempt when its message was dropped: a row that has moved on since is left alone';

CREATE TABLE ordering_checks (
    id           bigint GENERATED BY DEFAULT AS IDENTITY CONSTRAINT ordering_checks_pkey PRIMARY KEY,
    destination  text   NOT NULL,
    ordering_key text   NOT NULL
);
COMMENT ON TABLE  ordering_checks IS 'Keys whose next turn is to be given: one line for each row that begins to wait for its turn, and for each whose turn has ended. Written with that, and only ever inserted, so that nobody waits for anybody';
COMMENT ON COLUMN ordering_checks.id IS 'Order of the lines';
COMMENT ON COLUMN ordering_checks.destination IS 'As in outbox';
COMMENT ON COLUMN ordering_checks.ordering_key IS 'As in outbox';

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

CREATE TABLE destinations (
    hold_until    timestamptz NOT NULL DEFAULT now(),
    changed_at    timestamptz NOT NULL DEFAULT now(),
    slowed_at     timestamptz,
    next_slot_at  timestamptz NOT NULL DEFAULT '-infinity',
    release_limit integer     NOT NULL DEFAULT 16,
    openings      integer     NOT NULL DEFAULT 0,
    rate_limit    integer,
    state         text        NOT NULL DEFAULT 'closed',
    error         text        NOT NULL DEFAULT '',
    destination   text        NOT NULL CONSTRAINT destinations_pkey PRIMARY KEY,

    CONSTRAINT destinations_state_known CHECK (state IN ('closed', 'metered', 'open', 'half_open')),
    CONSTRAINT destinations_release_limit_positive CHECK (release_limit >= 1),
    CONSTRAINT destinations_openings_not_negative CHECK (openings >= 0),
    CONSTRAINT destinations_rate_limit_positive CHECK (rate_limit >= 1),
    CONSTRAINT destinations_destination_is_an_origin CHECK (destination ~ '^https?://[^/?#[:space:]]+$')
) WITH (fillfactor = 50);

-- What is sick or limited is found without those that were once sick.
CREATE INDEX destinations_sick ON destinations (hold_until) WHERE state <> 'closed';
CREATE INDEX destinations_limited ON destinations (destination) WHERE rate_limit IS NOT NULL;
CREATE INDEX destinations_forgettable ON destinations (changed_at) WHERE state = 'closed' AND rate_limit IS NULL;

COMMENT ON TABLE  destinations IS 'One row for each destination that is or was sick, or has a limit. All others have none and cost nothing';
COMMENT ON COLUMN destinations.hold_until IS 'When the relay looks at it next: the end of the cool-down, of a probe''s time, or of a metered tick';
COMMENT ON COLUMN destinations.changed_at IS 'Last change of state';
COMMENT ON COLUMN destinations.slowed_at IS 'When a worker last found that it does not keep up: requests pile up, or it answers 429 or 503';
COMMENT ON COLUMN destinations.next_slot_at IS 'With a rate_limit: when the next request may go. Workers reserve slots by moving it on';
COMMENT ON COLUMN destinations.release_limit IS 'Webhooks a second to set free while metered: doubled each second when all is well, halved when it does not keep up';
COMMENT ON COLUMN destinations.openings IS 'Times the breaker has opened without a success since: the cool-down doubles with each';
COMMENT ON COLUMN destinations.rate_limit IS 'Most webhooks a second, set by its owner with outhook.limit_destination; NULL means no limit';
COMMENT ON COLUMN destinations.state IS 'The circuit breaker: closed (webhooks go as they come), metered (so many a second, oldest first), open (none), half_open (one, to see)';
COMMENT ON COLUMN destinations.error IS 'What the state was last changed for';
COMMENT ON COLUMN destinations.destination IS 'scheme://host:port, as in outbox.destination';

CREATE TABLE url_pauses (
    until timestamptz NOT NULL,
    url   text        NOT NULL CONSTRAINT url_pauses_pkey PRIMARY KEY
);
CREATE INDEX url_pauses_until ON url_pauses (until);
COMMENT ON TABLE  url_pauses IS 'URLs whose receiver asked for a pause with Retry-After: no job is claimed for them before its end';
COMMENT ON COLUMN url_pauses.until IS 'End of the pause, by this database''s clock';
COMMENT ON COLUMN url_pauses.url IS 'As in webhook_jobs.client_url, without the query';

-- Only ever sealed, with a key that is not in the database (SECRETS_KEY). Not named like the view outhook.signing_keys: for a
-- role that is called outhook, that one's schema comes first.
CREATE TABLE destination_keys (
    id          uuid        NOT NULL CONSTRAINT destination_keys_pkey PRIMARY KEY,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz,
    scheme      text        NOT NULL,
    destination text        NOT NULL,
    sealed      bytea       NOT NULL,

    CONSTRAINT destination_keys_scheme_known
        CHECK (scheme IN ('v1', 'v1a', 'github')),
    CONSTRAINT destination_keys_destination_is_an_origin
        CHECK (destination ~ '^https?://[^/?#@[:space:]]+$'),
    CONSTRAINT destination_keys_destination_at_most_2048_bytes
        CHECK (octet_length(destination) <= 2048),
    CONSTRAINT destination_keys_sealed_between_31_and_1024_bytes
        CHECK (octet_length(sealed) BETWEEN 31 AND 1024),
    CONSTRAINT destination_keys_expire_after_their_creation
        CHECK (expires_at >= created_at)
);
CREATE INDEX destination_keys_destination ON destination_keys (destination);
COMMENT ON TABLE  destination_keys IS 'Keys that deliveries to a destination are signed with; every one that has not expired signs';
COMMENT ON COLUMN destination_keys.id IS 'Key id, a UUID version 7';
COMMENT ON COLUMN destination_keys.created_at IS 'When it was set';
COMMENT ON COLUMN destination_keys.expires_at IS 'It signs until then; NULL means until it is removed or a newer one of its scheme is set';
COMMENT ON COLUMN destination_keys.scheme IS 'v1 (HMAC-SHA256) or v1a (Ed25519) of Standard Webhooks, or github (X-Hub-Signature-256); for people, the scheme that counts is sealed with the key';
COMMENT ON COLUMN destination_keys.destination IS 'Origin of the URLs whose deliveries it signs, as in https://example.com or http://10.0.0.1:8080';
COMMENT ON COLUMN destination_keys.sealed IS 'Scheme and key, sealed with SECRETS_KEY for this destination: in a row of another it cannot be opened';
