-- watch_what_moves
-- One line for each row of the outbox, and for each breaker that is to be looked at: what it waits for, in words;
-- whether that is a reason; and what about it changes whenever it moves.
WITH turns AS MATERIALIZED (
    SELECT destination, ordering_key FROM outbox WHERE turn
), lines AS (
    SELECT outbox_row.id AS outbox_id, outbox_row.job_id, outbox_row.destination,
           CASE
               WHEN job.id IS NULL THEN 'its job is gone'
               WHEN job.status = 'processing' AND job.lease_until > now() THEN '+it is under way, or its worker lost and its lease not over'
               WHEN outbox_row.waits_for = 'order' AND turns.destination IS NOT NULL THEN '+one of its key has the turn'
               WHEN outbox_row.waits_for = 'order' THEN 'it waits for a turn that nobody of its key has'
               WHEN outbox_row.waits_for = 'destination' AND coalesce(known.state, 'closed') <> 'closed'
                   THEN '+it is held, its destination is ' || known.state
               WHEN outbox_row.waits_for = 'destination' THEN 'it is held, and its destination is well'
               WHEN outbox_row.due_at <= now() THEN 'it is due'
               WHEN job.status = 'processing' THEN 'its lease is over, and nobody has taken it over'
               WHEN outbox_row.published_at IS NULL AND outbox_row.due_at > now() + interval '30 seconds' THEN 'it sleeps'
               WHEN outbox_row.published_at IS NULL THEN '+its time has not come'
               WHEN known.rate_limit IS NOT NULL THEN '+it is published, and its destination has a limit'
               ELSE 'it is published'
           END AS reason,
           -- What is due is not moved by being put off.
           format('row %s of job %s: %s, attempt %s %s %s %s', outbox_row.id, outbox_row.job_id, job.status, outbox_row.attempt,
                  outbox_row.waits_for, outbox_row.published_at, outbox_row.due_at) AS place
    FROM outbox AS outbox_row
    LEFT JOIN webhook_jobs AS job ON job.id = outbox_row.job_id
    LEFT JOIN destinations AS known ON known.destination = outbox_row.destination
    LEFT JOIN turns ON turns.destination = outbox_row.destination AND turns.ordering_key = outbox_row.ordering_key
)
SELECT outbox_id, job_id, destination, ltrim(reason, '+') AS reason, reason LIKE '+%' AS is_reason, place FROM lines
UNION ALL
SELECT NULL, NULL, destination, 'a breaker is to be looked at', false,
       format('destination %s: %s until %s', destination, state, hold_until)
FROM destinations WHERE state <> 'closed' AND hold_until < now()
UNION ALL
(SELECT DISTINCT ON (destination) id, job_id, destination, 'the first that is held for it', false,
        format('destination %s: row %s, attempt %s', destination, id, attempt)
 FROM outbox WHERE waits_for = 'destination' ORDER BY destination, attempt, id)
