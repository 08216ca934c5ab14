//! How each fault is injected. Each returns when it is over, and only if it really happened.

use std::time::{Duration, Instant};

use harness::servers::Server as Service;
use harness::tcp_proxy::Direction;
use harness::{Mode, PATIENCE, Program, wait_until};
use outbox::broker::task::Task;
use rustix::process::Signal;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::arena::{Arena, insist_on_life};
use crate::plan::{Fault, Server, Step};

/// Time for a new process to come to its kill point; killed anyway after that.
const KILL_POINT_LIMIT: Duration = Duration::from_secs(5);

/// What RabbitMQ is given when it is short of memory, and what it has else (`scripts/servers`).
const NO_MEMORY: &str = "1";
const MEMORY: &str = "512MB";

/// A queue that is well confirms so soon, and has a leader so soon; one that is not is made anew by then: two time-outs of
/// a worker, one of a relay, and some.
const CONFIRM_LIMIT: Duration = Duration::from_secs(1);
const ELECTION_LIMIT: Duration = Duration::from_secs(2);
const BROKEN_QUEUE_LIMIT: Duration = Duration::from_secs(25);
const BROKEN_QUEUE: &str = "RabbitMq back with a queue that takes nothing";

pub async fn inject(arena: &mut Arena, step: &Step) {
    // How long nothing is broken; the load goes on.
    sleep(step.wait).await;
    let mut happened = step.fault;
    let name = happened.name();
    let is_excuse = step.fault.is_excuse(arena.has_others(step.fault));
    if is_excuse {
        arena.excuses.begin(&name);
    }
    match step.fault {
        Fault::Kill(program) => arena.replace(program).await,
        Fault::KillAtPoint(program) => happened = kill_at_point(arena, program, step).await,
        Fault::Pause(program) => pause(arena, program, step).await,
        Fault::Reset(server) => cut(arena, server, Mode::Reset, step).await,
        Fault::Cut(server) => cut(arena, server, Mode::CutAfter(step.amount), step).await,
        Fault::Stall(server) => disturb(arena, server, Mode::Stall, step).await,
        Fault::LoseConfirms => disturb(arena, Server::RabbitMq, Mode::Drop(Direction::ToClient), step).await,
        Fault::TerminateSessions => terminate_sessions(arena, i64::MAX).await,
        Fault::TerminateSession => terminate_sessions(arena, 1).await,
        Fault::RepeatMessages => repeat_messages(arena, step.amount).await,
        Fault::Poison => poison(arena).await,
        Fault::DeleteQueue => arena.stack.broker.delete_queue().await,
        Fault::BlockBroker => block_broker(arena, step).await,
        Fault::PauseBroker => pause_broker(arena, step).await,
        Fault::RestartBroker | Fault::KillBroker | Fault::WipeBroker => restart_broker(arena, step.fault).await,
        Fault::CrashPostgres => crash_postgres(arena).await,
    }
    if is_excuse {
        arena.excuses.end(&name);
    }
    *arena.injected.entry(happened.name()).or_default() += 1;
}

/// For as long as the fault lasts; perhaps a process is killed meanwhile.
async fn meanwhile(arena: &mut Arena, step: &Step) {
    sleep(step.lasts / 2).await;
    if let Some(program) = step.kill_meanwhile {
        arena.replace(program).await;
    }
    sleep(step.lasts / 2).await;
}

/// Returns what happened: it may not come to its kill point in time, and is killed wherever it is.
async fn kill_at_point(arena: &mut Arena, program: Program, step: &Step) -> Fault {
    let mut others = std::mem::take(arena.stack.processes(program));
    for other in &mut others {
        insist_on_life(other);
        other.kill().await;
    }
    // Alone, so that everything passes through it.
    let mut doomed = arena.stack.start_doomed(program, step.point, step.passage).await;
    let passed = timeout(KILL_POINT_LIMIT, doomed.wait_for_kill_point(step.point, 2 * KILL_POINT_LIMIT)).await.is_ok();
    if !passed {
        doomed.kill().await;
    }
    for _ in others {
        arena.stack.spawn(program).await;
    }
    if passed { step.fault } else { Fault::Kill(program) }
}

async fn pause(arena: &mut Arena, program: Program, step: &Step) {
    let paused = arena.stack.processes(program).pop().expect("there is one of each");
    paused.signal(Signal::STOP);
    sleep(step.lasts).await;
    paused.signal(Signal::CONT);
    arena.stack.processes(program).push(paused);
}

/// Breaks connections, for as long as it takes until one is broken: while somebody holds a table, little passes that could
/// be cut. That there are new ones afterwards shows that they are missed.
async fn cut(arena: &mut Arena, server: Server, mode: Mode, step: &Step) {
    let proxy_of = |arena: &Arena| (proxy(arena, server).ended_connections(), proxy(arena, server).connections());
    let (ended, begun) = proxy_of(arena);
    proxy(arena, server).set(mode);
    meanwhile(arena, step).await;
    wait_until("a connection to be broken", PATIENCE, async || proxy_of(arena).0 > ended).await;
    proxy(arena, server).set(Mode::Forward);
    wait_until("another connection instead", PATIENCE, async || proxy_of(arena).1 > begun).await;
}

async fn disturb(arena: &mut Arena, server: Server, mode: Mode, step: &Step) {
    proxy(arena, server).set(mode);
    meanwhile(arena, step).await;
    proxy(arena, server).set(Mode::Forward);
}

fn proxy(arena: &Arena, server: Server) -> &harness::TcpProxy {
    match server {
        Server::Postgres => &arena.database,
        Server::RabbitMq => &arena.broker,
    }
}

async fn terminate_sessions(arena: &Arena, most: i64) {
    let ended = "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM (
        SELECT pid FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE 'outhook-%' ORDER BY random() LIMIT $1) AS session";
    let ended: i64 = sqlx::query_scalar(ended).bind(most).fetch_one(arena.stack.pool()).await.expect("it is allowed");
    assert!(ended > 0, "no service had a session");
}

/// Messages that were published at any time: no broker makes one up, and one of a row that waits for its turn was never
/// there.
async fn repeat_messages(arena: &Arena, amount: u64) {
    let most = i64::try_from(amount % 50 + 1).expect("it is small");
    for (id, attempt, outbox_id) in publications(arena, most).await {
        for _ in 0..2 {
            // A broker that was killed just before may have come back with a queue that takes nothing.
            let repeated = arena.stack.broker.try_publish(&Task::new(id, attempt, outbox_id, None).encode()).await;
            if !matches!(repeated, Ok(true)) {
                eprintln!("chaos: the broker takes no more of them: {repeated:?}");
                return;
            }
        }
    }
}

/// Any of what was ever published: job, attempt and row.
async fn publications(arena: &Arena, most: i64) -> Vec<(Uuid, i32, i64)> {
    let published = "SELECT job_id, attempt, outbox_id FROM harness.publications ORDER BY random() LIMIT $1";
    let published = sqlx::query_as(published).bind(most).fetch_all(arena.stack.pool()).await;
    published.expect("publications can be read")
}

async fn poison(arena: &mut Arena) {
    for garbage in [&b""[..], b"{}", b"\xff\x00\xfe"] {
        arena.stack.broker.publish(garbage).await;
        arena.poison += 1;
    }
}

async fn block_broker(arena: &mut Arena, step: &Step) {
    arena.servers.rabbitmqctl(&["set_vm_memory_high_watermark", "absolute", NO_MEMORY]).await;
    meanwhile(arena, step).await;
    arena.servers.rabbitmqctl(&["set_vm_memory_high_watermark", "absolute", MEMORY]).await;
}

async fn pause_broker(arena: &mut Arena, step: &Step) {
    arena.servers.pause(Service::RabbitMq).await;
    meanwhile(arena, step).await;
    arena.servers.resume(Service::RabbitMq).await;
}

async fn restart_broker(arena: &mut Arena, fault: Fault) {
    match fault {
        Fault::KillBroker => arena.servers.kill(Service::RabbitMq).await,
        Fault::WipeBroker => arena.servers.wipe(Service::RabbitMq).await,
        _ => arena.servers.stop(Service::RabbitMq).await,
    }
    arena.servers.start_again(Service::RabbitMq).await;
    arena.await_exchange().await;
    arena.stack.broker.listen_again(&arena.wire).await;
    outlast_broken_queue(arena).await;
}

/// RabbitMQ 3.10 that was killed just after its queue was declared may come back with a queue that takes nothing, until a
/// worker deletes it (decision 6). What a queue is that confirms nothing, only the one who publishes to it can tell.
async fn outlast_broken_queue(arena: &mut Arena) {
    let Some((id, attempt, outbox_id)) = publications(arena, 1).await.pop() else { return };
    let task = Task::new(id, attempt, outbox_id, None).encode();
    let broken = Instant::now();
    wait_until("the queue to take messages again", BROKEN_QUEUE_LIMIT, async || {
        matches!(timeout(CONFIRM_LIMIT, arena.stack.broker.try_publish(&task)).await, Ok(Ok(true)))
    })
    .await;
    if broken.elapsed() > ELECTION_LIMIT {
        eprintln!("chaos: RabbitMq came back with a queue that took nothing for {:?}", broken.elapsed());
        *arena.injected.entry(BROKEN_QUEUE.to_owned()).or_default() += 1;
    }
}

async fn crash_postgres(arena: &mut Arena) {
    arena.servers.kill(Service::Postgres).await;
    arena.servers.start_again(Service::Postgres).await;
}
