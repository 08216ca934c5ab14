//! Postgres is demoted, or takes no writes for a while: nobody stays where nothing can be written.

use std::time::Instant;

use harness::client::send;
use harness::servers::Server;
use harness::{PATIENCE, Servers, Stack, TcpProxy, Webhook, report, wait_until};
use sqlx::AssertSqlSafe;

const RELOAD: &str = "SELECT pg_reload_conf()";

const TARGET: &str = "http://127.0.0.1:9/hook";

async fn status_of_a_post(stack: &Stack) -> u16 {
    send(stack.client.request(Webhook::to(TARGET))).await.expect("the api answers").status
}

/// What a promise of seconds is, on a busy machine.
async fn wait_until_it_accepts(stack: &Stack, what: &str) {
    let started = Instant::now();
    wait_until("the api to accept again", PATIENCE, async || status_of_a_post(stack).await == 202).await;
    report(&format!("{what}: accepted again after {:?}", started.elapsed()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_only_for_a_while_is_written_to_again() {
    let servers = Servers::private_only(Server::Postgres).await;
    let broker = Servers::shared().await;
    let stack = Stack::builder().start_between(&servers, broker).await;
    stack.post("{}", "").await;
    stack.wait_for_deliveries(1).await;
    // For sessions that there are, too, and for those that begin.
    for (setting, status) in [("on", 503), ("off", 202)] {
        for statement in [format!("ALTER SYSTEM SET default_transaction_read_only = {setting}"), RELOAD.to_owned()] {
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(stack.pool()).await.expect("an administrator may do it");
        }
        wait_until("the setting to be felt", PATIENCE, async || status_of_a_post(&stack).await == status).await;
    }
    wait_until_it_accepts(&stack, "read-only and back").await;
    stack.post("{}", "").await;
    stack.wait_for_deliveries(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_sessions_on_a_demoted_primary_are_left() {
    let mut old = Servers::private_only(Server::Postgres).await;
    let new = old.standby().await;
    let (proxy, url) = TcpProxy::before(&old.database_url).await;
    old.database_url = url;
    let stack = Stack::builder().relays(1).workers(1).start_between(&old, Servers::shared().await).await;
    stack.post("{}", "").await;
    stack.wait_for_deliveries(1).await;
    new.wait_for_all_of(&old).await;
    new.promote().await;
    old.become_standby_of(&new).await;
    // Who is sent to the old one meets a standby.
    wait_until("it to take no writes", PATIENCE, async || status_of_a_post(&stack).await == 503).await;
    proxy.redirect(new.postgres_address());
    wait_until_it_accepts(&stack, "a demoted primary").await;
    stack.post("{}", "").await;
    stack.wait_for_deliveries(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_hosts_the_one_that_takes_writes_is_used() {
    let old = Servers::private_only(Server::Postgres).await;
    let new = old.standby().await;
    // Also where many come before it: whoever waits for a connection has less than a second.
    let nobody = "127.0.0.1:9,".repeat(6);
    let hosts = format!("{nobody}{},{}", new.postgres_address(), old.postgres_address());
    let builder = Stack::builder().database_at(&hosts);
    let stack = builder.database_parameters("target_session_attrs=read-write");
    let stack = stack.start_between(&old, Servers::shared().await).await;
    stack.post("{}", "").await;
    stack.wait_for_deliveries(1).await;
    new.wait_for_all_of(&old).await;
    new.promote().await;
    old.become_standby_of(&new).await;
    wait_until_it_accepts(&stack, "the other of two hosts").await;
    stack.post("{}", "").await;
    stack.wait_for_deliveries(2).await;
}
