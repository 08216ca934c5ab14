//! The invariants are worth something only if they can be broken: here each of them is, and is found.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use harness::database::Database;
use harness::invariants::{Evidence, check, invariants};
use harness::{Accepted, PATIENCE, Servers, client, wait_until};
use receiver::Receiver;
use sqlx::PgPool;
use uuid::Uuid;

/// Each statement breaks what its comment says; some break more.
const VANDALISM: &str = "
    -- I2, I4: unfinished, and nothing will ring.
    INSERT INTO webhook_jobs (id, outbox_id, client_url, payload) VALUES (outhook.uuid_v7(), 1, 'http://x', '');

    -- I3, and P1, P2 by publishing the same attempt twice under two ids.
    INSERT INTO outbox (id, job_id, attempt, due_at) VALUES (100, gen_random_uuid(), 0, now() - interval '1 hour');
    UPDATE outbox SET published_at = now() WHERE id = 100;
    UPDATE outbox SET published_at = NULL, attempt = 1 WHERE id = 100;
    UPDATE outbox SET attempt = 0 WHERE id = 100;
    UPDATE outbox SET published_at = now(), message_id = gen_random_uuid() WHERE id = 100;

    -- I6, I7: delivered without an attempt; then out of a final state. I8: two attempts at once, and back.
    INSERT INTO webhook_jobs (id, outbox_id, client_url, payload, status, attempt)
        VALUES ('00000000-0000-0000-0000-000000000001', 1, 'http://x', '', 'success', 1);
    UPDATE webhook_jobs SET status = 'pending', attempt = attempt + 2 WHERE status = 'success';
    UPDATE webhook_jobs SET status = 'success', attempt = 1 WHERE id = '00000000-0000-0000-0000-000000000001';

    -- I5: nobody answered that, and the second is not even a success by its own status. I6: attempt 1 is missing.
    ALTER TABLE webhook_attempts DROP CONSTRAINT webhook_attempts_success_means_2xx;
    INSERT INTO webhook_jobs (id, outbox_id, client_url, payload, status, attempt)
        VALUES ('00000000-0000-0000-0000-000000000002', 2, 'http://x', '', 'success', 2);
    INSERT INTO webhook_attempts (job_id, attempt, worker, started_at, status_code, outcome)
        VALUES ('00000000-0000-0000-0000-000000000002', 2, 'w', now(), 200, 'success'),
               ('00000000-0000-0000-0000-000000000002', 3, 'w', now(), NULL, 'success');

    -- I13.
    INSERT INTO outbox (id, job_id, attempt, due_at, published_at, ordering_key)
        SELECT id, gen_random_uuid(), 0, now() + interval '1 hour', now(), 'key' FROM generate_series(101, 102) AS id;

    -- I18: held for a destination that is well, a breaker that nobody looks at, and a key whose turns nobody gives.
    INSERT INTO outbox (id, job_id, attempt, due_at, waits_for, destination)
        VALUES (103, gen_random_uuid(), 0, now() - interval '1 hour', 'destination', 'http://well');
    INSERT INTO destinations (destination, state, hold_until) VALUES ('http://sick', 'open', now() - interval '1 hour');
    INSERT INTO outbox (id, job_id, attempt, due_at, waits_for, ordering_key)
        VALUES (104, gen_random_uuid(), 0, now(), 'order', 'stuck');
    DELETE FROM ordering_checks;

    -- I10.
    -- A key that is on another job too, one that its job does not carry, and one whose job is not there.
    INSERT INTO webhook_jobs (id, outbox_id, client_url, payload, idempotency_key)
        SELECT ('00000000-0000-0000-0000-00000000001' || n)::uuid, 1, 'http://x', '', 'key' FROM generate_series(1, 2) AS n;
    INSERT INTO idempotency_keys (job_id, is_signed, body_hash, key)
        VALUES ('00000000-0000-0000-0000-000000000011', false, '', 'key'),
               ('00000000-0000-0000-0000-000000000011', false, '', 'another key'),
               ('00000000-0000-0000-0000-000000000019', false, '', 'a key of none');

    -- I11: six attempts of five, and the second one before its time.
    INSERT INTO webhook_jobs (id, outbox_id, client_url, payload, status, attempt, retry_count)
        VALUES ('00000000-0000-0000-0000-000000000003', 3, 'http://x', '', 'failed', 6, 6);
    INSERT INTO webhook_attempts (job_id, attempt, worker, started_at, outcome, retry_at)
        SELECT '00000000-0000-0000-0000-000000000003', attempt, 'w', now(), 'failed', now() + interval '1 hour'
        FROM generate_series(1, 6) AS attempt;
";

/// D1, D2, D3 and I9: the same attempt twice, without a record, and without a signature and an id.
async fn deliver_wrongly(receiver: &Receiver) {
    for _ in 0..2 {
        let headers = [("x-webhook-job-id", "00000000-0000-0000-0000-000000000001"), ("x-webhook-attempt", "1")];
        assert_eq!(client::post_raw(&receiver.url("/"), &headers).await, 200);
    }
}

/// I12: a session that was forgotten.
async fn forget_a_transaction(pool: &PgPool) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut forgotten = pool.begin().await.expect("a transaction begins");
    sqlx::raw_sql("SELECT").execute(&mut *forgotten).await.expect("a statement that does nothing");
    wait_until("the transaction to be idle for long", PATIENCE, async || {
        let idle = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND state = 'idle in transaction'
                      AND state_change < now() - interval '4 seconds'";
        sqlx::query_scalar::<_, i64>(idle).fetch_one(pool).await.expect("sessions can be counted") == 1
    })
    .await;
    forgotten
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_broken_invariant_is_found() {
    let database = Database::create(Servers::shared().await).await;
    let receiver = Receiver::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), None).await.expect("a free port");
    let clean = Evidence { accepted: &[], received: &[], max_retries: 5 };
    assert_eq!(check(&database.pool, clean).await, [], "a new database is in order");

    sqlx::raw_sql(VANDALISM).execute(&database.pool).await.expect("no constraint prevents it");
    deliver_wrongly(&receiver).await;
    let forgotten = forget_a_transaction(&database.pool).await;
    // I1: accepted, and never seen again.
    let accepted = [Accepted { job_id: Uuid::now_v7(), payload: None }];
    let evidence = Evidence { accepted: &accepted, received: &receiver.received(), max_retries: 5 };
    let violations = check(&database.pool, evidence).await;

    let found: BTreeSet<&str> = violations.iter().map(|violation| violation.sentence).collect();
    let missed: Vec<&str> = invariants().map(|it| it.sentence).filter(|sentence| !found.contains(sentence)).collect();
    assert!(missed.is_empty(), "not found: {missed:#?}");
    drop(forgotten);
    database.drop().await;
}
