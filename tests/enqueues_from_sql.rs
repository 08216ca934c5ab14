//! `outhook.enqueue` is part of the caller's own transaction: gone with its rollback, delivered after
//! its commit.

use harness::database::Database;
use harness::{PATIENCE, Servers, Stack};
use sqlx::postgres::PgDatabaseError;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
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
    let stack = Stack::start().await;
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
    let stack = Stack::start().await;
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

/// What stands in the payload of each call that is refused, and nowhere in a log.
const SECRET: &str = "card 4111 1111 1111 1111";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_is_text_json_or_jsonb_however_it_is_passed() {
    let database = Database::create(Servers::shared().await).await;
    let mut connection = PgConnection::connect(&database.url_of("enqueuer")).await.expect("it logs in");
    let written = r#"{ "b":1, "a": [ ] }"#;
    let printed = r#"{"a": [], "b": 1}"#;
    for (call, expected) in [
        // A literal is text, as it was when there was nothing else.
        (format!("'http://example.com', '{written}'"), written),
        ("'http://example.com', 'no JSON'".to_owned(), "no JSON"),
        ("'http://example.com', ''".to_owned(), ""),
        (format!("client_url => 'http://example.com', payload => '{written}', max_attempts => 3"), written),
        (format!("payload => '{written}', client_url => 'http://example.com', ordering_key => 'k'"), written),
        (format!("'http://example.com', '{written}', '{{}}', NULL, 3, NULL, NULL, 1000"), written),
        (format!("'http://example.com'::varchar, '{written}'::varchar"), written),
        (format!("'http://example.com', '{written}'::text"), written),
        (format!("'http://example.com', '{written}'::json"), written),
        (format!("'http://example.com', '{written}'::jsonb"), printed),
        (format!("payload => '{written}'::json, client_url => 'http://example.com', timeout_ms => 1000"), written),
        (
            format!("payload => '{written}'::jsonb, client_url => 'http://example.com', headers => '{{\"a\":\"b\"}}'"),
            printed,
        ),
        ("'http://example.com', json_build_object('a', 1)".to_owned(), r#"{"a" : 1}"#),
        ("'http://example.com', jsonb_build_object('a', 1)".to_owned(), r#"{"a": 1}"#),
    ] {
        let statement = AssertSqlSafe(format!("SELECT outhook.enqueue({call})"));
        let taken = sqlx::query_scalar::<_, Uuid>(statement).fetch_one(&mut connection).await;
        let job_id = taken.unwrap_or_else(|error| panic!("{call}: {error}"));
        let payload = sqlx::query_scalar::<_, String>("SELECT payload FROM webhook_jobs WHERE id = $1").bind(job_id);
        assert_eq!(payload.fetch_one(&database.pool).await.expect("it is there"), expected, "{call}");
    }
    // Drivers that leave the types to Postgres get text, and those that say which get what they say.
    let (client, driver) = tokio_postgres::connect(&database.url, tokio_postgres::NoTls).await.expect("it logs in");
    tokio::spawn(driver);
    let types = async |statement: &str| -> Vec<String> {
        let prepared = client.prepare(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
        prepared.params().iter().map(|kind| kind.name().to_owned()).collect()
    };
    assert_eq!(types("SELECT outhook.enqueue($1, $2)").await, ["text", "text"]);
    assert_eq!(
        types("SELECT outhook.enqueue(payload => $1, client_url => $2, headers => $3)").await,
        ["text", "text", "jsonb"]
    );
    assert_eq!(types("SELECT outhook.enqueue($1, $2::json)").await, ["text", "json"]);
    let value = serde_json::json!({ "b": 1, "a": [] });
    sqlx::query("SELECT outhook.enqueue($1, $2)")
        .bind("http://example.com")
        .bind(value)
        .execute(&mut connection)
        .await
        .expect("jsonb");
    drop((client, connection));
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_argument_is_named_and_its_payload_is_in_no_log() {
    let servers = Servers::shared().await;
    let database = Database::create(servers).await;
    let mut connection = PgConnection::connect(&database.url_of("enqueuer")).await.expect("it logs in");
    for (arguments, argument) in [
        ("client_url => NULL, payload => $1", "client_url"),
        ("client_url => 'example.com', payload => $1", "client_url"),
        ("client_url => 'http://example.com/' || repeat('a', 2048), payload => $1", "client_url"),
        ("client_url => 'http://example.com', payload => nullif($1, $1)", "payload"),
        ("client_url => 'http://example.com', payload => nullif($1, $1)::json", "payload"),
        ("client_url => 'http://example.com', payload => $1 || repeat(' ', 16777216)", "payload"),
        ("client_url => 'http://example.com', payload => $1, headers => '[]'", "headers"),
        ("client_url => 'http://example.com', payload => $1, headers => 'null'", "headers"),
        (r#"client_url => 'http://example.com', payload => $1, headers => '{"a":["b"]}'"#, "headers"),
        ("client_url => 'http://example.com', payload => $1, deliver_at => now() + interval '367 days'", "deliver_at"),
        ("client_url => 'http://example.com', payload => $1, deliver_at => 'infinity'", "deliver_at"),
        ("client_url => 'http://example.com', payload => $1, max_attempts => 0", "max_attempts"),
        ("client_url => 'http://example.com', payload => $1, max_attempts => 101", "max_attempts"),
        ("client_url => 'http://example.com', payload => $1, idempotency_key => ''", "idempotency_key"),
        ("client_url => 'http://example.com', payload => $1, idempotency_key => repeat('k', 256)", "idempotency_key"),
        ("client_url => 'http://example.com', payload => $1, ordering_key => ''", "ordering_key"),
        ("client_url => 'http://example.com', payload => $1, ordering_key => repeat('k', 256)", "ordering_key"),
        ("client_url => 'http://example.com', payload => $1, timeout_ms => 99", "timeout_ms"),
        ("client_url => 'http://example.com', payload => $1, timeout_ms => 300001", "timeout_ms"),
    ] {
        let call = AssertSqlSafe(format!("SELECT outhook.enqueue({arguments})"));
        let error = sqlx::query(call).bind(SECRET).execute(&mut connection).await.expect_err(arguments);
        let error = error.as_database_error().expect("Postgres said it").downcast_ref::<PgDatabaseError>();
        assert_eq!(error.code(), "22023", "{arguments}: {error}");
        assert!(error.message().starts_with(&format!("{argument} ")), "{arguments}: {error}");
        assert_eq!(error.detail(), None, "{arguments}: {error}");
        assert!(servers.postgres_log().contains(error.message()), "{arguments}: this is not the server's log");
    }
    let early = "SELECT outhook.enqueue('http://example.com', $1, deliver_at => '-infinity')";
    sqlx::query(early).bind(SECRET).execute(&mut connection).await.expect("the past is now");
    assert!(!servers.postgres_log().contains(SECRET), "the server's log holds a payload");
    drop(connection);
    database.drop().await;
}
