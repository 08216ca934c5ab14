-- What a role must be able to do as a whole and not in parts, it does through the owner's functions and views.
-- Which role may use them says ../roles.sql.

-- The functions below run with the owner's rights and look names up in the schema public: whoever could create
-- objects there could put one in a function's way.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
DO $$
BEGIN
    IF has_schema_privilege('public', 'public', 'CREATE') THEN
        RAISE EXCEPTION 'everybody may create objects in the schema public: let its owner run REVOKE CREATE ON SCHEMA public FROM PUBLIC, then run this again'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
END;
$$;

-- Both rows together or none: with rights of its own on the tables, a caller could write either alone.
ALTER FUNCTION outhook.enqueue SECURITY DEFINER;
ALTER FUNCTION outhook.cancel SECURITY DEFINER;
-- Whoever ends a job makes the next one of its key due, and needs to see no others for that.
ALTER FUNCTION outhook.release_next SECURITY DEFINER;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outhook FROM PUBLIC;

CREATE VIEW outhook.job_details AS
SELECT id, created_at, updated_at, deliver_at, lease_until, outbox_id, attempt, retry_count, max_attempts, timeout_ms, status,
       claimed_by, error, client_url, idempotency_key, ordering_key, octet_length(payload) AS payload_bytes
FROM webhook_jobs;
COMMENT ON VIEW outhook.job_details IS 'Jobs without what they carry: neither payload nor headers, nor the hash of both, nor a key. What GET /webhooks/{id} shows';
