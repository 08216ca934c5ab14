//! How long each kind of recovery takes, one after the other on a quiet system.
//!
//! The clock starts when what was broken is there again, and ends when a webhook that was accepted meanwhile
//! has arrived.

use std::time::{Duration, Instant};

use harness::servers::Server as Service;
use harness::{PATIENCE, Process, Program, wait_until};
use tokio::time::sleep;
use uuid::Uuid;

use crate::arena::{Arena, LEASE};
use crate::report::Recovery;

/// For how long the services are watched while a server is away, and what of a processor all of them together may
/// use: next to nothing, which a loop that does not wait would exceed at once.
const AWAY: Duration = Duration::from_secs(5);
const IDLE_TARGET: Duration = Duration::from_millis(500);

/// Webhooks in flight when the broker is wiped.
const IN_FLIGHT: usize = 20;

pub async fn measure(arena: &mut Arena) -> Vec<Recovery> {
    // Ready again after whatever came last.
    let probe = post(arena, "").await;
    arrival(arena, probe).await;
    let mut measured =
        vec![relay_restarted(arena).await, relay_taken_over(arena).await, worker_taken_over(arena).await];
    measured.extend(broker_back(arena).await);
    measured.push(broker_wiped(arena).await);
    measured.extend(postgres_back(arena).await);
    measured
}

async fn post(arena: &Arena, query: &str) -> Uuid {
    arena.stack.post("{}", query).await.job_id
}

/// Waits until the receiver has taken it.
async fn arrival(arena: &Arena, job_id: Uuid) {
    wait_until("a webhook to arrive", 2 * PATIENCE, async || {
        arena.stack.deliveries(job_id).iter().any(|it| it.answered_success())
    })
    .await;
}

fn recovery(what: &'static str, since: Instant, target: Duration) -> Recovery {
    Recovery { what, took: since.elapsed(), target }
}

async fn kill_all(arena: &mut Arena, program: Program) {
    for mut process in std::mem::take(arena.stack.processes(program)) {
        process.kill().await;
    }
}

async fn relay_restarted(arena: &mut Arena) -> Recovery {
    kill_all(arena, Program::Relay).await;
    let probe = post(arena, "").await;
    let since = Instant::now();
    arena.stack.spawn(Program::Relay).await;
    arrival(arena, probe).await;
    recovery("relay started again -> delivered", since, Duration::from_secs(1))
}

async fn relay_taken_over(arena: &mut Arena) -> Recovery {
    arena.stack.start_relay().await;
    let since = Instant::now();
    arena.stack.relays.remove(0).kill().await;
    let probe = post(arena, "").await;
    arrival(arena, probe).await;
    recovery("one of two relays killed -> delivered", since, Duration::from_secs(1))
}

async fn worker_taken_over(arena: &mut Arena) -> Recovery {
    let probe = post(arena, "?hang=1&fail_times=1").await;
    wait_until("the request to be under way", PATIENCE, async || !arena.stack.deliveries(probe).is_empty()).await;
    let since = Instant::now();
    kill_all(arena, Program::Worker).await;
    arena.stack.start_worker().await;
    arrival(arena, probe).await;
    recovery("worker killed -> its job delivered (lease 8 s)", since, LEASE + Duration::from_secs(1))
}

/// The processor time that all services use while they have nothing to do but to wait.
async fn idle(arena: &mut Arena, what: &'static str) -> Recovery {
    let used = |arena: &mut Arena| -> Duration {
        let programs = [Program::Api, Program::Relay, Program::Worker];
        programs
            .into_iter()
            .flat_map(|it| arena.stack.processes(it).iter().map(Process::processor_time).collect::<Vec<_>>())
            .sum()
    };
    let before = used(arena);
    sleep(AWAY).await;
    Recovery { what, took: used(arena).saturating_sub(before), target: IDLE_TARGET }
}

async fn broker_back(arena: &mut Arena) -> [Recovery; 2] {
    arena.servers.stop(Service::RabbitMq).await;
    let probe = post(arena, "").await;
    let idle = idle(arena, "processor time of all services, RabbitMq 5 s away").await;
    arena.servers.start_again(Service::RabbitMq).await;
    let since = Instant::now();
    arrival(arena, probe).await;
    [recovery("RabbitMq back -> delivered", since, Duration::from_secs(2)), idle]
}

/// With messages in its queue that are gone with it.
async fn broker_wiped(arena: &mut Arena) -> Recovery {
    kill_all(arena, Program::Worker).await;
    let mut probes = Vec::new();
    for _ in 0..IN_FLIGHT {
        probes.push(post(arena, "").await);
    }
    wait_until("all to be published", PATIENCE, async || arena.stack.unpublished().await == 0).await;
    arena.servers.wipe(Service::RabbitMq).await;
    arena.servers.start_again(Service::RabbitMq).await;
    let since = Instant::now();
    arena.stack.spawn(Program::Worker).await;
    for probe in probes {
        arrival(arena, probe).await;
    }
    recovery("RabbitMq wiped and back -> all of 20 delivered", since, Duration::from_secs(5))
}

async fn postgres_back(arena: &mut Arena) -> [Recovery; 2] {
    // Published already: the api is away with Postgres.
    let probe = post(arena, "?delay_ms=1500").await;
    arena.servers.kill(Service::Postgres).await;
    let idle = idle(arena, "processor time of all services, Postgres 5 s away").await;
    arena.servers.start_again(Service::Postgres).await;
    let since = Instant::now();
    wait_until("a webhook to be accepted", PATIENCE, async || {
        let body = arena.stack.webhook("").body();
        arena.stack.client.try_post(body, Some("{}")).await.is_ok_and(|response| response.status == 202)
    })
    .await;
    let accepted = arena.stack.client.accepted().last().expect("one was accepted just now").job_id;
    arrival(arena, accepted).await;
    let recovery = recovery("Postgres back -> accepted and delivered", since, Duration::from_secs(2));
    arrival(arena, probe).await;
    arena.stack.wait_until_drained(2 * PATIENCE).await;
    [recovery, idle]
}
