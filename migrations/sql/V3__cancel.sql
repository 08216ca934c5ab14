-- Withdrawing a webhook: the one rule, for psql, for applications and for the HTTP API.

CREATE FUNCTION outhook.cancel(job_id uuid) RETURNS boolean
-- Not LANGUAGE sql: there the answer would be read from the snapshot of the update, in which a cancel that it
-- waited for is not yet to be seen.
LANGUAGE plpgsql VOLATILE
-- Its own tables, whatever the caller's search_path is.
SET search_path = public, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
    -- Both rows or none. A claim that is under way is waited for, and then the job is no longer pending.
    WITH withdrawn AS (
        UPDATE webhook_jobs AS job SET status = 'cancelled', error = '', updated_at = now()
        WHERE job.id = job_id AND job.status = 'pending'
        RETURNING job.outbox_id
    )
    DELETE FROM outbox AS alarm USING withdrawn WHERE alarm.id = withdrawn.outbox_id;

    RETURN (SELECT job.status = 'cancelled' FROM webhook_jobs AS job WHERE job.id = job_id);
END;
$$;
COMMENT ON FUNCTION outhook.cancel(uuid) IS
    'Cancels a job that is pending: it is not attempted again. True when it is cancelled, now or before; false when it is too late, because the job is being delivered or has ended otherwise; NULL when there is no such job';
