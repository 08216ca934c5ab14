-- What people read in psql, and what a role must see as a whole and not in parts.
--
-- outhook migrate runs this file whole, after functions.sql. Replacing a view keeps the rights that others have on it, and
-- locks it for a moment against who reads it. Its columns are a promise: new ones are added at the end, which this can do. To
-- take one away, a migration drops the view with IF EXISTS (on a new database it runs before this), and with it the rights of
-- all but the services.

CREATE OR REPLACE VIEW outhook.jobs AS
SELECT job.id, job.status, job.attempt, job.retry_count, job.error, job.client_url, job.created_at, job.updated_at,
       CASE
           WHEN job.status IN ('success', 'failed', 'cancelled') THEN 'finished'
           WHEN job.status = 'processing' AND job.lease_until > now() THEN 'being delivered by ' || job.claimed_by
           WHEN job.status = 'processing' THEN 'lease expired: will be taken over'
           WHEN outbox_row.id IS NULL THEN 'LOST: no outbox row'
           WHEN outbox_row.waits_for = 'destination' THEN 'held: its destination is ' || coalesce(destinations.state, 'closed')
           WHEN outbox_row.waits_for = 'order' THEN 'waiting for an earlier job of its ordering key'
           WHEN outbox_row.published_at IS NOT NULL THEN 'in RabbitMQ'
           WHEN outbox_row.due_at > now() AND pause.until > now() THEN 'waiting: its URL asked for a pause'
           WHEN outbox_row.due_at > now() AND job.attempt > 0 THEN 'waiting for its retry'
           WHEN outbox_row.due_at > now() THEN 'scheduled'
           ELSE 'waiting for a relay'
       END AS state,
       outbox_row.due_at, outbox_row.published_at, job.lease_until
FROM webhook_jobs AS job
LEFT JOIN outbox AS outbox_row ON outbox_row.id = job.outbox_id
LEFT JOIN destinations ON destinations.destination = outbox_row.destination
LEFT JOIN url_pauses AS pause ON pause.url = outhook.url_without_query(job.client_url);
COMMENT ON VIEW outhook.jobs IS 'Jobs with their in-flight state in words';

CREATE OR REPLACE VIEW outhook.job_details AS
SELECT id, created_at, updated_at, deliver_at, lease_until, outbox_id, attempt, retry_count, max_attempts, timeout_ms, status,
       claimed_by, error, client_url, idempotency_key, ordering_key, octet_length(payload) AS payload_bytes
FROM webhook_jobs;
COMMENT ON VIEW outhook.job_details IS 'Jobs without what they carry: neither payload nor headers, nor a signing key. What GET /webhooks/{id} shows';

CREATE OR REPLACE VIEW outhook.timeline AS
SELECT job.id AS job_id, job.created_at AS at, 0 AS attempt, 'accepted' AS event,
       CASE WHEN job.deliver_at > job.created_at THEN 'deliver at ' || job.deliver_at ELSE '' END AS detail
FROM webhook_jobs AS job
UNION ALL
SELECT attempt.job_id, attempt.started_at, attempt.attempt, 'attempt ' || attempt.outcome,
       concat_ws(', ', 'HTTP ' || attempt.status_code, attempt.duration_ms || ' ms',
                 nullif(attempt.error, ''), 'by ' || attempt.worker, 'retry at ' || attempt.retry_at)
FROM webhook_attempts AS attempt
UNION ALL
SELECT outbox_row.job_id, outbox_row.published_at, outbox_row.attempt, 'published', 'message ' || outbox_row.message_id
FROM outbox AS outbox_row WHERE outbox_row.published_at IS NOT NULL
UNION ALL
SELECT job.id, job.updated_at, job.attempt, job.status, job.error
FROM webhook_jobs AS job WHERE job.status <> 'pending';
COMMENT ON VIEW outhook.timeline IS 'What happened to a job, an event a row: SELECT * FROM outhook.timeline WHERE job_id = … ORDER BY at, attempt';

CREATE OR REPLACE VIEW outhook.outbox_lag AS
SELECT count(*) FILTER (WHERE due_at <= now() AND waits_for IS NULL)                             AS due,
       coalesce(max(now() - due_at) FILTER (WHERE due_at <= now() AND waits_for IS NULL), '0')   AS oldest_due_for,
       count(*) FILTER (WHERE published_at IS NOT NULL AND due_at > now())                       AS with_workers,
       count(*) FILTER (WHERE published_at IS NULL AND due_at > now() AND waits_for IS NULL)     AS waiting_for_their_time,
       count(*)                                                                                  AS in_flight,
       count(*) FILTER (WHERE waits_for = 'destination')                                         AS held,
       count(*) FILTER (WHERE waits_for = 'order')                                               AS waiting_for_their_turn
FROM outbox;
COMMENT ON VIEW outhook.outbox_lag IS 'How much is in flight and how late the relays are';

CREATE OR REPLACE VIEW outhook.conservation AS
SELECT accepted, finished, in_flight, outbox_rows,
       unfinished_without_outbox_row, outbox_rows_without_job,
       unfinished_without_outbox_row = 0 AND outbox_rows_without_job = 0 AND accepted = finished + in_flight AND outbox_rows = in_flight AS holds
FROM (
    SELECT count(job.id)                                                                    AS accepted,
           count(*) FILTER (WHERE job.status IN ('success', 'failed', 'cancelled'))         AS finished,
           count(*) FILTER (WHERE job.status IN ('pending', 'processing'))                  AS in_flight,
           count(outbox_row.id)                                                                  AS outbox_rows,
           count(*) FILTER (WHERE job.status IN ('pending', 'processing') AND outbox_row.id IS NULL) AS unfinished_without_outbox_row,
           count(*) FILTER (WHERE outbox_row.id IS NOT NULL AND coalesce(job.status, 'success') IN ('success', 'failed', 'cancelled')) AS outbox_rows_without_job
    FROM webhook_jobs AS job
    FULL JOIN outbox AS outbox_row ON outbox_row.id = job.outbox_id AND outbox_row.job_id = job.id
) AS counted;
COMMENT ON VIEW outhook.conservation IS 'Accepted = finished + in flight, and an outbox row for each in flight. Reads both tables whole: not for a dashboard that polls';

CREATE OR REPLACE VIEW outhook.sick_destinations AS
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

CREATE OR REPLACE VIEW outhook.signing_keys AS
SELECT key.id, key.destination, key.scheme,
       CASE
           WHEN key.expires_at <= now() THEN 'expired'
           WHEN key.expires_at IS NOT NULL THEN 'signs beside its successor'
           ELSE 'signs'
       END AS state,
       key.created_at, key.expires_at
FROM destination_keys AS key;
COMMENT ON VIEW outhook.signing_keys IS 'Signing keys of destinations, without the keys themselves';
