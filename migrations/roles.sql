-- What each role may do: one block a role, and whatever stands in none of them is refused.
--
-- Applied by `outhook migrate --roles` in one transaction, as often as you like: it takes every right away first,
-- so what was granted here once and is no longer listed is gone. Nothing else is touched: not the rights on
-- tables that are not Outhook's, nor who is a member of these roles. They cannot log in; a deployment makes
-- users that can, one a service, and puts each IN ROLE the one it needs: docs/security.md, "Least privilege".

SET LOCAL search_path = public, pg_temp;

-- Roles belong to the whole cluster. Who may not create them finds them made by somebody who may.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['outhook_api', 'outhook_relay', 'outhook_worker', 'outhook_reader', 'outhook_enqueuer'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
    END LOOP;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    -- Another database of this cluster is being prepared at the same time.
    RAISE EXCEPTION 'the roles are being created by somebody else: run this again' USING ERRCODE = 'lock_not_available';
END;
$$;

-- Everybody has this unless a deployment takes it away, as scripts/postgres-users does.
DO $$
BEGIN
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO outhook_api, outhook_relay, outhook_worker, outhook_reader, outhook_enqueuer',
                   current_database());
END;
$$;

REVOKE ALL ON installation, webhook_jobs, idempotency_keys, outbox, webhook_attempts, destinations, destination_keys, url_pauses,
              outbox_checks, ordering_checks, schema_version, refinery_schema_history
    FROM PUBLIC, outhook_api, outhook_relay, outhook_worker, outhook_reader, outhook_enqueuer;
REVOKE ALL ON SEQUENCE outbox_id_seq
    FROM PUBLIC, outhook_api, outhook_relay, outhook_worker, outhook_reader, outhook_enqueuer;
REVOKE ALL ON ALL TABLES IN SCHEMA outhook
    FROM PUBLIC, outhook_api, outhook_relay, outhook_worker, outhook_reader, outhook_enqueuer;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outhook
    FROM PUBLIC, outhook_api, outhook_relay, outhook_worker, outhook_reader, outhook_enqueuer;
REVOKE ALL ON SCHEMA outhook
    FROM PUBLIC, outhook_api, outhook_relay, outhook_worker, outhook_reader, outhook_enqueuer;

-- In public there is also what is not Outhook's: what may be done with that, its own rights say.
GRANT USAGE ON SCHEMA public TO outhook_api, outhook_relay, outhook_worker, outhook_reader, outhook_enqueuer;
GRANT USAGE ON SCHEMA outhook TO outhook_api, outhook_relay, outhook_worker, outhook_reader, outhook_enqueuer;

-- The version, which each program compares with its own.
GRANT SELECT (version) ON schema_version TO outhook_api, outhook_relay, outhook_worker, outhook_reader;

-- api: accepts jobs and withdraws them by functions, and shows them. It never reads what a job carries. It keeps the keys of
-- destinations.
GRANT SELECT ON outbox, webhook_attempts, outhook.job_details TO outhook_api;
GRANT INSERT (id, destination, scheme, sealed), SELECT, UPDATE (expires_at), DELETE ON destination_keys TO outhook_api;
GRANT EXECUTE ON FUNCTION outhook.accept_jobs, outhook.cancel, outhook.wake TO outhook_api;

-- Which installation it is: RabbitMQ's messages name it.
GRANT SELECT (id) ON installation TO outhook_relay, outhook_worker, outhook_reader;

-- relay: moves outbox rows forward, holds and releases them, and deletes those of finished jobs. Of a job it sees nothing but
-- whether it is under way; a message carries ids only. Turns are given, rows made due again, and old keys forgotten, by functions
-- that look into what it may not see.
GRANT SELECT (id, due_at, published_at, job_id, message_id, attempt, destination, traceparent, waits_for, released,
              ordering_key, turn, payload_bytes),
      UPDATE (due_at, published_at, waits_for, released),
      DELETE
    ON outbox TO outhook_relay;
GRANT SELECT (id, status, lease_until) ON webhook_jobs TO outhook_relay;
GRANT SELECT (destination, state, hold_until, changed_at, slowed_at, release_limit, openings, rate_limit),
      UPDATE (state, hold_until, changed_at, slowed_at, release_limit, openings),
      DELETE
    ON destinations TO outhook_relay;
GRANT SELECT (url, until), UPDATE (until), DELETE ON url_pauses TO outhook_relay;
GRANT SELECT (id) ON ordering_checks, outbox_checks TO outhook_relay;
GRANT SELECT (outbox_id) ON outbox_checks TO outhook_relay;
GRANT INSERT (outbox_id, attempt) ON outbox_checks TO outhook_relay;
GRANT INSERT (destination, ordering_key) ON ordering_checks TO outhook_relay;
GRANT EXECUTE ON FUNCTION outhook.give_turns, outhook.make_due_again, outhook.forget_keys TO outhook_relay;

-- worker: claims and settles, which is to change how far a job is, never what it is. It records attempts, which
-- it cannot read, change or delete. It says how destinations fare, but not how much their owners allow.
GRANT SELECT (id, created_at, updated_at, lease_until, outbox_id, attempt, retry_count, max_attempts, timeout_ms,
              status, claimed_by, client_url, headers, ordering_key, payload, sealed_key),
      UPDATE (updated_at, lease_until, attempt, retry_count, status, claimed_by, error)
    ON webhook_jobs TO outhook_worker;
GRANT SELECT (id, published_at, attempt, destination, waits_for),
      UPDATE (due_at, published_at, message_id, attempt, waits_for, released),
      DELETE
    ON outbox TO outhook_worker;
GRANT INSERT (outbox_id, attempt) ON outbox_checks TO outhook_worker;
GRANT INSERT (url, until), SELECT (url, until), UPDATE (until) ON url_pauses TO outhook_worker;
GRANT INSERT (job_id, started_at, retry_at, attempt, duration_ms, status_code, outcome, worker, error, response_excerpt)
    ON webhook_attempts TO outhook_worker;
GRANT INSERT (destination, state, hold_until, slowed_at, release_limit, openings, error),
      SELECT (destination, state, changed_at, slowed_at, release_limit, openings, rate_limit, next_slot_at),
      UPDATE (state, hold_until, changed_at, slowed_at, release_limit, openings, error, next_slot_at)
    ON destinations TO outhook_worker;
GRANT SELECT (id, destination, created_at, expires_at, sealed) ON destination_keys TO outhook_worker;
GRANT EXECUTE ON FUNCTION outhook.wake, outhook.url_without_query TO outhook_worker;

-- reader: people and `outhook check`. All but what jobs carry, and no writes.
GRANT SELECT (id, created_at, updated_at, deliver_at, lease_until, outbox_id, attempt, retry_count, max_attempts, timeout_ms,
              status, claimed_by, error, client_url, idempotency_key, ordering_key)
    ON webhook_jobs TO outhook_reader;
GRANT SELECT (created_at, job_id, is_signed, key) ON idempotency_keys TO outhook_reader;
GRANT SELECT ON outbox, webhook_attempts, destinations, url_pauses, outbox_checks, ordering_checks TO outhook_reader;
GRANT SELECT ON outhook.jobs, outhook.job_details, outhook.timeline, outhook.outbox_lag, outhook.conservation,
                outhook.sick_destinations, outhook.signing_keys
    TO outhook_reader;
-- A view's functions are called with its reader's rights.
GRANT EXECUTE ON FUNCTION outhook.url_without_query TO outhook_reader;
-- For the states of the services' sessions, without which `outhook check` refuses to judge. From Postgres 16 on, who
-- is no superuser may lack the right to give this.
DO $$
BEGIN
    GRANT pg_read_all_stats TO outhook_reader;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'let a superuser run GRANT pg_read_all_stats TO outhook_reader';
END;
$$;

-- enqueuer: an application that accepts webhooks in its own transactions. The function writes all rows with the
-- owner's rights; the tables are out of its reach.
GRANT EXECUTE ON FUNCTION outhook.enqueue(text, text, jsonb, timestamptz, integer, text, text, integer),
                          outhook.enqueue(text, json, jsonb, timestamptz, integer, text, text, integer),
                          outhook.enqueue(text, jsonb, jsonb, timestamptz, integer, text, text, integer),
                          outhook.wake
    TO outhook_enqueuer;
