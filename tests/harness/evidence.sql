-- What must hold once nothing is under way any more, whatever was killed on the way there, as far as only
-- the tests can see it: callers, receivers, and the triggers of observer.sql. The rest is check/sql.
--
-- Each statement returns the rows that break its invariant, one line of text each: none is good. A line
-- `-- I1: …` names the invariant that follows.

-- I1: every accepted webhook has its job row, with the very bytes that were accepted
SELECT format('job %s was accepted and %s', accepted.job_id,
              CASE WHEN job.id IS NULL THEN 'has no row' ELSE 'has another payload: ' || left(job.payload, 80) END)
FROM harness.accepted LEFT JOIN webhook_jobs AS job ON job.id = accepted.job_id
WHERE job.id IS NULL OR convert_to(job.payload, 'UTF8') <> accepted.payload;

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
    ('pending', 'cancelled'));

-- I8: the fencing number grows by one at each claim and changes at nothing else
SELECT format('job %s went from %s to %s at attempt %s -> %s (%s)', job_id, old_status, new_status, old_attempt, new_attempt, at)
FROM harness.transitions
WHERE new_attempt - old_attempt <> (new_status = 'processing')::integer;

-- I9: the receiver got the accepted bytes, with a signature that verifies (or that the test itself verifies, where its
-- receiver has no key)
SELECT format('delivery %s of job %s, attempt %s: %s; body %s', received.sequence, received.job_id, received.attempt,
              received.signature, left(encode(received.body, 'escape'), 80))
FROM harness.received LEFT JOIN webhook_jobs AS job ON job.id = received.job_id
WHERE received.signature NOT IN ('signature verified', 'signature not checked (no secret)')
   OR job.id IS NULL
   OR received.body <> convert_to(job.payload, 'UTF8');

-- I9: a job has one webhook-id on all its deliveries, and no other job has it
SELECT format('webhook-id %s stands on deliveries of %s jobs', webhook_id, count(DISTINCT job_id))
FROM harness.received GROUP BY webhook_id HAVING webhook_id IS NULL OR count(DISTINCT job_id) <> 1
UNION ALL
SELECT format('job %s was delivered with the ids %s', job_id, string_agg(DISTINCT webhook_id, ', '))
FROM harness.received GROUP BY job_id HAVING count(DISTINCT webhook_id) <> 1;

-- I10: an idempotency key is held by a job that is there
SELECT format('key %s is held by job %s, which is not there', held.key, held.job_id)
FROM idempotency_keys AS held WHERE NOT EXISTS (SELECT FROM webhook_jobs AS job WHERE job.id = held.job_id);

-- D1: no attempt was posted twice
SELECT format('job %s, attempt %s was posted %s times: deliveries %s', job_id, attempt, count(*), string_agg(sequence::text, ', '))
FROM harness.received GROUP BY job_id, attempt HAVING count(*) > 1;

-- D2: every delivery is of a recorded attempt, and one that the receiver took is recorded as success, as unknown or as timed out
SELECT format('delivery %s of job %s, attempt %s, answered with %s, is recorded as %s', received.sequence, received.job_id,
              received.attempt, coalesce(received.status::text, 'nothing'), coalesce(record.outcome, 'nothing'))
FROM harness.received LEFT JOIN webhook_attempts AS record USING (job_id, attempt)
WHERE record.outcome IS NULL
   OR (received.status BETWEEN 200 AND 299 AND record.outcome = 'failed'
       AND (record.status_code IS NOT NULL OR record.error NOT LIKE 'no answer within %'));

-- D3: a job that the receiver took more than once has an attempt that is unknown, or timed out, for each time more
SELECT format('job %s was taken %s times and has %s attempts whose answer nobody heard', received.job_id, count(DISTINCT received.sequence),
              count(DISTINCT record.attempt))
FROM harness.received
LEFT JOIN webhook_attempts AS record ON record.job_id = received.job_id
    AND (record.outcome = 'unknown' OR record.error LIKE 'no answer within %')
WHERE received.status BETWEEN 200 AND 299
GROUP BY received.job_id
HAVING count(DISTINCT received.sequence) - 1 > count(DISTINCT record.attempt);

-- P1: one publication is recorded for an attempt, unless its row rang again or a worker gave its message back untried
SELECT format('outbox row %s of job %s, attempt %s: %s first publications were recorded', outbox_id, job_id, attempt, count(*))
FROM harness.publications AS publication WHERE NOT rang_again GROUP BY outbox_id, job_id, attempt
HAVING count(*) > 1 + (SELECT count(*) FROM harness.withdrawals AS withdrawal
                       WHERE (withdrawal.outbox_id, withdrawal.attempt) = (publication.outbox_id, publication.attempt));

-- P2: the message of an attempt has one id, however often it was published
SELECT format('outbox row %s of job %s, attempt %s was published as %s', outbox_id, job_id, attempt, string_agg(DISTINCT message_id::text, ', '))
FROM harness.publications GROUP BY outbox_id, job_id, attempt HAVING count(DISTINCT message_id) > 1;
