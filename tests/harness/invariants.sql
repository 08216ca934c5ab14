-- What must hold once nothing is under way any more, whatever was killed on the way there.
--
-- Each statement returns the rows that break its invariant, one line of text each: none is good. A line
-- `-- I1: …` names the invariant that follows.

-- I1: every accepted webhook has its job row, with the very bytes that were accepted
SELECT format('job %s was accepted and %s', accepted.job_id,
              CASE WHEN job.id IS NULL THEN 'has no row' ELSE 'has another payload: ' || left(job.payload, 80) END)
FROM harness.accepted LEFT JOIN webhook_jobs AS job ON job.id = accepted.job_id
WHERE job.id IS NULL OR convert_to(job.payload, 'UTF8') <> accepted.payload;

-- I2: every unfinished job has exactly one outbox row, every finished job none, and no row is without a job
SELECT format('job %s is %s and has %s outbox rows', coalesce(job.id, alarm.job_id), job.status, count(alarm.id))
FROM webhook_jobs AS job FULL JOIN outbox AS alarm ON alarm.job_id = job.id
GROUP BY job.id, alarm.job_id, job.status
HAVING count(alarm.id) <> coalesce((job.status IN ('pending', 'processing'))::integer, 0)
    OR bool_or(alarm.id <> job.outbox_id);

-- I3: nothing is overdue
SELECT format('outbox row %s of job %s is due since %s', id, job_id, due_at)
FROM outbox WHERE due_at < now() - interval '3 seconds';

-- I4: every job is finished
SELECT format('job %s is %s at attempt %s, lease until %s', id, status, attempt, lease_until)
FROM webhook_jobs WHERE status NOT IN ('success', 'failed', 'cancelled');

-- I5: success stands only where the receiver answered 2xx, and a recorded status is the one it answered
SELECT format('job %s, attempt %s: recorded %s with status %s, the receiver answered %s',
              record.job_id, record.attempt, record.outcome, record.status_code, string_agg(coalesce(received.status::text, 'nothing'), ', '))
FROM webhook_attempts AS record LEFT JOIN harness.received USING (job_id, attempt)
WHERE record.status_code IS NOT NULL
GROUP BY record.job_id, record.attempt
HAVING NOT coalesce(bool_or(received.status = record.status_code), false);

-- I6: transitions follow the state machine, and none leaves a final state
SELECT format('job %s went from %s to %s at attempt %s -> %s (%s)', job_id, old_status, new_status, old_attempt, new_attempt, at)
FROM harness.transitions
WHERE (old_status, new_status) NOT IN (
    ('pending', 'processing'), ('processing', 'pending'), ('processing', 'success'), ('processing', 'failed'),
    ('pending', 'cancelled'), ('processing', 'cancelled'));

-- I6: the attempts of a job count 1, 2, 3 without holes, and the job's own numbers agree with them
SELECT format('job %s is %s with attempt %s and retry_count %s, recorded are %s', job.id, job.status, job.attempt, job.retry_count,
              coalesce(string_agg(record.attempt || ' ' || record.outcome, ', ' ORDER BY record.attempt), 'none'))
FROM webhook_jobs AS job LEFT JOIN webhook_attempts AS record ON record.job_id = job.id
GROUP BY job.id
HAVING count(record.attempt) <> coalesce(max(record.attempt), 0)
    OR count(record.attempt) <> job.attempt - (job.status = 'processing')::integer
    OR count(record.attempt) FILTER (WHERE record.outcome <> 'success') <> job.retry_count;

-- I7: a job has one successful attempt if it is a success, the last one, and none otherwise
SELECT format('job %s is %s after %s attempts, successful are: %s', job.id, job.status, job.attempt,
              coalesce(string_agg(record.attempt::text, ', ') FILTER (WHERE record.outcome = 'success'), 'none'))
FROM webhook_jobs AS job LEFT JOIN webhook_attempts AS record ON record.job_id = job.id
GROUP BY job.id
HAVING count(*) FILTER (WHERE record.outcome = 'success') <> (job.status = 'success')::integer
    OR max(record.attempt) FILTER (WHERE record.outcome = 'success') <> job.attempt;

-- I8: the fencing number grows by one at each claim and changes at nothing else
SELECT format('job %s went from %s to %s at attempt %s -> %s (%s)', job_id, old_status, new_status, old_attempt, new_attempt, at)
FROM harness.transitions
WHERE new_attempt - old_attempt <> (new_status = 'processing')::integer;

-- I9: the receiver got the accepted bytes, with a signature that verifies
SELECT format('delivery %s of job %s, attempt %s: %s; body %s', received.sequence, received.job_id, received.attempt,
              received.signature, left(encode(received.body, 'escape'), 80))
FROM harness.received LEFT JOIN webhook_jobs AS job ON job.id = received.job_id
WHERE received.signature <> 'signature verified'
   OR job.id IS NULL
   OR received.body <> convert_to(job.payload, 'UTF8');

-- I9: a job has one webhook-id on all its deliveries, and no other job has it
SELECT format('webhook-id %s stands on deliveries of %s jobs', webhook_id, count(DISTINCT job_id))
FROM harness.received GROUP BY webhook_id HAVING webhook_id IS NULL OR count(DISTINCT job_id) <> 1
UNION ALL
SELECT format('job %s was delivered with the ids %s', job_id, string_agg(DISTINCT webhook_id, ', '))
FROM harness.received GROUP BY job_id HAVING count(DISTINCT webhook_id) <> 1;

-- I10: one job has an idempotency key
SELECT format('key %s is on %s jobs', idempotency_key, count(*))
FROM webhook_jobs WHERE idempotency_key IS NOT NULL GROUP BY idempotency_key HAVING count(*) > 1;

-- I11: no job was attempted more often than it may be
SELECT format('job %s had %s attempts of %s', id, attempt, coalesce(job.max_attempts, settings.max_attempts))
FROM webhook_jobs AS job, harness.settings WHERE attempt > coalesce(job.max_attempts, settings.max_attempts);

-- I11: no attempt began before the one before it allowed, and none before its deliver_at
SELECT format('job %s, attempt %s began at %s, not before %s was allowed', record.job_id, record.attempt, record.started_at,
              coalesce(earlier.retry_at, job.deliver_at))
FROM webhook_attempts AS record
JOIN webhook_jobs AS job ON job.id = record.job_id
LEFT JOIN webhook_attempts AS earlier ON earlier.job_id = record.job_id AND earlier.attempt = record.attempt - 1
WHERE record.started_at < CASE WHEN record.attempt = 1 THEN job.deliver_at ELSE earlier.retry_at END
   OR (record.attempt > 1 AND earlier.retry_at IS NULL);

-- I12: no session stands idle in a transaction
SELECT format('%s (process %s) is %s since %s, after: %s', application_name, pid, state, state_change, query)
FROM pg_stat_activity
WHERE datname = current_database() AND state LIKE 'idle in transaction%' AND state_change < now() - interval '3 seconds';

-- D1: no attempt was posted twice
SELECT format('job %s, attempt %s was posted %s times: deliveries %s', job_id, attempt, count(*), string_agg(sequence::text, ', '))
FROM harness.received GROUP BY job_id, attempt HAVING count(*) > 1;

-- D2: every delivery is of a recorded attempt, and one that the receiver took is recorded as success or as unknown
SELECT format('delivery %s of job %s, attempt %s, answered with %s, is recorded as %s', received.sequence, received.job_id,
              received.attempt, coalesce(received.status::text, 'nothing'), coalesce(record.outcome, 'nothing'))
FROM harness.received LEFT JOIN webhook_attempts AS record USING (job_id, attempt)
WHERE record.outcome IS NULL
   OR (received.status BETWEEN 200 AND 299 AND record.outcome = 'failed');

-- D3: a job that the receiver took more than once has an unknown attempt for each time more
SELECT format('job %s was taken %s times and has %s unknown attempts', received.job_id, count(DISTINCT received.sequence),
              count(DISTINCT record.attempt))
FROM harness.received
LEFT JOIN webhook_attempts AS record ON record.job_id = received.job_id AND record.outcome = 'unknown'
WHERE received.status BETWEEN 200 AND 299
GROUP BY received.job_id
HAVING count(DISTINCT received.sequence) - 1 > count(DISTINCT record.attempt);

-- P1: one publication is recorded for an attempt, unless its row rang again
SELECT format('outbox row %s of job %s, attempt %s: %s first publications were recorded', outbox_id, job_id, attempt, count(*))
FROM harness.publications WHERE NOT rang_again GROUP BY outbox_id, job_id, attempt HAVING count(*) > 1;

-- P2: the message of an attempt has one id, however often it was published
SELECT format('outbox row %s of job %s, attempt %s was published as %s', outbox_id, job_id, attempt, string_agg(DISTINCT message_id::text, ', '))
FROM harness.publications GROUP BY outbox_id, job_id, attempt HAVING count(DISTINCT message_id) > 1;
