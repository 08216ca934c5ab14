-- What holds besides when nothing is under way any more.

-- I4: every job is finished
SELECT format('job %s is %s at attempt %s, lease until %s', id, status, attempt, coalesce(lease_until::text, 'none'))
FROM webhook_jobs WHERE status NOT IN ('success', 'failed', 'cancelled');
