-- What the tests add to a database: a log of every transition and of every recorded publication, written
-- by triggers in the same transaction, and the tables that evidence.sql compares with. The triggers' functions
-- run with the tests' rights: the services have none here.

CREATE SCHEMA harness;

CREATE TABLE harness.transitions (
    sequence    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    job_id      uuid        NOT NULL,
    old_status  text        NOT NULL,
    new_status  text        NOT NULL,
    old_attempt integer     NOT NULL,
    new_attempt integer     NOT NULL
);

CREATE FUNCTION harness.log_transition() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO harness.transitions (job_id, old_status, new_status, old_attempt, new_attempt)
    VALUES (NEW.id, OLD.status, NEW.status, OLD.attempt, NEW.attempt);
    RETURN NULL;
END;
$$;

-- A lease that its own holder starts anew is no transition; one that changes hands is.
CREATE TRIGGER harness_log_transition AFTER UPDATE ON webhook_jobs
    FOR EACH ROW
    WHEN ((OLD.status, OLD.attempt, OLD.claimed_by) IS DISTINCT FROM (NEW.status, NEW.attempt, NEW.claimed_by))
    EXECUTE FUNCTION harness.log_transition();

CREATE TABLE harness.publications (
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    outbox_id   bigint      NOT NULL,
    job_id      uuid        NOT NULL,
    attempt     integer     NOT NULL,
    message_id  uuid        NOT NULL,
    rang_again  boolean     NOT NULL
);

CREATE FUNCTION harness.log_publication() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO harness.publications (outbox_id, job_id, attempt, message_id, rang_again)
    VALUES (NEW.id, NEW.job_id, NEW.attempt, NEW.message_id, OLD.published_at IS NOT NULL);
    RETURN NULL;
END;
$$;

CREATE TRIGGER harness_log_publication AFTER UPDATE ON outbox
    FOR EACH ROW WHEN (NEW.published_at IS DISTINCT FROM OLD.published_at AND NEW.published_at IS NOT NULL)
    EXECUTE FUNCTION harness.log_publication();

-- Messages that a worker gave back untried, for the sake of other destinations: their rows are to be published
-- anew.
CREATE TABLE harness.withdrawals (
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    outbox_id   bigint      NOT NULL,
    attempt     integer     NOT NULL
);

CREATE FUNCTION harness.log_withdrawal() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO harness.withdrawals (outbox_id, attempt) VALUES (NEW.id, NEW.attempt);
    RETURN NULL;
END;
$$;

CREATE TRIGGER harness_log_withdrawal AFTER UPDATE ON outbox
    FOR EACH ROW WHEN (OLD.published_at IS NOT NULL AND NEW.published_at IS NULL AND NEW.attempt = OLD.attempt)
    EXECUTE FUNCTION harness.log_withdrawal();

-- What was answered with 202, and the bytes that must arrive (NULL: not known to the test).
CREATE TABLE harness.accepted (
    job_id  uuid PRIMARY KEY,
    payload bytea
);

-- The receiver's log.
CREATE TABLE harness.received (
    sequence   bigint PRIMARY KEY,
    at         timestamptz NOT NULL,
    job_id     uuid,
    attempt    integer,
    webhook_id text,
    signature  text NOT NULL,
    status     integer,
    body       bytea NOT NULL
);
