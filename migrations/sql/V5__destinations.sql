-- Destinations that are sick or limited, jobs that ask for an order, and a time limit of a job's own.

ALTER TABLE webhook_jobs
    ADD COLUMN timeout_ms   integer,
    ADD COLUMN ordering_key text,
    ADD CONSTRAINT webhook_jobs_timeout_between_100_ms_and_5_min
        CHECK (timeout_ms BETWEEN 100 AND 300000) NOT VALID,
    ADD CONSTRAINT webhook_jobs_ordering_key_between_1_and_255_bytes
        CHECK (octet_length(ordering_key) BETWEEN 1 AND 255) NOT VALID;
COMMENT ON COLUMN webhook_jobs.timeout_ms IS 'Milliseconds that an attempt may take; NULL means the worker''s HTTP_CLIENT_TIMEOUT_SEC';
COMMENT ON COLUMN webhook_jobs.ordering_key IS 'Jobs of one key are delivered one after the other in the order of outbox_id, a retry holding the next ones back; NULL means no order';

ALTER TABLE outbox
    -- Of rows that are older than this column, '': none of their destinations is known, so none is held.
    ADD COLUMN destination  text    NOT NULL DEFAULT '',
    ADD COLUMN waits_for    text,
    ADD COLUMN released     boolean NOT NULL DEFAULT false,
    ADD COLUMN ordering_key text,
    ADD CONSTRAINT outbox_waits_for_known CHECK (waits_for IN ('destination', 'order')) NOT VALID;
COMMENT ON COLUMN outbox.destination IS 'Where the job goes, as scheme://host:port: what destinations.destination is compared with';
COMMENT ON COLUMN outbox.waits_for IS 'destination (held until its destination takes more), order (an earlier job of its key is not finished), or NULL. While it waits, due_at is when it is looked at again should nobody set it free';
COMMENT ON COLUMN outbox.released IS 'Set free from a hold of its destination: it is published whatever the destination''s state is, and its outcome tells how the destination fares';
COMMENT ON COLUMN outbox.ordering_key IS 'As in webhook_jobs';

-- Rows that are held or have a key are in these; a webhook to a destination that is well is in neither.
CREATE INDEX outbox_held ON outbox (destination, id) WHERE waits_for = 'destination';
CREATE INDEX outbox_ordered ON outbox (ordering_key, id) WHERE ordering_key IS NOT NULL;

CREATE TABLE destinations (
    destination   text        NOT NULL CONSTRAINT destinations_pkey PRIMARY KEY,
    state         text        NOT NULL DEFAULT 'closed',
    hold_until    timestamptz NOT NULL DEFAULT now(),
    changed_at    timestamptz NOT NULL DEFAULT now(),
    slowed_at     timestamptz,
    release_limit integer     NOT NULL DEFAULT 16,
    openings      integer     NOT NULL DEFAULT 0,
    rate_limit    integer,
    error         text        NOT NULL DEFAULT '',

    CONSTRAINT destinations_state_known CHECK (state IN ('closed', 'metered', 'open', 'half_open')),
    CONSTRAINT destinations_release_limit_positive CHECK (release_limit >= 1),
    CONSTRAINT destinations_openings_not_negative CHECK (openings >= 0),
    CONSTRAINT destinations_rate_limit_positive CHECK (rate_limit >= 1),
    CONSTRAINT destinations_destination_is_an_origin CHECK (destination ~ '^https?://[^/?#[:space:]]+$')
) WITH (fillfactor = 50);

COMMENT ON TABLE  destinations IS 'One row for each destination that is or was sick, or has a limit. All others have none and cost nothing';
COMMENT ON COLUMN destinations.destination IS 'scheme://host:port, as in outbox.destination';
COMMENT ON COLUMN destinations.state IS 'The circuit breaker: closed (webhooks go as they come), metered (so many a second, oldest first), open (none), half_open (one, to see)';
COMMENT ON COLUMN destinations.hold_until IS 'When the relay looks at it next: the end of the cool-down, of a probe''s time, or of a metered second';
COMMENT ON COLUMN destinations.changed_at IS 'Last change of state, or last release';
COMMENT ON COLUMN destinations.slowed_at IS 'When a worker last found that it does not keep up: requests pile up, or it answers 429 or 503';
COMMENT ON COLUMN destinations.release_limit IS 'Webhooks to set free in the next second while metered: doubled when all is well, halved when it does not keep up';
COMMENT ON COLUMN destinations.openings IS 'Times the breaker has opened without a success since: the cool-down doubles with each';
COMMENT ON COLUMN destinations.rate_limit IS 'Most webhooks a second, set by its owner with outhook.limit_destination; NULL means no limit';
COMMENT ON COLUMN destinations.error IS 'What the state was last changed for';

CREATE FUNCTION outhook.destination(client_url text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
-- The default port is left out, as the api does it. Another spelling of the same host is another destination.
RETURN regexp_replace(lower(substring(client_url FROM '(?i)^https?://[^/?#\\]+')), '^(http://.*):80$|^(https://.*):443$', '\1\2');
COMMENT ON FUNCTION outhook.destination(text) IS 'The destination of a URL, as scheme://host:port';

CREATE FUNCTION outhook.limit_destination(client_url text, per_second integer) RETURNS text
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    INSERT INTO destinations (destination, rate_limit) VALUES (outhook.destination(client_url), per_second)
    ON CONFLICT (destination) DO UPDATE SET rate_limit = excluded.rate_limit
    RETURNING destination;
END;
COMMENT ON FUNCTION outhook.limit_destination(text, integer) IS
    'Lets at most so many webhooks a second go to the destination of this URL; NULL lifts the limit. Returns the destination';

-- Locks of an ordering key, for the transaction: whoever publishes the first of a key or sets the next one free.
CREATE FUNCTION outhook.ordering_lock(ordering_key text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN hashtextextended(ordering_key, 7248);
COMMENT ON FUNCTION outhook.ordering_lock(text) IS 'The advisory lock of an ordering key; two keys that share one only wait for each other';

CREATE FUNCTION outhook.release_next(ordering_keys text[]) RETURNS void
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    UPDATE outbox AS alarm SET due_at = greatest(job.deliver_at, now()), waits_for = NULL
    FROM unnest(ordering_keys) AS finished (ordering_key)
    CROSS JOIN LATERAL (
        SELECT id, job_id FROM outbox WHERE outbox.ordering_key = finished.ordering_key ORDER BY id LIMIT 1
    ) AS next
    JOIN webhook_jobs AS job ON job.id = next.job_id
    -- Not one that has begun: it may be waiting for its retry.
    WHERE alarm.id = next.id AND alarm.waits_for = 'order';
END;
COMMENT ON FUNCTION outhook.release_next(text[]) IS
    'Makes the first waiting job of each key due. Only a hint: the relay decides whether its turn has come. The keys'' locks must be held';

DROP FUNCTION outhook.enqueue(text, text, jsonb, timestamptz, integer, text);
CREATE FUNCTION outhook.enqueue(
    client_url      text,
    payload         text,
    headers         jsonb       DEFAULT '{}',
    deliver_at      timestamptz DEFAULT NULL,
    max_attempts    integer     DEFAULT NULL,
    idempotency_key text        DEFAULT NULL,
    ordering_key    text        DEFAULT NULL,
    timeout_ms      integer     DEFAULT NULL
) RETURNS uuid
LANGUAGE plpgsql VOLATILE
-- Its own tables, whatever the caller's search_path is.
SET search_path = public, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    new_id     uuid   := outhook.uuid_v7();
    alarm_id   bigint := nextval(pg_get_serial_sequence('outbox', 'id'));
    -- Hashed only when it will be compared: with a key. What was not given leaves no trace, so that a hash is
    -- the same as before there were such arguments.
    hash       bytea  := CASE WHEN idempotency_key IS NOT NULL THEN
        sha256(convert_to((jsonb_build_array(client_url, payload, coalesce(headers, '{}'), extract(epoch FROM deliver_at),
                                             max_attempts)
                           || CASE WHEN ordering_key IS NULL AND timeout_ms IS NULL THEN '[]'
                                   ELSE jsonb_build_array(ordering_key, timeout_ms) END)::text, 'UTF8')) END;
    known      record;
BEGIN
    -- The HTTP API checks these in more detail; whatever passes here is checked again before every attempt.
    IF client_url !~* '^https?://[^/?#@[:space:][:cntrl:]]+([/?][^#[:space:][:cntrl:]]*)?$' THEN
        RAISE EXCEPTION 'client_url is not an absolute http or https URL without user info and fragment'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    INSERT INTO webhook_jobs AS job
        (id, outbox_id, deliver_at, max_attempts, timeout_ms, client_url, headers, idempotency_key, body_hash,
         ordering_key, payload)
    VALUES
        (new_id, alarm_id, coalesce(deliver_at, now()), max_attempts, timeout_ms, client_url, coalesce(headers, '{}'),
         idempotency_key, hash, ordering_key, payload)
    ON CONFLICT DO NOTHING;

    IF NOT FOUND THEN
        SELECT job.id, job.body_hash INTO STRICT known
        FROM webhook_jobs AS job WHERE job.idempotency_key = idempotency_key;
        IF known.body_hash IS DISTINCT FROM hash THEN
            RAISE EXCEPTION 'idempotency key was used before with other arguments' USING ERRCODE = 'unique_violation';
        END IF;
        RETURN known.id;
    END IF;

    INSERT INTO outbox (id, job_id, attempt, due_at, destination, ordering_key)
    VALUES (alarm_id, new_id, 0, greatest(coalesce(deliver_at, now()), now()), outhook.destination(client_url),
            ordering_key);
    RETURN new_id;
END;
$$;
COMMENT ON FUNCTION outhook.enqueue(text, text, jsonb, timestamptz, integer, text, text, integer) IS
    'Accepts a webhook in the caller''s own transaction and returns its job id: delivered if that transaction commits, gone if it rolls back. A relay finds it within its poll interval; SELECT outhook.wake() after the commit makes it immediate';

CREATE OR REPLACE FUNCTION outhook.cancel(job_id uuid) RETURNS boolean
-- Not LANGUAGE sql: there the answer would be read from the snapshot of the update, in which a cancel that it
-- waited for is not yet to be seen.
LANGUAGE plpgsql VOLATILE
-- Its own tables, whatever the caller's search_path is.
SET search_path = public, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    key text := (SELECT ordering_key FROM webhook_jobs AS job WHERE job.id = job_id);
BEGIN
    -- Before the rows, as everybody does it.
    IF key IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(outhook.ordering_lock(key));
    END IF;

    -- Both rows or none. A claim that is under way is waited for, and then the job is no longer pending.
    WITH withdrawn AS (
        UPDATE webhook_jobs AS job SET status = 'cancelled', error = '', updated_at = now()
        WHERE job.id = job_id AND job.status = 'pending'
        RETURNING job.outbox_id
    )
    DELETE FROM outbox AS alarm USING withdrawn WHERE alarm.id = withdrawn.outbox_id;

    IF key IS NOT NULL THEN
        PERFORM outhook.release_next(ARRAY[key]);
    END IF;
    RETURN (SELECT job.status = 'cancelled' FROM webhook_jobs AS job WHERE job.id = job_id);
END;
$$;

CREATE OR REPLACE VIEW outhook.jobs AS
SELECT job.id, job.status, job.attempt, job.retry_count, job.error, job.client_url, job.created_at, job.updated_at,
       CASE
           WHEN job.status IN ('success', 'failed', 'cancelled') THEN 'finished'
           WHEN job.status = 'processing' AND job.lease_until > now() THEN 'being delivered by ' || job.claimed_by
           WHEN job.status = 'processing' THEN 'lease expired: will be taken over'
           WHEN alarm.id IS NULL THEN 'LOST: no outbox row'
           WHEN alarm.waits_for = 'destination' THEN 'held: its destination is ' || coalesce(destinations.state, 'closed')
           WHEN alarm.waits_for = 'order' THEN 'waiting for an earlier job of its ordering key'
           WHEN alarm.published_at IS NOT NULL THEN 'in RabbitMQ'
           WHEN alarm.due_at > now() AND job.attempt > 0 THEN 'waiting for its retry'
           WHEN alarm.due_at > now() THEN 'scheduled'
           ELSE 'waiting for a relay'
       END AS state,
       alarm.due_at, alarm.published_at, job.lease_until
FROM webhook_jobs AS job
LEFT JOIN outbox AS alarm ON alarm.id = job.outbox_id
LEFT JOIN destinations ON destinations.destination = alarm.destination;

CREATE OR REPLACE VIEW outhook.outbox_lag AS
SELECT count(*) FILTER (WHERE due_at <= now())                              AS due,
       coalesce(max(now() - due_at) FILTER (WHERE due_at <= now()), '0')    AS oldest_due_for,
       count(*) FILTER (WHERE published_at IS NOT NULL AND due_at > now())  AS with_workers,
       count(*) FILTER (WHERE published_at IS NULL AND due_at > now() AND waits_for IS NULL) AS waiting_for_their_time,
       count(*)                                                             AS in_flight,
       count(*) FILTER (WHERE waits_for = 'destination')                    AS held,
       count(*) FILTER (WHERE waits_for = 'order')                          AS waiting_for_their_turn
FROM outbox;

CREATE VIEW outhook.sick_destinations AS
SELECT destination, state, hold_until, held.count AS held, held.oldest AS oldest_held_since, release_limit, openings,
       rate_limit, error, changed_at, slowed_at
FROM destinations
CROSS JOIN LATERAL (
    SELECT count(*) AS count, min(job.created_at) AS oldest
    FROM outbox JOIN webhook_jobs AS job ON job.id = outbox.job_id
    WHERE outbox.destination = destinations.destination AND outbox.waits_for = 'destination'
) AS held
WHERE state <> 'closed' OR rate_limit IS NOT NULL;
COMMENT ON VIEW outhook.sick_destinations IS 'Destinations that are held back, why, and how much waits for them';
