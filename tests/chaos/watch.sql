-- watch_what_moves
-- One line for each row of the outbox, and for each breaker that is to be looked at: what it waits for, in words;
-- whether that is a reason; and what about it changes whenever it moves.
WITH turns AS MATERIALIZED (
    SELECT destination, ordering_key FROM outbox WHERE turn
), lines AS (
    SELECT alarm.id AS outbox_id, alarm.job_id, alarm.destination,
           CASE
               WHEN job.id IS NULL THEN 'its job is gone'
               WHEN job.status = 'processing' AND job.lease_until > now() THEN '+it is under way, or its worker lost and its lease not over'
               WHEN alarm.waits_for = 'order' AND turns.destination IS NOT NULL THEN '+one of its key has the turn'
               WHEN alarm.waits_for = 'order' THEN 'it waits for a turn that nobody of its key has'
               WHEN alarm.waits_for = 'destination' AND coalesce(known.state, 'closed') <> 'closed'
                   THEN '+it is held, its destination is ' || known.state
               WHEN alarm.waits_for = 'destination' THEN 'it is held, and its destination is well'
               WHEN alarm.due_at <= now() THEN 'it is due'
               WHEN job.status = 'processing' THEN 'its lease is over, and nobody has taken it over'
               WHEN alarm.published_at IS NULL AND alarm.due_at > now() + interval '30 seconds' THEN 'it sleeps'
               WHEN alarm.published_at IS NULL THEN '+its time has not come'
               WHEN known.rate_limit IS NOT NULL THEN '+it is published, and its destination has a limit'
               ELSE 'it is published'
           END AS reason,
           -- What is due is not moved by being put off.
           format('row %s of job %s: %s, attempt %s %s %s %s', alarm.id, alarm.job_id, job.status, alarm.attempt,
                  alarm.waits_for, alarm.published_at, alarm.due_at) AS place
    FROM outbox AS alarm
    LEFT JOIN webhook_jobs AS job ON job.id = alarm.job_id
    LEFT JOIN destinations AS known ON known.destination = alarm.destination
    LEFT JOIN turns ON turns.destination = alarm.destination AND turns.ordering_key = alarm.ordering_key
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
