//! `outhook.enqueue` is part of the caller's own transaction: gone with its rollback, delivered after
//! its commit.

use harness::{PATIENCE, Stack};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

async fn enqueue(connection: &mut PgConnection, url: &str, payload: &str, key: Option<&str>) -> sqlx::Result<Uuid> {
    sqlx::query_scalar("SELECT outhook.enqueue($1, $2, headers => '{\"X-Tenant\": \"blue\"}', idempotency_key => $3)")
        .bind(url)
        .bind(payload)
        .bind(key)
        .fetch_one(connection)
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_shares_the_fate_of_its_transaction() {
    let stack = Stack::builder("a_webhook_shares_the_fate").start().await;
    let url = stack.receiver_url("");
    // The application has a table of its own, and of Outhook's nothing but its function.
    let orders = "CREATE TABLE public.orders (id integer); GRANT INSERT ON public.orders TO outhook_enqueuer";
    sqlx::raw_sql(orders).execute(stack.pool()).await.expect("a table is made");
    let mut application = PgConnection::connect(&stack.url_of("enqueuer")).await.expect("it logs in");

    let mut transaction = application.begin().await.expect("a transaction begins");
    sqlx::raw_sql("INSERT INTO orders VALUES (1)").execute(&mut *transaction).await.expect("a row is inserted");
    enqueue(&mut transaction, &url, "rolled back", None).await.expect("it is taken");
    transaction.rollback().await.expect("a transaction rolls back");
    for table in
        ["SELECT count(*) FROM webhook_jobs", "SELECT count(*) FROM outbox", "SELECT count(*) FROM public.orders"]
    {
        assert_eq!(stack.count(table).await, 0, "{table}");
    }

    let payload = " {\"order\" : 2}\n";
    let mut transaction = application.begin().await.expect("a transaction begins");
    sqlx::raw_sql("INSERT INTO orders VALUES (2)").execute(&mut *transaction).await.expect("a row is inserted");
    let id = enqueue(&mut transaction, &url, payload, None).await.expect("it is taken");
    transaction.commit().await.expect("a transaction commits");
    // Nobody calls outhook.wake(): the relay polls.
    stack.wait_for_deliveries(1).await;

    let received = stack.receiver.received();
    assert_eq!((received.len(), &received[0].body[..]), (1, payload.as_bytes()));
    assert_eq!((received[0].job_id.clone(), received[0].header("x-tenant")), (Some(id.to_string()), Some("blue")));
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_and_http_share_their_rules() {
    let stack = Stack::builder("sql_and_http_share_their_rules").start().await;
    let url = stack.receiver_url("");
    let mut connection = PgConnection::connect(&stack.url_of("enqueuer")).await.expect("it logs in");

    let first = enqueue(&mut connection, &url, "{}", Some("sql-1")).await.expect("it is taken");
    let again = enqueue(&mut connection, &url, "{}", Some("sql-1")).await.expect("the key is known");
    assert_eq!(first, again, "one job a key");
    let other = enqueue(&mut connection, &url, "[]", Some("sql-1")).await.expect_err("another payload");
    assert_eq!(
        other.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref(),
        Some("23505"),
        "{other}"
    );
    for wrong in ["", "ftp://example.com/", "http://user@example.com/", "http://example.com/#x", "/hook"] {
        enqueue(&mut connection, wrong, "{}", None).await.expect_err(wrong);
    }
    drop(connection);
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(stack.receiver.received().len(), 1);
    stack.finish().await;
}
