-- What holds at any moment, under load as well: read in one snapshot, which falls between transactions.
--
-- Each statement returns the rows that break its invariant, one line of text each: none is good. A line
-- `-- I1: …` names the invariant that follows; the letters are those of docs/reliability.md.

-- I2: every unfinished job has exactly one outbox row, every finished job none, and no row is without a job
SELECT format('job %s is %s and has %s outbox rows', coalesce(job.id, outbox_row.job_id), coalesce(job.status, 'nowhere'), count(outbox_row.id))
FROM webhook_jobs AS job FULL JOIN outbox AS outbox_row ON outbox_row.job_id = job.id
GROUP BY job.id, outbox_row.job_id, job.status
HAVING count(outbox_row.id) <> coalesce((job.status IN ('pending', 'processing'))::integer, 0)
    OR bool_or(outbox_row.id <> job.outbox_id);

-- I3: nothing is overdue
SELECT format('outbox row %s of job %s is due since %s', id, job_id, due_at)
FROM outbox WHERE waits_for IS NULL AND due_at < now() - current_setting('outhook_check.overdue')::interval;

-- I18: nothing waits for a destination that is well
SELECT format('outbox row %s of job %s is held since %s, and its destination is %s', id, job_id, due_at, coalesce(state, 'well'))
FROM outbox LEFT JOIN destinations USING (destination)
WHERE waits_for = 'destination' AND coalesce(state, 'closed') = 'closed'
  AND due_at < now() - current_setting('outhook_check.overdue')::interval;

-- I18: no breaker's time to be looked at is long over
SELECT format('destination %s is %s, and was to be looked at at %s', destination, state, hold_until)
FROM destinations WHERE state <> 'closed' AND hold_until < now() - current_setting('outhook_check.overdue')::interval;

-- I18: nothing waits for its turn in a key of which no row has it
SELECT format('ordering key %s of %s: %s rows wait, none has its turn', ordering_key, destination, count(*))
FROM outbox AS waiting WHERE waits_for = 'order'
  AND NOT EXISTS (SELECT FROM outbox AS other WHERE other.turn
                  AND (other.destination, other.ordering_key) = (waiting.destination, waiting.ordering_key))
  AND NOT EXISTS (SELECT FROM ordering_checks AS line
                  WHERE (line.destination, line.ordering_key) = (waiting.destination, waiting.ordering_key))
GROUP BY destination, ordering_key;

-- I5: success stands only with an answer of 2xx
SELECT format('job %s, attempt %s is a success with status %s', job_id, attempt, coalesce(status_code::text, 'none'))
FROM webhook_attempts WHERE outcome = 'success' AND (status_code BETWEEN 200 AND 299) IS NOT TRUE;

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

-- I10: the job that holds an idempotency key carries it
SELECT format('key %s is held by job %s, whose own key is %s', held.key, held.job_id, coalesce(job.idempotency_key, 'none'))
FROM idempotency_keys AS held JOIN webhook_jobs AS job ON job.id = held.job_id
WHERE job.idempotency_key IS NULL OR (NOT held.is_signed AND job.idempotency_key <> held.key);

-- I10: no other job carries an idempotency key while it is held
SELECT format('key %s is held by job %s since %s, and is also on job %s of %s', held.key, held.job_id, held.created_at, job.id, job.created_at)
FROM idempotency_keys AS held JOIN webhook_jobs AS job ON job.idempotency_key = held.key AND job.id <> held.job_id
WHERE NOT held.is_signed
  -- A job that had the key before was accepted a day before at the least.
  AND job.created_at > held.created_at - interval '1 hour';

-- I10: a job holds its idempotency key for a day at the least
SELECT format('job %s of %s carries key %s and does not hold it', job.id, job.created_at, job.idempotency_key)
FROM webhook_jobs AS job
WHERE job.idempotency_key IS NOT NULL AND job.created_at > now() - interval '23 hours' AND NOT EXISTS (
    SELECT FROM idempotency_keys AS held WHERE held.key = job.idempotency_key AND held.job_id = job.id);

-- I11: no job was attempted more often than it may be
SELECT format('job %s had %s attempts of %s', id, attempt, allowed)
FROM (SELECT id, attempt, coalesce(max_attempts, nullif(current_setting('outhook_check.max_retries'), '')::integer) AS allowed
      FROM webhook_jobs) AS job
WHERE attempt > allowed;

-- I11: no attempt began before the one before it allowed, and none before its deliver_at
SELECT format('job %s, attempt %s began at %s, not before %s was allowed', record.job_id, record.attempt, record.started_at,
              coalesce(earlier.retry_at, job.deliver_at))
FROM webhook_attempts AS record
JOIN webhook_jobs AS job ON job.id = record.job_id
LEFT JOIN webhook_attempts AS earlier ON earlier.job_id = record.job_id AND earlier.attempt = record.attempt - 1
WHERE record.started_at < CASE WHEN record.attempt = 1 THEN job.deliver_at ELSE earlier.retry_at END
   OR (record.attempt > 1 AND earlier.retry_at IS NULL);

-- I13: no two jobs of an ordering key have begun and are not finished, and none begins before its turn
SELECT format('ordering key %s of %s: jobs %s have begun', ordering_key, destination, string_agg(job_id::text, ', '))
FROM outbox WHERE ordering_key IS NOT NULL AND (attempt > 0 OR published_at IS NOT NULL OR turn)
GROUP BY destination, ordering_key HAVING count(*) > 1 OR NOT bool_and(turn);

-- I12: no session stands idle in a transaction
SELECT format('%s (process %s) is %s since %s, after: %s', application_name, pid, state, state_change, left(query, 80))
FROM pg_stat_activity
WHERE datname = current_database() AND state LIKE 'idle in transaction%'
  AND state_change < now() - current_setting('outhook_check.overdue')::interval;
