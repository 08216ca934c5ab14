-- Keys that deliveries are signed with: of a destination, or of one job. Only ever sealed, with a key that is not
-- in the database (SECRETS_KEY).

-- Not named like the view below: for a role that is called outhook, that one's schema comes first.
CREATE TABLE destination_keys (
    id          uuid        NOT NULL CONSTRAINT destination_keys_pkey PRIMARY KEY,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz,
    scheme      text        NOT NULL,
    destination text        NOT NULL,
    sealed      bytea       NOT NULL,

    CONSTRAINT destination_keys_scheme_known
        CHECK (scheme IN ('v1', 'v1a', 'github')),
    CONSTRAINT destination_keys_destination_is_an_origin
        CHECK (destination ~ '^https?://[^/?#@[:space:]]+$'),
    CONSTRAINT destination_keys_destination_at_most_2048_bytes
        CHECK (octet_length(destination) <= 2048),
    CONSTRAINT destination_keys_sealed_between_31_and_1024_bytes
        CHECK (octet_length(sealed) BETWEEN 31 AND 1024),
    CONSTRAINT destination_keys_expire_after_their_creation
        CHECK (expires_at >= created_at)
);

CREATE INDEX destination_keys_destination ON destination_keys (destination);

COMMENT ON TABLE  destination_keys IS 'Keys that deliveries to a destination are signed with; every one that has not expired signs';
COMMENT ON COLUMN destination_keys.id IS 'Key id, a UUID version 7';
COMMENT ON COLUMN destination_keys.created_at IS 'When it was set';
COMMENT ON COLUMN destination_keys.expires_at IS 'It signs until then; NULL means until it is removed or a newer one of its scheme is set';
COMMENT ON COLUMN destination_keys.scheme IS 'v1 (HMAC-SHA256) or v1a (Ed25519) of Standard Webhooks, or github (X-Hub-Signature-256); for people, the scheme that counts is sealed with the key';
COMMENT ON COLUMN destination_keys.destination IS 'Origin of the URLs whose deliveries it signs, as in https://example.com or http://10.0.0.1:8080';
COMMENT ON COLUMN destination_keys.sealed IS 'Scheme and key, sealed with SECRETS_KEY for this destination: in a row of another it cannot be opened';

ALTER TABLE webhook_jobs ADD COLUMN sealed_key bytea;
-- Not validated, so that the table is not read while it is locked: the column is empty in all rows there are.
ALTER TABLE webhook_jobs ADD CONSTRAINT webhook_jobs_sealed_key_between_31_and_1024_bytes
    CHECK (octet_length(sealed_key) BETWEEN 31 AND 1024) NOT VALID;
COMMENT ON COLUMN webhook_jobs.sealed_key IS 'The job''s own signing key, instead of its destination''s, sealed with SECRETS_KEY for this job; NULL when it has none';

CREATE VIEW outhook.signing_keys AS
SELECT key.id, key.destination, key.scheme,
       CASE
           WHEN key.expires_at <= now() THEN 'expired'
           WHEN key.expires_at IS NOT NULL THEN 'signs beside its successor'
           ELSE 'signs'
       END AS state,
       key.created_at, key.expires_at
FROM destination_keys AS key;
COMMENT ON VIEW outhook.signing_keys IS 'Signing keys of destinations, without the keys themselves';
