-- The id that a request was signed with holds one job beside the caller's key, which is not signed.

ALTER TABLE webhook_jobs
    ADD COLUMN signed_id text,
    ADD CONSTRAINT webhook_jobs_signed_id_has_hash
        CHECK (signed_id IS NULL OR body_hash IS NOT NULL) NOT VALID,
    ADD CONSTRAINT webhook_jobs_signed_id_between_1_and_255_bytes
        CHECK (octet_length(signed_id) BETWEEN 1 AND 255) NOT VALID;
COMMENT ON COLUMN webhook_jobs.signed_id IS 'The webhook-id that the accepted request was signed with: one job an id, whatever idempotency key a replay comes with. NULL without Standard Webhooks';
COMMENT ON COLUMN webhook_jobs.idempotency_key IS 'The caller''s key, or else the signed id: one job a key';

-- Like the index on idempotency_key: the column never changes, so updates stay HOT; and a job without has no entry.
CREATE UNIQUE INDEX webhook_jobs_signed_id ON webhook_jobs (signed_id) WHERE signed_id IS NOT NULL;
