-- What applications call in their own transactions, and what the services do through the owner's rights.
--
-- outhook migrate runs this file whole, in the transaction of the migration, whenever it or views.sql has changed. So all in
-- it may be run again, and nothing in it waits for whoever uses a table. Replacing a function keeps the rights that others
-- have on it. Another signature would be another function beside the old one: a migration drops that with IF EXISTS, for on a new
-- database it runs before this, and says what it costs.
-- A change raises SCHEMA_VERSION, by which the services know whether the database has the functions that they call.

-- Some of the functions below run with the owner's rights and look names up in the schema public: whoever could create
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

CREATE OR REPLACE FUNCTION outhook.uuid_v7() RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE
-- RFC 9562, section 5.7: 48 bits of unix milliseconds, then version 7, then random. A version 4 UUID
-- has the variant and bit 6 of byte 6 already: overlay the time, set the two other version bits.
RETURN encode(
    set_bit(set_bit(
        overlay(uuid_send(gen_random_uuid())
                PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                FROM 1 FOR 6),
        52, 1), 53, 1), 'hex')::uuid;
COMMENT ON FUNCTION outhook.uuid_v7() IS 'A new UUID version 7';

CREATE OR REPLACE FUNCTION outhook.wake() RETURNS void
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT pg_notify('outhook_outbox', '');
END;
COMMENT ON FUNCTION outhook.wake() IS
    'Tells the relays that something is due. Call it after the commit, never in a busy transaction: NOTIFY takes a cluster-wide lock until the commit. Only a hint: relays poll too';

-- The rules of TargetPolicy::accept_url, but for those of a deployment (networks, ports, https only), which workers apply.
-- What SQL cannot bring into the form that is sent, it refuses: names in Unicode, addresses in odd spellings.
CREATE OR REPLACE FUNCTION outhook.canonical_url(client_url text) RETURNS text
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    -- In "C" only ASCII letters have two cases, whatever the database's collation is.
    written   text COLLATE "C" := client_url;
    scheme    text COLLATE "C";
    rest      text COLLATE "C";
    authority text COLLATE "C";
    host      text COLLATE "C";
    port      text COLLATE "C";
    target    text COLLATE "C";
    url       text COLLATE "C";
    wrong     text COLLATE "C";
    address   inet;
    problem   text;
BEGIN
    -- Most are in that form, and have nothing in them that the rules are about: in a quarter of the time.
    IF written ~ '^https?://([a-z0-9-]+\.)+[a-z]+(/([A-Za-z0-9_-][A-Za-z0-9_.-]*)?)+(\?[A-Za-z0-9_.&=%-]*)?$'
       AND octet_length(written) <= 2048 THEN
        RETURN written;
    END IF;

    -- In parts, not by one expression with groups, which takes Postgres longer than all of this.
    scheme := lower(split_part(written, '://', 1));
    rest := substr(written, length(scheme) + 4);
    authority := lower(substring(rest FROM '^[^/?#\\]*'));
    host := regexp_replace(authority, ':[0-9]*$', '');
    port := ltrim(nullif(substr(authority, length(host) + 2), ''), '0');
    -- HTTP has no empty path.
    target := regexp_replace(substr(rest, length(authority) + 1), '^(?=\?|$)', '/');
    url := scheme || '://' || host || coalesce(':' || nullif(port, CASE scheme WHEN 'http' THEN '80' ELSE '443' END), '') || target;
    problem := CASE
        WHEN client_url IS NULL THEN 'must not be NULL'
        WHEN octet_length(client_url) > 2048 OR octet_length(url) > 2048 THEN 'is longer than 2048 bytes'
        WHEN scheme NOT IN ('http', 'https') OR authority = '' OR strpos(authority, '@') > 0
            THEN 'is not an absolute http or https URL without user info'
        WHEN port = '' OR length(port) > 5 THEN 'must have a port from 1 to 65535'
        WHEN port::integer > 65535 THEN 'must have a port from 1 to 65535'
        WHEN host !~ '^(\[[0-9a-f:.]+\]|([a-z0-9_-]+\.)*[a-z0-9_-]+\.?)$'
            THEN 'must have a host of ASCII letters, digits, - and _: write Unicode as in xn--bcher-kva.example'
        WHEN target ~* '^[^?]*/(\.|%2e){1,2}(/|\?|$)'
            THEN 'has a segment . or .. (or %2e) in its path, which is not sent: write the path that it leads to'
    END;
    -- Whatever a parser of URLs takes for an address: it must be written as that would write it.
    IF problem IS NULL AND host ~ '^\[|(^|\.)([0-9]+|0x[0-9a-f]*)\.?$' THEN
        BEGIN
            address := btrim(host, '[]');
        EXCEPTION WHEN invalid_text_representation THEN
            -- And so it is equal to none.
            NULL;
        END;
        -- Postgres prints an IPv4 address in IPv6 clothes with dots, which no URL is sent with.
        IF host LIKE '[%.%'
           OR (CASE family(address) WHEN 4 THEN host(address) ELSE '[' || host(address) || ']' END) IS DISTINCT FROM host THEN
            problem := 'must have its address written as in 192.0.2.1 or [2001:db8::1]';
        END IF;
    END IF;
    -- What stands in path and query is sent as it is, so only what can be sent as it is may stand there.
    IF problem IS NULL AND target !~ '^/[]!$-;=@-[^_a-z|~]*(\?[!$-&(-;=?-~]*)?$' THEN
        wrong := coalesce(substring(target FROM '^[]!$-;=@-[^_a-z|~]*([^]!$-;=?@-[^_a-z|~])'),
                          substring(target FROM '\?[!$-&(-;=?-~]*([^!$-&(-;=?-~])'));
        problem := CASE
            WHEN wrong = '#' THEN 'contains a fragment'
            WHEN wrong ~ '[[:space:][:cntrl:]]' THEN 'contains white space or control characters'
            ELSE format('must have %s in place of %s in its path or query',
                        regexp_replace(upper(encode(convert_to(wrong, 'UTF8'), 'hex')), '(..)', '%\1', 'g'), wrong)
        END;
    END IF;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'client_url %', problem USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN url;
END;
$$;
COMMENT ON FUNCTION outhook.canonical_url(text) IS
    'The URL that is posted to: scheme and host in lower case, without the default port, with a slash for an empty path, and otherwise as it is written. An error, which says what to write, where it would not be sent like that, or where only the HTTP API can tell';

CREATE OR REPLACE FUNCTION outhook.destination(client_url text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN substring(outhook.canonical_url(client_url) FROM '^https?://[^/]+');
COMMENT ON FUNCTION outhook.destination(text) IS 'The destination of a URL, as scheme://host:port';

CREATE OR REPLACE FUNCTION outhook.url_without_query(url text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN split_part(url, '?', 1);
COMMENT ON FUNCTION outhook.url_without_query(text) IS 'What url_pauses knows a URL by';

CREATE OR REPLACE FUNCTION outhook.limit_destination(client_url text, per_second integer) RETURNS text
LANGUAGE plpgsql VOLATILE
-- Its own tables, whatever the caller's search_path is.
SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    origin text := outhook.destination(client_url);
BEGIN
    IF per_second < 1 THEN
        RAISE EXCEPTION 'per_second must be at least 1, or NULL for no limit' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO destinations (destination, rate_limit) VALUES (origin, per_second)
    ON CONFLICT (destination) DO UPDATE SET rate_limit = excluded.rate_limit;
    RETURN origin;
END;
$$;
COMMENT ON FUNCTION outhook.limit_destination(text, integer) IS
    'Lets at most so many webhooks a second go to the destination of this URL; NULL lifts the limit. Returns the destination';

CREATE OR REPLACE FUNCTION outhook.take_keys(
    job_ids uuid[], keys text[], are_signed boolean[], body_hashes bytea[], OUT refused uuid[], OUT known_ids uuid[]
)
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    -- Those that are still to get their keys; NULL means all.
    tried  uuid[];
    taken  bigint;
    losers uuid[];
    looked record;
    rounds integer := 0;
BEGIN
    LOOP
        rounds := rounds + 1;
        IF rounds > 4 THEN
            -- Each round costs as much as the whole batch, and a chain of jobs needs one for every two of them. Accepted one by
            -- one, each needs one.
            RAISE EXCEPTION 'the idempotency keys of these jobs depend on each other too much to be taken at once'
                USING ERRCODE = 'serialization_failure', HINT = 'try again, with fewer jobs';
        END IF;
        INSERT INTO idempotency_keys (job_id, is_signed, body_hash, key)
        SELECT job_id, is_signed, body_hash, key
        FROM unnest(job_ids, keys, are_signed, body_hashes) WITH ORDINALITY AS wanted (job_id, key, is_signed, body_hash, place)
        WHERE tried IS NULL OR job_id = ANY (tried)
        -- Two batches with the same keys wait for each other in the same order. Of two jobs of a batch, the first one wins.
        ORDER BY is_signed, key, place
        -- A key that another transaction is writing is waited for.
        ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS taken = ROW_COUNT;
        EXIT WHEN tried IS NULL AND taken = cardinality(keys);

        SELECT array_agg(DISTINCT wanted.job_id) INTO losers
        FROM unnest(job_ids, keys, are_signed) AS wanted (job_id, key, is_signed)
        LEFT JOIN idempotency_keys AS mine
            ON mine.key = wanted.key AND mine.is_signed = wanted.is_signed AND mine.job_id = wanted.job_id AND mine.key = ANY (keys)
        WHERE mine.key IS NULL AND (tried IS NULL OR wanted.job_id = ANY (tried));
        EXIT WHEN losers IS NULL;

        -- What is being accepted is not stored yet: nobody takes or gives up the keys of a job that is.
        IF EXISTS (SELECT FROM webhook_jobs WHERE id = ANY (losers)) THEN
            RAISE EXCEPTION 'a job with this id was accepted before' USING ERRCODE = 'unique_violation';
        END IF;
        -- All of a job's keys or none.
        DELETE FROM idempotency_keys WHERE key = ANY (keys) AND job_id = ANY (losers);
        -- A statement of its own, whose snapshot shows what the first one ran into. The one job that holds the keys, for the
        -- same request; or NULL.
        WITH holding AS (
            SELECT wanted.job_id, count(holder.job_id) AS holders,
                   CASE WHEN count(DISTINCT holder.job_id) = 1 AND bool_and(holder.body_hash = wanted.body_hash)
                        THEN (array_agg(DISTINCT holder.job_id) FILTER (WHERE holder.job_id IS NOT NULL))[1] END AS known_id
            FROM unnest(job_ids, keys, are_signed, body_hashes) AS wanted (job_id, key, is_signed, body_hash)
            LEFT JOIN idempotency_keys AS holder
                ON holder.key = wanted.key AND holder.is_signed = wanted.is_signed AND holder.key = ANY (keys)
            WHERE wanted.job_id = ANY (losers)
            GROUP BY wanted.job_id
        )
        SELECT array_agg(job_id) FILTER (WHERE holders > 0) AS jobs, array_agg(known_id) FILTER (WHERE holders > 0) AS known_ids,
               array_agg(job_id) FILTER (WHERE holders = 0) AS free
        INTO looked FROM holding;
        refused := refused || looked.jobs;
        known_ids := known_ids || looked.known_ids;
        -- Whoever had their keys has lost another one, or they were forgotten just now.
        tried := looked.free;
        EXIT WHEN tried IS NULL;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION outhook.take_keys(uuid[], text[], boolean[], bytea[]) IS
    'Writes the idempotency keys of jobs that are being accepted, each with the id of its job. Returns the jobs that did not get theirs, and for each the job that was made of the same request, or NULL if its keys are of another request or of different jobs. A part of accept_jobs';

CREATE OR REPLACE FUNCTION outhook.accept_jobs(
    ids              uuid[],
    client_urls      text[],
    destinations     text[],
    payloads         text[],
    header_objects   jsonb[],
    moments          timestamptz[],
    most_attempts    integer[],
    timeouts         integer[],
    ordering_keys    text[],
    traceparents     text[],
    sealed_keys      bytea[],
    idempotency_keys text[],
    keyed_ids        uuid[],
    keys             text[],
    are_signed       boolean[],
    body_hashes      bytea[]
) RETURNS TABLE (refused_id uuid, known_id uuid, known_status text)
-- The one rule, for batches of the HTTP API and for outhook.enqueue.
LANGUAGE plpgsql VOLATILE
-- All rows of a job or none: with rights of its own on the tables, a caller could write either alone.
SECURITY DEFINER
-- Its own tables, whatever the caller's search_path is.
SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    known     record;
    refused   uuid[];
    known_ids uuid[];
BEGIN
    IF keys IS NOT NULL THEN
        IF EXISTS (SELECT unnest(keyed_ids) EXCEPT SELECT unnest(ids)) THEN
            RAISE EXCEPTION 'each key must be of one of the jobs' USING ERRCODE = 'invalid_parameter_value';
        END IF;
        known := outhook.take_keys(keyed_ids, keys, are_signed, body_hashes);
        refused := known.refused;
        known_ids := known.known_ids;
    END IF;

    WITH given AS MATERIALIZED (
        SELECT *, nextval('outbox_id_seq') AS outbox_id, coalesce(moment, now()) AS deliver_at
        FROM unnest(ids, client_urls, destinations, payloads, header_objects, moments, most_attempts, timeouts, ordering_keys,
                    traceparents, sealed_keys, idempotency_keys)
            AS job (id, client_url, destination, payload, headers, moment, max_attempts, timeout_ms, ordering_key,
                    traceparent, sealed_key, idempotency_key)
        WHERE refused IS NULL OR id <> ALL (refused)
    ), accepted AS (
        INSERT INTO webhook_jobs
            (id, outbox_id, deliver_at, max_attempts, timeout_ms, client_url, headers, idempotency_key, ordering_key, sealed_key,
             payload)
        SELECT id, outbox_id, deliver_at, max_attempts, timeout_ms, client_url, headers, idempotency_key, ordering_key, sealed_key,
               payload
        FROM given
    )
    INSERT INTO outbox
        (id, job_id, attempt, due_at, destination, traceparent, ordering_key, payload_bytes, waits_for)
    SELECT outbox_id, id, 0, greatest(deliver_at, now()), destination, traceparent, ordering_key, octet_length(payload),
           -- With a key it waits for its turn; scheduled, it takes its place when its time comes.
           CASE WHEN ordering_key IS NOT NULL AND deliver_at <= now() THEN 'order' END
    FROM given;

    IF refused IS NOT NULL THEN
        -- After the jobs, of which some may be known to others of the same batch.
        RETURN QUERY
            SELECT given.refused_id, given.known_id, job.status
            FROM unnest(refused, known_ids) AS given (refused_id, known_id)
            LEFT JOIN webhook_jobs AS job ON job.id = given.known_id AND job.id = ANY (known_ids);
    END IF;
    IF cardinality(ids) = 0 THEN
        -- Somebody asks whether a job would be accepted. Each one needs a number.
        IF (SELECT last_value >= max_value FROM pg_sequences WHERE schemaname = 'public' AND sequencename = 'outbox_id_seq') THEN
            RAISE EXCEPTION 'outbox_id_seq is used up' USING ERRCODE = 'sequence_generator_limit_exceeded';
        END IF;
    END IF;
END;
$$;
COMMENT ON FUNCTION outhook.accept_jobs(uuid[], text[], text[], text[], jsonb[], timestamptz[], integer[], integer[], text[], text[], bytea[], text[], uuid[], text[], boolean[], bytea[]) IS
    'Accepts jobs that have been checked: writes each with its outbox row and its keys. Arrays of jobs have an element for each, or end early where the rest is NULL; the last four have one for each key, and are NULL when there is none. Returns what is not new: the job that its keys made before, with its status (NULL if it was deleted), or NULL where a key is of another request. With no job it fails if one could not be accepted';

CREATE OR REPLACE FUNCTION outhook.enqueue(
    client_url      text,
    payload         text,
    headers         jsonb       DEFAULT '{}',
    deliver_at      timestamptz DEFAULT NULL,
    max_attempts    integer     DEFAULT NULL,
    idempotency_key text        DEFAULT NULL,
    ordering_key    text        DEFAULT NULL,
    timeout_ms      integer     DEFAULT NULL
) RETURNS uuid
LANGUAGE plpgsql VOLATILE
-- With the right to call accept_jobs, a caller could pass over what is checked here.
SECURITY DEFINER
-- Its own tables, whatever the caller's search_path is.
SET search_path = public, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    new_id    uuid        := outhook.uuid_v7();
    url       text        := outhook.canonical_url(client_url);
    due_at    timestamptz := greatest(deliver_at, now());
    -- Judged here although the tables judge it too: their errors show the row, payload and all, to the caller and in the
    -- server's log, and name constraints instead of arguments.
    problem   text        := CASE
        WHEN payload IS NULL THEN 'payload must not be NULL'
        WHEN octet_length(payload) > 16777216 THEN 'payload is longer than 16 MiB'
        WHEN jsonb_typeof(headers) <> 'object' THEN 'headers must be an object'
        WHEN jsonb_path_exists(headers, 'strict $.* ? (@.type() != "string")') THEN 'headers must be an object of strings'
        -- In hours: days may be longer or shorter where the session is.
        WHEN due_at > now() + interval '8784 hours' THEN 'deliver_at is more than 366 days ahead'
        WHEN max_attempts NOT BETWEEN 1 AND 100 THEN 'max_attempts must be from 1 to 100'
        WHEN octet_length(idempotency_key) NOT BETWEEN 1 AND 255 THEN 'idempotency_key must have 1 to 255 bytes'
        WHEN octet_length(ordering_key) NOT BETWEEN 1 AND 255 THEN 'ordering_key must have 1 to 255 bytes'
        WHEN timeout_ms NOT BETWEEN 100 AND 300000 THEN 'timeout_ms must be from 100 to 300000'
    END;
    key_ids   uuid[];
    keys      text[];
    hashes    bytea[];
    known     record;
BEGIN
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION '%', problem USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF idempotency_key IS NOT NULL THEN
        key_ids := ARRAY[new_id];
        keys := ARRAY[idempotency_key];
        -- Of what was given, as it was written.
        hashes := ARRAY[sha256(convert_to(
            jsonb_build_array(client_url, payload, coalesce(headers, '{}'), extract(epoch FROM deliver_at), max_attempts,
                              ordering_key, timeout_ms)::text, 'UTF8'))];
    END IF;

    SELECT accepted.known_id INTO known
    FROM outhook.accept_jobs(
        ARRAY[new_id], ARRAY[url], ARRAY[substring(url FROM '^https?://[^/]+')], ARRAY[payload], ARRAY[coalesce(headers, '{}')],
        ARRAY[due_at], ARRAY[max_attempts], ARRAY[timeout_ms], ARRAY[ordering_key], NULL, NULL, keys,
        key_ids, keys, ARRAY[false], hashes) AS accepted;
    IF NOT FOUND THEN
        RETURN new_id;
    END IF;
    IF known.known_id IS NULL THEN
        RAISE EXCEPTION 'idempotency_key was used before with other arguments' USING ERRCODE = 'unique_violation';
    END IF;
    RETURN known.known_id;
END;
$$;
COMMENT ON FUNCTION outhook.enqueue(text, text, jsonb, timestamptz, integer, text, text, integer) IS
    'Accepts a webhook in the caller''s own transaction and returns its job id: delivered if that transaction commits, gone if it rolls back. A relay finds it within its poll interval; SELECT outhook.wake() after the commit makes it immediate';

-- A literal whose type nobody has said is text to Postgres, so these take nothing away from the function above.
CREATE OR REPLACE FUNCTION outhook.enqueue(
    client_url      text,
    payload         json,
    headers         jsonb       DEFAULT '{}',
    deliver_at      timestamptz DEFAULT NULL,
    max_attempts    integer     DEFAULT NULL,
    idempotency_key text        DEFAULT NULL,
    ordering_key    text        DEFAULT NULL,
    timeout_ms      integer     DEFAULT NULL
) RETURNS uuid
LANGUAGE sql VOLATILE
RETURN outhook.enqueue(client_url, payload::text, headers, deliver_at, max_attempts, idempotency_key, ordering_key, timeout_ms);
COMMENT ON FUNCTION outhook.enqueue(text, json, jsonb, timestamptz, integer, text, text, integer) IS
    'The same for a payload of type json, which is delivered as it is written';

CREATE OR REPLACE FUNCTION outhook.enqueue(
    client_url      text,
    payload         jsonb,
    headers         jsonb       DEFAULT '{}',
    deliver_at      timestamptz DEFAULT NULL,
    max_attempts    integer     DEFAULT NULL,
    idempotency_key text        DEFAULT NULL,
    ordering_key    text        DEFAULT NULL,
    timeout_ms      integer     DEFAULT NULL
) RETURNS uuid
LANGUAGE sql VOLATILE
RETURN outhook.enqueue(client_url, payload::text, headers, deliver_at, max_attempts, idempotency_key, ordering_key, timeout_ms);
COMMENT ON FUNCTION outhook.enqueue(text, jsonb, jsonb, timestamptz, integer, text, text, integer) IS
    'The same for a payload of type jsonb, which is delivered as Postgres prints it';

CREATE OR REPLACE FUNCTION outhook.cancel(job_id uuid) RETURNS boolean
-- The one rule, for psql, for applications and for the HTTP API. Not LANGUAGE sql: there the answer would be read from the
-- snapshot of the update, in which a cancel that it waited for is not yet to be seen.
LANGUAGE plpgsql VOLATILE
-- Both rows together or none: with rights of its own on the tables, a caller could write either alone.
SECURITY DEFINER
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
    DELETE FROM outbox USING withdrawn WHERE outbox.id = withdrawn.outbox_id;
    RETURN (SELECT job.status = 'cancelled' FROM webhook_jobs AS job WHERE job.id = job_id);
END;
$$;
COMMENT ON FUNCTION outhook.cancel(uuid) IS
    'Cancels a job that is pending: it is not attempted again. True when it is cancelled, now or before; false when it is too late, because the job is being delivered or has ended otherwise; NULL when there is no such job';

CREATE OR REPLACE FUNCTION outhook.check_key() RETURNS trigger
LANGUAGE plpgsql
-- Whoever writes the outbox has no rights on the list.
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO ordering_checks (destination, ordering_key) VALUES (OLD.destination, OLD.ordering_key);
    ELSE
        INSERT INTO ordering_checks (destination, ordering_key) VALUES (NEW.destination, NEW.ordering_key);
    END IF;
    RETURN NULL;
END;
$$;
COMMENT ON FUNCTION outhook.check_key() IS 'Puts the key of an outbox row on the list of those whose next turn is to be given';

-- Triggers, so that it holds whoever writes: a settlement, a cancel in somebody's own transaction, a repair by hand. None
-- for updates: a relay that lets a scheduled row wait writes the line itself, and Postgres would fetch the old row of each
-- update for a trigger that asks about it.
DO $$
BEGIN
    -- Made once, since that locks the outbox against everybody who writes it: a migration drops one that is to change, with IF EXISTS.
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'outbox'::regclass AND tgname = 'outbox_begins_to_wait') THEN
        CREATE TRIGGER outbox_begins_to_wait AFTER INSERT ON outbox
            FOR EACH ROW WHEN (NEW.waits_for = 'order') EXECUTE FUNCTION outhook.check_key();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'outbox'::regclass AND tgname = 'outbox_ends_its_turn') THEN
        CREATE TRIGGER outbox_ends_its_turn AFTER DELETE ON outbox
            FOR EACH ROW WHEN (OLD.turn) EXECUTE FUNCTION outhook.check_key();
    END IF;
END;
$$;

CREATE OR REPLACE FUNCTION outhook.give_turns(
    from_id bigint, at_most integer, OUT given integer, OUT busy integer, OUT lines integer, OUT last_id bigint
)
LANGUAGE plpgsql VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    key_destinations text[];
    keys             text[];
BEGIN
    given := 0;
    busy := 0;
    lines := 0;
    last_id := from_id;
    -- One relay at a time, so that nobody gives a key's turn twice; the others have nothing to wait for.
    IF NOT pg_try_advisory_xact_lock(7248, 1) THEN
        RETURN;
    END IF;

    WITH taken AS (
        DELETE FROM ordering_checks
        WHERE id = ANY (ARRAY(
            SELECT id FROM ordering_checks WHERE id >= from_id ORDER BY id LIMIT at_most FOR UPDATE SKIP LOCKED))
        RETURNING id, destination, ordering_key
    )
    SELECT array_agg(destination), array_agg(ordering_key), count(*), coalesce(max(id), from_id)
    INTO key_destinations, keys, lines, last_id FROM taken;
    IF lines < at_most THEN
        -- All have been seen but those that are not committed yet, which have numbers of a moment ago, or are found by
        -- a look from the beginning.
        last_id := greatest(last_id, (SELECT last_value FROM ordering_checks_id_seq) - 1000);
    END IF;
    IF keys IS NULL THEN
        RETURN;
    END IF;

    -- A statement of its own, whose snapshot is younger than the lines: it sees what they were written for. Whatever
    -- ends or begins after that has a line of its own. (So the transaction must be READ COMMITTED.)
    WITH next AS MATERIALIZED (
        SELECT first.id, key.destination, key.ordering_key
        FROM (SELECT DISTINCT * FROM unnest(key_destinations, keys) AS key (destination, ordering_key)) AS key
        CROSS JOIN LATERAL (
            SELECT id FROM outbox
            WHERE outbox.destination = key.destination AND outbox.ordering_key = key.ordering_key AND waits_for = 'order'
            ORDER BY id LIMIT 1
        ) AS first
        WHERE NOT EXISTS (
            SELECT FROM outbox
            WHERE outbox.destination = key.destination AND outbox.ordering_key = key.ordering_key AND turn)
    ), free AS MATERIALIZED (
        SELECT id FROM outbox WHERE id = ANY (ARRAY(SELECT id FROM next)) AND coalesce(waits_for, '') = 'order' FOR UPDATE SKIP LOCKED
    ), moved AS (
        UPDATE outbox SET turn = true, waits_for = NULL, due_at = now()
        WHERE id = ANY (ARRAY(SELECT id FROM free))
        RETURNING id
    ), postponed AS (
        -- Somebody holds the first of the key, who may be cancelling it: no other goes before that is known.
        INSERT INTO ordering_checks (destination, ordering_key)
        SELECT destination, ordering_key FROM next WHERE id NOT IN (SELECT id FROM moved)
        RETURNING id
    )
    SELECT (SELECT count(*) FROM moved), (SELECT count(*) FROM postponed) INTO given, busy;
    -- On disk before the row is published, whatever the session does otherwise.
    PERFORM set_config('synchronous_commit', 'on', true);
END;
$$;
COMMENT ON FUNCTION outhook.give_turns(bigint, integer) IS
    'Goes through up to so many lines of ordering_checks from that id on: makes the first waiting row of each key due, unless one of its key has the turn. Returns how many rows that were, how many keys are put off because somebody holds their first row, how many lines were gone through, and the id to go on from';

CREATE OR REPLACE FUNCTION outhook.make_due_again(from_id bigint, at_most integer, OUT due integer, OUT busy integer, OUT last_id bigint)
LANGUAGE plpgsql VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    rows     bigint[];
    attempts integer[];
BEGIN
    WITH taken AS (
        DELETE FROM outbox_checks
        WHERE id = ANY (ARRAY(
            SELECT id FROM outbox_checks WHERE id >= from_id ORDER BY id LIMIT at_most FOR UPDATE SKIP LOCKED))
        RETURNING id, outbox_id, attempt
    )
    SELECT array_agg(outbox_id), array_agg(attempt), coalesce(max(id), from_id) INTO rows, attempts, last_id FROM taken;
    IF coalesce(cardinality(rows), 0) < at_most THEN
        last_id := greatest(last_id, (SELECT last_value FROM outbox_checks_id_seq) - 1000);
    END IF;
    due := 0;
    busy := 0;
    IF rows IS NULL THEN
        RETURN;
    END IF;

    BEGIN
        WITH checked AS MATERIALIZED (
            SELECT DISTINCT * FROM unnest(rows, attempts) AS checked (outbox_id, attempt)
        ), present AS MATERIALIZED (
            SELECT outbox.id, outbox.job_id, outbox.attempt
            FROM outbox JOIN checked ON checked.outbox_id = outbox.id AND checked.attempt = outbox.attempt
            WHERE outbox.id = ANY (rows)
        ), unfinished AS MATERIALIZED (
            SELECT id FROM webhook_jobs
            WHERE id = ANY (ARRAY(SELECT job_id FROM present)) AND status IN ('pending', 'processing')
        ), job AS MATERIALIZED (
            SELECT id, status, lease_until FROM webhook_jobs
            WHERE id = ANY (ARRAY(SELECT job_id FROM present))
            FOR UPDATE SKIP LOCKED
        ), free AS MATERIALIZED (
            SELECT id, job_id, attempt, published_at FROM outbox
            WHERE id = ANY (ARRAY(
                SELECT id FROM present
                -- Without a job that can go on, it is looked at and deleted.
                WHERE job_id IN (SELECT id FROM job) OR job_id NOT IN (SELECT id FROM unfinished)))
            FOR UPDATE SKIP LOCKED
        ), moved AS (
            UPDATE outbox
            -- A moment for the lease's own holder, who may have been kept from writing by the same lock.
            SET due_at = CASE WHEN job.lease_until > now() THEN job.lease_until ELSE now() END
                         + CASE WHEN job.status = 'processing' THEN interval '0.5 seconds' ELSE interval '0' END
            FROM free LEFT JOIN job ON job.id = free.job_id
            WHERE outbox.id = ANY (ARRAY(SELECT id FROM free)) AND outbox.id = free.id AND coalesce(outbox.waits_for, '') = ''
              AND outbox.published_at IS NOT NULL AND outbox.attempt = free.attempt
              AND (free.id, free.attempt) IN (SELECT outbox_id, attempt FROM checked)
            RETURNING outbox.id
        ), postponed AS (
            INSERT INTO outbox_checks (outbox_id, attempt)
            SELECT id, attempt FROM present WHERE id NOT IN (SELECT id FROM free)
            RETURNING id
        )
        SELECT (SELECT count(*) FROM moved), (SELECT count(*) FROM postponed) INTO due, busy;
    EXCEPTION WHEN data_corrupted OR index_corrupted OR io_error THEN
        -- Somebody's job, which must not keep the others waiting: whoever asks for fewer finds it, and leaves its row to
        -- the end of the republish interval.
        IF at_most > 1 THEN
            RAISE;
        END IF;
    END;
END;
$$;
COMMENT ON FUNCTION outhook.make_due_again(bigint, integer) IS
    'Goes through up to so many lines of outbox_checks from that id on: makes those rows due that nobody holds any more, at the end of its lease if their job has one. Returns how many that were, how many are still held, and the last line''s id';

CREATE OR REPLACE FUNCTION outhook.forget_keys(
    days integer, since timestamptz, at_most integer, OUT forgotten integer, OUT last timestamptz
)
LANGUAGE plpgsql VOLATILE
-- Whoever forgets keys has no right to see them, nor to forget young ones.
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    -- In hours: days may be longer or shorter where the session is.
    expired timestamptz := now() - make_interval(hours => 24 * greatest(days, 1));
BEGIN
    WITH old AS MATERIALIZED (
        SELECT ctid, created_at FROM idempotency_keys
        WHERE created_at < expired AND created_at >= coalesce(since, '-infinity')
        ORDER BY created_at LIMIT at_most FOR UPDATE SKIP LOCKED
    ), gone AS (
        -- They are locked, so that they are where they were.
        DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(SELECT ctid FROM old))
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM gone), CASE WHEN count(*) < at_most THEN expired ELSE max(created_at) END
    INTO forgotten, last FROM old;
END;
$$;
COMMENT ON FUNCTION outhook.forget_keys(integer, timestamptz, integer) IS
    'Deletes up to so many idempotency keys that are older than so many days, a day at least, but not older than that moment; NULL for all. Steps over those that somebody holds. Returns how many, and the moment to go on from';

-- Postgres lets everybody call a new function. Who may call which says ../roles.sql.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outhook FROM PUBLIC;
