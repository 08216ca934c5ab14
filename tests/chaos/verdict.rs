//! Compares what was promised with what is there.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::{self, Display};
use std::sync::Arc;
use std::time::Duration;

use harness::Program;
use outhook_check::Violation;
use receiver::Received;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::arena::{Arena, insist_on_life};
use crate::gate::DOOR;
use crate::load::Keyed;
use crate::order::{self, Ordered, Post};
use crate::outsiders::Limit;
use crate::report::Report;

/// Parts of a run that must each have seen deliveries.
pub const PARTS: u32 = 3;

pub async fn judge(arena: &mut Arena, seed: u64, faults_lasted: Duration, drained: Duration) -> Report {
    for program in [Program::Api, Program::Relay, Program::Worker] {
        arena.stack.processes(program).iter_mut().for_each(insist_on_life);
    }
    let accepted: BTreeSet<_> = arena.stack.client.accepted().iter().map(|it| it.job_id).collect();
    let received = arena.stack.receiver.received();
    let taken: Vec<_> = received.iter().filter(|it| it.answered_success()).collect();
    let delivered: BTreeSet<Uuid> = taken.iter().filter_map(|it| job_of(it)).collect();
    let posts: BTreeSet<_> = received.iter().map(|it| (&it.job_id, it.attempt)).collect();
    let cancelled = jobs(arena, "SELECT id FROM webhook_jobs WHERE status = 'cancelled'").await;
    let lost = accepted.iter().filter(|id| !delivered.contains(id) && !cancelled.contains(id)).count();
    let count = async |statement| arena.stack.count(statement).await;
    let mut violations = arena.check().await;
    violations.extend(cancels(arena, &cancelled));
    violations.extend(disorder(arena, &received).await);
    let limits = uses(arena, &received);
    violations.extend(excess(&limits));
    Report {
        seed,
        faults_lasted,
        injected: arena.injected.clone(),
        accepted: accepted.len(),
        with_a_key: arena.known.keyed.len(),
        lost,
        failed: count("SELECT count(*) FROM webhook_jobs WHERE status = 'failed'").await,
        attempts_run_twice: received.len() - posts.len(),
        messages: arena.wire.messages(),
        duplicate_messages: arena.wire.duplicates(),
        posts: received.len(),
        duplicate_posts: taken.len() - delivered.len(),
        unknown_attempts: arena.stack.unknown_attempts().await,
        timed_out: count("SELECT count(*) FROM webhook_attempts WHERE error LIKE 'no answer within%'").await,
        idle_parts: idle_parts(&received, arena.began, faults_lasted),
        cancelled: cancelled.len(),
        cancels_rolled_back: arena.known.deeds.rolled_back,
        rows_held: arena.known.deeds.rows_held,
        tables_held: arena.known.deeds.tables_held,
        limits,
        sicknesses: arena.known.deeds.sicknesses,
        seen: arena.known.seen.clone(),
        is_drained: arena.known.is_drained,
        drained,
        recovery: Vec::new(),
        violations,
    }
}

fn job_of(received: &Received) -> Option<Uuid> {
    received.job_id.as_deref()?.parse().ok()
}

async fn jobs(arena: &Arena, statement: &'static str) -> HashSet<Uuid> {
    let ids: Vec<Uuid> = sqlx::query_scalar(statement).fetch_all(arena.stack.pool()).await.expect("jobs can be read");
    ids.into_iter().collect()
}

fn violation(sentence: &'static str, rows: Vec<String>) -> Option<Violation> {
    (!rows.is_empty()).then_some(Violation { sentence, rows })
}

/// A cancel that was committed counts, and nothing is cancelled that nobody cancelled.
fn cancels(arena: &Arena, cancelled: &HashSet<Uuid>) -> Option<Violation> {
    let deeds = &arena.known.deeds;
    let forgotten = deeds.cancelled.iter().filter(|id| !cancelled.contains(id)).map(|id| format!("{id} is not"));
    let allowed: HashSet<_> = deeds.cancelled.iter().chain(&deeds.perhaps_cancelled).collect();
    let invented = cancelled.iter().filter(|id| !allowed.contains(id)).map(|id| format!("{id} is, by nobody"));
    violation("C1: what was cancelled is cancelled, and nothing else", forgotten.chain(invented).collect())
}

/// What arrived out of the order of its key, or at once with another of it.
async fn disorder(arena: &Arena, received: &[Arc<Received>]) -> Option<Violation> {
    let statement = "SELECT id, outbox_id FROM webhook_jobs WHERE ordering_key IS NOT NULL";
    let rows: Vec<(Uuid, i64)> =
        sqlx::query_as(statement).fetch_all(arena.stack.pool()).await.expect("jobs can be read");
    let places: HashMap<Uuid, i64> = rows.into_iter().collect();
    let statement = "SELECT job_id, attempt FROM webhook_attempts
        WHERE outcome = 'unknown' OR error LIKE 'no answer within%'";
    let unheard: Vec<(Uuid, i32)> =
        sqlx::query_as(statement).fetch_all(arena.stack.pool()).await.expect("attempts can be read");
    let unheard: HashSet<(Uuid, i32)> = unheard.into_iter().collect();
    let mut posts: HashMap<Uuid, Vec<Post>> = HashMap::new();
    for it in received {
        let Some(job) = job_of(it) else { continue };
        let attempt = it.attempt.map_or(0, u32::cast_signed);
        let post =
            Post { at: it.at, lasted: delay_of(&it.path_and_query), is_unheard: unheard.contains(&(job, attempt)) };
        posts.entry(job).or_default().push(post);
    }
    let jobs = arena.known.keyed.iter().filter_map(|keyed| {
        let outbox_id = *places.get(&keyed.job_id)?;
        let posts = posts.get(&keyed.job_id).cloned().unwrap_or_default();
        let Keyed { job_id, line, began, taken, is_scheduled } = keyed.clone();
        Some(Ordered { job_id, line, outbox_id, began, taken, is_scheduled, posts })
    });
    violation(
        "O1: webhooks of a key and a destination arrive in their order, and never two at once",
        order::violations(jobs.collect()),
    )
}

/// How long the receiver was asked to take.
fn delay_of(path_and_query: &str) -> Duration {
    let delay = path_and_query.split(['?', '&']).find_map(|it| it.strip_prefix("delay_ms="));
    Duration::from_millis(delay.and_then(|it| it.parse().ok()).unwrap_or(0))
}

/// What came under a limit.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    pub limit: Limit,
    pub webhooks: usize,
    pub most_in_a_second: usize,
}

fn uses(arena: &Arena, received: &[Arc<Received>]) -> Vec<Use> {
    let host = arena.limited.destination();
    let is_limited = |it: &&Arc<Received>| it.header(DOOR).is_some_and(|it| host.ends_with(it));
    let arrivals: Vec<OffsetDateTime> = received.iter().filter(is_limited).map(|it| it.at).collect();
    let uses = arena.known.deeds.limits.iter().map(|limit| {
        let (webhooks, most_in_a_second) = order::under(limit, &arrivals);
        Use { limit: *limit, webhooks, most_in_a_second }
    });
    uses.collect()
}

fn excess(uses: &[Use]) -> Option<Violation> {
    let over = uses.iter().filter(|it| it.most_in_a_second > order::allowed(it.limit.per_second));
    violation("L1: a limit is kept in every second", over.map(ToString::to_string).collect())
}

impl Display for Use {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit: Limit { per_second, from, until }, webhooks, most_in_a_second } = self;
        let seconds = (*until - *from).as_seconds_f32();
        write!(
            formatter,
            "{per_second} a second for {seconds:.1} s: {webhooks} webhooks, at most {most_in_a_second} in one"
        )
    }
}

/// Parts of the run in which nothing was delivered: a system that stood still would lose nothing either.
fn idle_parts(received: &[Arc<Received>], began: OffsetDateTime, faults_lasted: Duration) -> usize {
    let part = faults_lasted / PARTS;
    let idle = |number: &u32| {
        let (from, to) = (began + part * *number, began + part * (number + 1));
        !received.iter().any(|it| it.answered_success() && it.at >= from && it.at < to)
    };
    (0..PARTS).filter(idle).count()
}
