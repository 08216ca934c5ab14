-- SQL is an API: what an application calls in its own transaction, and what people read in psql.

CREATE FUNCTION outhook.uuid_v7() RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE
-- RFC 9562, section 5.7: 48 bits of unix milliseconds, then version 7, then random. A version 4 UUID
-- has the variant and bit 6 of byte 6 already: overlay the time, set the two other version bits.
RETURN encode(
    set_bit(set_bit(
        overlay(uuid_send(gen_random_uuid())
                PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                FROM 1 FOR 6),
        52, 1), 53, 1), 'hex')::uuid;
COMMENT ON FUNCTION outhook.uuid_v7() IS 'A new UUID version 7';

CREATE FUNCTION outhook.wake() RETURNS void
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT pg_notify('outhook_outbox', '');
END;
COMMENT ON FUNCTION outhook.wake() IS
    'Tells the relays that something is due. Call it after the commit, never in a busy transaction: NOTIFY takes a cluster-wide lock until the commit. Only a hint: relays poll too';

CREATE FUNCTION outhook.enqueue(
    client_url      text,
    payload         text,
    headers         jsonb       DEFAULT '{}',
    deliver_at      timestamptz DEFAULT NULL,
    max_attempts    integer     DEFAULT NULL,
    idempotency_key text        DEFAULT NULL
) RETURNS uuid
LANGUAGE plpgsql VOLATILE
-- Its own tables, whatever the caller's search_path is.
SET search_path = public, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    new_id     uuid   := outhook.uuid_v7();
    alarm_id   bigint := nextval(pg_get_serial_sequence('outbox', 'id'));
    -- Hashed only when it will be compared: with a key.
    hash       bytea  := CASE WHEN idempotency_key IS NOT NULL THEN
        sha256(convert_to(jsonb_build_array(client_url, payload, coalesce(headers, '{}'), extract(epoch FROM deliver_at),
                                            max_attempts)::text, 'UTF8')) END;
    known      record;
BEGIN
    -- The HTTP API checks these in more detail; whatever passes here is checked again before every attempt.
    IF client_url !~* '^https?://[^/?#@[:space:][:cntrl:]]+([/?][^#[:space:][:cntrl:]]*)?$' THEN
        RAISE EXCEPTION 'client_url is not an absolute http or https URL without user info and fragment'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    INSERT INTO webhook_jobs AS job
        (id, outbox_id, deliver_at, max_attempts, client_url, headers, idempotency_key, body_hash, payload)
    VALUES
        (new_id, alarm_id, coalesce(deliver_at, now()), max_attempts, client_url, coalesce(headers, '{}'),
         idempotency_key, hash, payload)
    ON CONFLICT DO NOTHING;

    IF NOT FOUND THEN
        SELECT job.id, job.body_hash INTO STRICT known
        FROM webhook_jobs AS job WHERE job.idempotency_key = idempotency_key;
        IF known.body_hash IS DISTINCT FROM hash THEN
            RAISE EXCEPTION 'idempotency key was used before with other arguments' USING ERRCODE = 'unique_violation';
        END IF;
        RETURN known.id;
    END IF;

    INSERT INTO outbox (id, job_id, attempt, due_at)
    VALUES (alarm_id, new_id, 0, greatest(coalesce(deliver_at, now()), now()));
    RETURN new_id;
END;
$$;
COMMENT ON FUNCTION outhook.enqueue(text, text, jsonb, timestamptz, integer, text) IS
    'Accepts a webhook in the caller''s own transaction and returns its job id: delivered if that transaction commits, gone if it rolls back. A relay finds it within its poll interval; SELECT outhook.wake() after the commit makes it immediate';

CREATE VIEW outhook.jobs AS
SELECT job.id, job.status, job.attempt, job.retry_count, job.error, job.client_url, job.created_at, job.updated_at,
       CASE
           WHEN job.status IN ('success', 'failed', 'cancelled') THEN 'finished'
           WHEN job.status = 'processing' AND job.lease_until > now() THEN 'being delivered by ' || job.claimed_by
           WHEN job.status = 'processing' THEN 'lease expired: will be taken over'
           WHEN alarm.id IS NULL THEN 'LOST: no outbox row'
           WHEN alarm.published_at IS NOT NULL THEN 'in RabbitMQ'
           WHEN alarm.due_at > now() AND job.attempt > 0 THEN 'waiting for its retry'
           WHEN alarm.due_at > now() THEN 'scheduled'
           ELSE 'waiting for a relay'
       END AS state,
       alarm.due_at, alarm.published_at, job.lease_until
FROM webhook_jobs AS job
LEFT JOIN outbox AS alarm ON alarm.id = job.outbox_id;
COMMENT ON VIEW outhook.jobs IS 'Jobs with their in-flight state in words';

CREATE VIEW outhook.timeline AS
SELECT job.id AS job_id, job.created_at AS at, 0 AS attempt, 'accepted' AS event,
       CASE WHEN job.deliver_at > job.created_at THEN 'deliver at ' || job.deliver_at ELSE '' END AS detail
FROM webhook_jobs AS job
UNION ALL
SELECT attempt.job_id, attempt.started_at, attempt.attempt, 'attempt ' || attempt.outcome,
       concat_ws(', ', 'HTTP ' || attempt.status_code, attempt.duration_ms || ' ms',
                 nullif(attempt.error, ''), 'by ' || attempt.worker, 'retry at ' || attempt.retry_at)
FROM webhook_attempts AS attempt
UNION ALL
SELECT alarm.job_id, alarm.published_at, alarm.attempt, 'published', 'message ' || alarm.message_id
FROM outbox AS alarm WHERE alarm.published_at IS NOT NULL
UNION ALL
SELECT job.id, job.updated_at, job.attempt, job.status, job.error
FROM webhook_jobs AS job WHERE job.status <> 'pending';
COMMENT ON VIEW outhook.timeline IS 'What happened to a job, an event a row: SELECT * FROM outhook.timeline WHERE job_id = … ORDER BY at, attempt';

CREATE VIEW outhook.outbox_lag AS
SELECT count(*) FILTER (WHERE due_at <= now())                              AS due,
       coalesce(max(now() - due_at) FILTER (WHERE due_at <= now()), '0')    AS oldest_due_for,
       count(*) FILTER (WHERE published_at IS NOT NULL AND due_at > now())  AS with_workers,
       count(*) FILTER (WHERE published_at IS NULL AND due_at > now())      AS waiting_for_their_time,
       count(*)                                                             AS in_flight
FROM outbox;
COMMENT ON VIEW outhook.outbox_lag IS 'How much is in flight and how late the relays are';

CREATE VIEW outhook.conservation AS
SELECT accepted, finished, in_flight, alarms,
       unfinished_without_alarm, alarms_without_job,
       unfinished_without_alarm = 0 AND alarms_without_job = 0 AND accepted = finished + in_flight AND alarms = in_flight AS holds
FROM (
    SELECT count(job.id)                                                                    AS accepted,
           count(*) FILTER (WHERE job.status IN ('success', 'failed', 'cancelled'))         AS finished,
           count(*) FILTER (WHERE job.status IN ('pending', 'processing'))                  AS in_flight,
           count(alarm.id)                                                                  AS alarms,
           count(*) FILTER (WHERE job.status IN ('pending', 'processing') AND alarm.id IS NULL) AS unfinished_without_alarm,
           count(*) FILTER (WHERE alarm.id IS NOT NULL AND coalesce(job.status, 'success') IN ('success', 'failed', 'cancelled')) AS alarms_without_job
    FROM webhook_jobs AS job
    FULL JOIN outbox AS alarm ON alarm.id = job.outbox_id AND alarm.job_id = job.id
) AS counted;
COMMENT ON VIEW outhook.conservation IS 'Accepted = finished + in flight, and an alarm for each in flight. Reads both tables whole: not for a dashboard that polls';
