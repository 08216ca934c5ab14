//! A pooler between the services and Postgres, as providers have it: one that lends a session is as good as none, and
//! one that lends a transaction mixes nothing up.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use harness::client::send;
use harness::load::Flow;
use harness::pooler::{PoolMode, Pooler};
use harness::processes::output;
use harness::{PATIENCE, Program, Servers, Stack, report, wait_until};
use outbox::service::clock;
use tokio::time::sleep;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use uuid::Uuid;

const JOBS: usize = 60;

async fn stack(pooler: &Pooler) -> Stack {
    Stack::builder().database_at(&pooler.address().to_string()).database_direct().start().await
}

/// Posts, and waits until all have arrived.
async fn post_and_deliver(stack: &Stack) {
    let before = stack.receiver.received().len();
    let posts = join_all((0..JOBS).map(|_| stack.post("{}", "")));
    posts.await;
    stack.wait_for_deliveries(before + JOBS).await;
    stack.wait_until_drained(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_lends_sessions_is_as_good_as_none() {
    let servers = Servers::shared().await;
    let pooler = Pooler::start(servers, PoolMode::Session, "").await;
    // Everything goes through it, the relay's LISTEN as well.
    let stack = Stack::builder().database_at(&pooler.address().to_string()).start().await;
    post_and_deliver(&stack).await;
    assert!(!stack.apis[0].log().contains("pooler"), "{}", stack.apis[0].log());
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_lends_transactions_delivers_each_once() {
    let servers = Servers::shared().await;
    // Few, so that every statement of a client may meet another's session.
    let pooler = Pooler::start(servers, PoolMode::Transaction, "default_pool_size = 3").await;
    let stack = stack(&pooler).await;
    stack.apis[0].says("a pooler that lends").await;
    post_and_deliver(&stack).await;
    stack.finish().await;
}

/// The services' backoff (1 s), and a busy machine.
const RECOVERY_LIMIT: Duration = Duration::from_secs(20);

/// It dies with whatever is under way, and is there again after some seconds.
async fn die_and_come_back(mode: PoolMode) {
    let servers = Servers::shared().await;
    let mut pooler = Pooler::start(servers, mode, "default_pool_size = 3").await;
    let stack = stack(&pooler).await;
    let flow = Flow::start(&stack.client, vec![stack.receiver_url("")], 20);
    stack.wait_for_deliveries(40).await;
    pooler.kill().await;
    sleep(Duration::from_secs(3)).await;
    let before = stack.receiver.received().len();
    pooler.start_again().await;
    let back = Instant::now();
    stack.wait_for_deliveries(before + 1).await;
    let recovered = back.elapsed();
    stack.wait_for_deliveries(before + 60).await;
    let outcome = flow.stop().await;
    stack.wait_until_drained(PATIENCE).await;

    let accepted = outcome.accepted + outcome.known;
    let received = stack.receiver.received();
    let delivered: BTreeSet<_> = received.iter().filter_map(|it| it.job_id.as_ref()).collect();
    let (lost, twice) = (accepted - delivered.len(), received.len() - delivered.len());
    report(&format!(
        "a pooler killed ({mode:?}): delivered again {recovered:?} after it was back; {accepted} accepted, {lost} lost, \
         {twice} delivered twice"
    ));
    assert_eq!(lost, 0);
    assert!(recovered < RECOVERY_LIMIT, "{recovered:?}");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_lends_sessions_may_die() {
    die_and_come_back(PoolMode::Session).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_lends_transactions_may_die() {
    die_and_come_back(PoolMode::Transaction).await;
}

/// Reads beside cancellations: once a statement ran under the name of another one's, and cancelled what was only read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_only_read_is_not_cancelled() {
    let servers = Servers::shared().await;
    let pooler = Pooler::start(servers, PoolMode::Transaction, "default_pool_size = 3").await;
    let stack = stack(&pooler).await;
    let in_an_hour = clock::now() + Duration::from_hours(1);
    let accept = async || stack.client.post_webhook(&stack.webhook("").deliver_at(in_an_hour)).await.job_id;
    let (read, cancelled) = (join_all((0..20).map(|_| accept())).await, join_all((0..20).map(|_| accept())).await);
    let reads = read.iter().map(async |id| send(stack.client.authorized(reqwest::Method::GET, &path(id))).await);
    let cancels = cancelled.iter().map(|id| stack.client.cancel(*id));
    for answer in futures_util::future::join(join_all(reads), join_all(cancels)).await.0 {
        assert_eq!(answer.expect("the api answers").status, 200);
    }
    assert_eq!(with_status(&stack, "cancelled").await, cancelled.into_iter().collect());
    assert_eq!(with_status(&stack, "pending").await, read.into_iter().collect());
}

fn path(id: &Uuid) -> String {
    format!("/webhooks/{id}")
}

async fn with_status(stack: &Stack, status: &str) -> BTreeSet<Uuid> {
    let statement = "SELECT id FROM webhook_jobs WHERE status = $1";
    let ids: Vec<Uuid> = sqlx::query_scalar(statement).bind(status).fetch_all(stack.pool()).await.expect("rows");
    ids.into_iter().collect()
}

/// What a session would tell whoever gets it next.
const QUESTIONS: [&str; 8] = [
    "SHOW synchronous_commit",
    "SHOW search_path",
    "SHOW statement_timeout",
    "SHOW lock_timeout",
    "SHOW default_transaction_isolation",
    "SHOW jit",
    "SHOW plan_cache_mode",
    "SELECT count(*) FROM pg_prepared_statements",
];

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("it takes connections");
    tokio::spawn(connection);
    client
}

/// Not prepared.
async fn ask(client: &Client, question: &str) -> String {
    let answer = client.simple_query(question).await.expect("it is answered");
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    row.expect("a row").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_to_others_on_the_same_session() {
    let servers = Servers::shared().await;
    // One alone, so that whoever comes gets the session that the services had.
    let pooler = Pooler::start(servers, PoolMode::Transaction, "default_pool_size = 1").await;
    let stack = stack(&pooler).await;
    post_and_deliver(&stack).await;
    for role in ["api", "worker"] {
        let direct = connect(&stack.url_of(role)).await;
        let lent = connect(&pooler.url(servers, &stack.url_of(role))).await;
        for question in QUESTIONS {
            let (found, fresh) = (ask(&lent, question).await, ask(&direct, question).await);
            assert_eq!(found, fresh, "{question}, of {role}");
        }
    }
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_a_session_says_so() {
    let servers = Servers::shared().await;
    let pooler = Pooler::start(servers, PoolMode::Transaction, "").await;
    let stack = stack(&pooler).await;
    let url = pooler.url(servers, stack.database_url());
    let (broker, nobody) = (servers.rabbitmq_url.as_str(), "postgres://nobody@127.0.0.1:9/nothing");
    for program in [Program::Relay, Program::Migrate, Program::Check] {
        let refused = output(program, &[("DATABASE_URL", &url), ("RABBITMQ_URL", broker)], &[]).await;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
        assert!(!refused.status.success() && said.contains("DATABASE_DIRECT_URL"), "{program:?}: {said}");
    }
    for program in [Program::Migrate, Program::Check] {
        let environment = [("DATABASE_URL", nobody), ("DATABASE_DIRECT_URL", stack.database_url())];
        let done = output(program, &environment, &[]).await;
        assert!(done.status.success(), "{program:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

/// An administrator's `RELOAD`: the sessions that listen and lock are anybody's from then on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_taken_from_the_relay_is_missed() {
    let servers = Servers::shared().await;
    let pooler = Pooler::start(servers, PoolMode::Session, "").await;
    let stack = Stack::builder().database_at(&pooler.address().to_string()).start().await;
    post_and_deliver(&stack).await;
    let deaf = async || stack.relays[0].counter("outhook_relay_listen_failures_total").await;
    assert!(deaf().await < 1.0);

    pooler.change_mode(PoolMode::Transaction);
    wait_until("the relay to miss what it listened by", PATIENCE, async || deaf().await > 0.0).await;
    wait_until("it to say what it needs", PATIENCE, async || stack.relays[0].log().contains("DATABASE_DIRECT_URL"))
        .await;

    pooler.change_mode(PoolMode::Session);
    post_and_deliver(&stack).await;
    stack.finish().await;
}
