//! A right that a service does not need is one too many: each is taken away in turn, and then something that
//! the service does must be refused.

use std::time::Duration;

use anyhow::Context;
use harness::Servers;
use harness::database::{Database, service_pool};
use harness::job::{idempotency, new_job};
use harness::report;
use outbox::broker::task::Task;
use outbox::destination::Destination;
use outbox::destination::breaker::{CoolDown, Finding};
use outbox::destination::hold::{free_strays, hold_due, hold_published};
use outbox::destination::limit::reserve_slots;
use outbox::destination::pause::pause_url;
use outbox::destination::release::release;
use outbox::destination::store::report as report_finding;
use outbox::destination::upkeep::{forget, work};
use outbox::due::missing::{find_unclaimed, make_due, still_held};
use outbox::due::ordering::{give_turns, line_up};
use outbox::due::{
    DueRow, Statements, claim_chosen, claim_due, make_due_again, mark_published, next_due, postpone as postpone_due,
    rewind, scan_due, sift_published,
};
use outbox::job::accept::{NewJob, accept};
use outbox::job::cancel::cancel;
use outbox::job::claim::{Lease, claim, recover_claim};
use outbox::job::keys::forget_keys;
use outbox::job::settle::{Settlement, settle};
use outbox::job::states::{Outcome, Status};
use outbox::job::unclaimed::{check_again, look_up, postpone};
use outbox::service::database::{DatabaseError, Pool, schema_version};
use outbox::service::installation::installation;
use outbox::signing::key::Scheme;
use outbox::signing::store::{self, NewKey};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use time::OffsetDateTime;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

/// Where the service delivers to.
const DESTINATION: &str = "http://example.com";

/// A service's own connections.
struct Service {
    own: Pool,
    pool: PgPool,
    client: Client,
    /// Not its own: puts there what it works with.
    owner: PgPool,
}

impl Service {
    async fn connect(database: &Database, role: &str) -> Self {
        let url = database.url_of(role);
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("Postgres takes connections");
        tokio::spawn(connection);
        let pool = PgPool::connect(&url).await.expect("Postgres takes connections");
        Self { own: service_pool(&url, 8, &[]), pool, client, owner: database.pool.clone() }
    }

    /// All that the service asks of Postgres, each statement once.
    async fn do_all(&mut self, role: &str) -> anyhow::Result<()> {
        schema_version(&self.client).await?;
        match role {
            "api" => self.do_as_api().await,
            "relay" => self.do_as_relay().await,
            _ => self.do_as_worker().await,
        }
    }

    async fn do_as_api(&self) -> anyhow::Result<()> {
        let key = Uuid::new_v4().to_string();
        // The second one makes it look the key up.
        accept(&self.own, &[job(&key), job(&key)]).await?;
        cancel(&self.own, Uuid::new_v4()).await?;
        self.keep_keys().await?;
        wake(&self.pool).await?;
        let show = AssertSqlSafe(statement_of_show());
        sqlx::query(show).bind(Uuid::new_v4()).execute(&self.pool).await?;
        Ok(())
    }

    async fn keep_keys(&self) -> anyhow::Result<()> {
        let id = Uuid::now_v7();
        let key = NewKey {
            id,
            destination: DESTINATION.to_owned().into(),
            scheme: Scheme::V1,
            sealed: vec![0; 64],
            overlap: Duration::from_secs(1),
        };
        store::set(&self.own, &key).await?;
        store::list(&self.own, &DESTINATION.to_owned().into()).await?;
        store::remove(&self.own, id).await?;
        Ok(())
    }

    async fn do_as_relay(&mut self) -> anyhow::Result<()> {
        let statements = Statements::prepare(&self.client).await?;
        let transaction = self.client.transaction().await?;
        let due = claim_due(&transaction, &statements, 10, None).await?;
        assert!(due.iter().any(|row| row.was_published), "nothing rings again");
        let due = sift_published(&transaction, due).await?;
        let ids: Vec<i64> = due.iter().map(DueRow::id).collect();
        let waiting = due.iter().filter(|row| row.has_no_turn).count();
        assert_eq!(line_up(&transaction, due).await?.len() + waiting, ids.len());
        assert!(waiting > 0, "no row waits for its turn");
        scan_due(&transaction, &statements, 10, None).await?;
        claim_chosen(&transaction, &statements, &ids).await?;
        hold_due(&transaction, 10, None).await?;
        free_strays(&transaction, "").await?;
        forget(&transaction).await?;
        mark_published(&transaction, &statements, &ids, Duration::from_secs(1)).await?;
        postpone_due(&transaction, &ids, Duration::from_secs(1)).await?;
        next_due(&transaction, &statements, 0).await?;
        rewind(&transaction, 10, Duration::from_secs(1), None).await?;
        give_turns(&transaction, &statements, 0, 10).await?;
        make_due_again(&transaction, 0, 10).await?;
        work(&transaction, &statements, 0, 0).await?;
        transaction.rollback().await?;
        find_unclaimed(&self.client, 10, Duration::from_secs(1), None).await?;
        make_due(&self.client, &ids).await?;
        forget_keys(&mut self.client, 1, None, 10, Duration::from_secs(1)).await?;
        release(&mut self.client, 10).await?;
        // For the next time.
        let again = "UPDATE destinations SET state = 'metered', hold_until = now()";
        sqlx::query(again).execute(&self.owner).await?;
        Ok(())
    }

    async fn do_as_worker(&self) -> anyhow::Result<()> {
        let lease = Lease { timeout: Duration::from_secs(1), margin: Duration::ZERO };
        // One that is there, so that its destination's keys are asked for.
        let job_id: Uuid =
            sqlx::query_scalar("SELECT outhook.enqueue($1, '{}')").bind(DESTINATION).fetch_one(&self.owner).await?;
        installation(&self.own).await?;
        let messages = [Task::new(job_id, 0, 1, None)];
        assert_eq!(claim(&self.own, &messages, "worker", lease).await?.len(), 1, "nothing was claimed");
        recover_claim(&self.own, &messages, "worker", lease).await?;
        look_up(&self.own, &[Uuid::new_v4()]).await?;
        check_again(&self.own, &messages).await?;
        still_held(&self.own, &messages).await?;
        postpone(&self.own, &[(&messages[0], Duration::ZERO)]).await?;
        settle(&self.own, &[settlement()]).await?;
        self.say_how_destinations_fare(&messages).await?;
        wake(&self.pool).await
    }
}

impl Service {
    async fn say_how_destinations_fare(&self, messages: &[Task]) -> anyhow::Result<()> {
        let second = Duration::from_secs(1);
        let cool_down = CoolDown { base: second, max: second };
        hold_published(&self.own, messages).await?;
        // One that is not there and one that is.
        let new: Destination = format!("http://{}.example", Uuid::new_v4()).into();
        for destination in [&new, &new] {
            report_finding(&self.own, destination, Finding::Slow { limit: 1 }, "slow", cool_down).await?;
            report_finding(&self.own, destination, Finding::Down { released: false }, "down", cool_down).await?;
        }
        pause_url(&self.own, DESTINATION, second).await?;
        pause_url(&self.own, DESTINATION, second).await?;
        let ended = "DELETE FROM url_pauses";
        sqlx::query(ended).execute(&self.owner).await?;
        reserve_slots(&self.own, &"http://limited.example".to_owned().into(), 1).await?;
        Ok(())
    }
}

async fn wake(pool: &PgPool) -> anyhow::Result<()> {
    sqlx::query("SELECT outhook.wake()").execute(pool).await?;
    Ok(())
}

/// As the macro wrote it down when the api was compiled.
fn statement_of_show() -> String {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../.sqlx");
    let files = std::fs::read_dir(directory).expect("the queries' descriptions are there");
    let texts = files.map(|file| std::fs::read_to_string(file.expect("an entry").path()).expect("it is text"));
    let mut queries = texts.filter_map(|text| {
        let description: Value = serde_json::from_str(&text).expect("it is JSON");
        Some(description["query"].as_str()?.to_owned())
    });
    queries.find(|query| query.starts_with("-- show_job")).expect("the api shows jobs")
}

fn job(key: &str) -> NewJob {
    NewJob { idempotency: Some(idempotency(key, None)), ..new_job(DESTINATION) }
}

fn settlement() -> Settlement {
    Settlement {
        job_id: Uuid::new_v4(),
        attempt: 1,
        status: Status::Success,
        retry_in: Duration::ZERO,
        ordered: true,
        taken_over: false,
        worker: "worker".to_owned(),
        started_at: OffsetDateTime::UNIX_EPOCH,
        duration_ms: None,
        status_code: Some(200),
        outcome: Outcome::Success,
        error: String::new(),
        response_excerpt: String::new(),
    }
}

/// Whether it ended because Postgres refused it.
fn was_refused(error: &anyhow::Error) -> bool {
    let code = error.chain().find_map(|cause| {
        let sqlx = cause.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
        let tokio = match cause.downcast_ref() {
            Some(DatabaseError::Postgres(error)) => Some(error),
            _ => cause.downcast_ref::<tokio_postgres::Error>(),
        };
        let tokio = tokio.and_then(tokio_postgres::Error::code);
        sqlx.and_then(|error| error.code().map(String::from)).or_else(|| tokio.map(|code| code.code().to_owned()))
    });
    code.as_deref() == Some("42501")
}

/// What was granted to a role, as `GRANT` and `REVOKE` have it between their name and the role's.
async fn granted(pool: &PgPool, role: &str) -> Vec<String> {
    let statement = "
        SELECT format('%s ON %s %s', privilege_type, CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, pg_class.oid::regclass)
        FROM pg_class, aclexplode(relacl) WHERE grantee = $1::regrole
        UNION ALL
        SELECT format('%s (%s) ON %s', privilege_type, attname, attrelid::regclass)
        FROM pg_attribute, aclexplode(attacl) WHERE grantee = $1::regrole
        UNION ALL
        SELECT format('%s ON FUNCTION %s', privilege_type, pg_proc.oid::regprocedure)
        FROM pg_proc, aclexplode(proacl) WHERE grantee = $1::regrole
        UNION ALL
        SELECT format('%s ON SCHEMA %s', privilege_type, nspname)
        FROM pg_namespace, aclexplode(nspacl) WHERE grantee = $1::regrole AND nspname <> 'public'";
    let role = format!("outhook_{role}");
    sqlx::query_scalar(statement).bind(role).fetch_all(pool).await.expect("the catalog can be read")
}

async fn alter(pool: &PgPool, statement: String) {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(pool).await.expect("the owner may do it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_right_of_a_service_is_needed() {
    let database = Database::create(Servers::shared().await).await;
    let owner = &database.pool;
    // A row that rings again, two of a key, and what makes the relay and the worker look further.
    let there = "
        INSERT INTO outbox (due_at, published_at, job_id, attempt, ordering_key)
        SELECT now() - interval '1 hour', CASE WHEN key IS NULL THEN now() - interval '2 hours' END, gen_random_uuid(), 0, key
        FROM unnest(ARRAY[NULL, 'key', 'key']) AS key;
        INSERT INTO destinations (destination, state, rate_limit)
        VALUES ('http://sick.example', 'metered', NULL), ('http://limited.example', 'closed', 1);
        INSERT INTO destination_keys (id, destination, scheme, sealed)
        -- Not of the destination whose keys the api replaces: those expire, and are gone on a machine that is slow.
        VALUES (gen_random_uuid(), 'http://other.example', 'v1', decode(repeat('00', 64), 'hex'))";
    sqlx::raw_sql(there).execute(owner).await.expect("the owner may do it");

    let (mut spare, mut taken) = (Vec::new(), 0);
    for role in ["api", "relay", "worker"] {
        let mut service = Service::connect(&database, role).await;
        service.do_all(role).await.with_context(|| format!("{role} with all its rights")).expect("it may do all");
        for right in granted(owner, role).await {
            alter(owner, format!("REVOKE {right} FROM outhook_{role}")).await;
            match service.do_all(role).await {
                Ok(()) => spare.push(format!("{role}: {right}")),
                Err(error) => assert!(was_refused(&error), "{role} without {right}: {error:#}"),
            }
            alter(owner, format!("GRANT {right} TO outhook_{role}")).await;
            taken += 1;
        }
        service.do_all(role).await.expect("it has all its rights again");
    }
    assert!(spare.is_empty(), "rights that nobody needs:\n{}", spare.join("\n"));
    report(&format!("least privilege: each of {taken} rights in Postgres is needed"));
    database.drop().await;
}
