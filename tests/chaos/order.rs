//! Whether what arrived is in order, and within its limits. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use uuid::Uuid;

use crate::outsiders::Limit;

/// After a limit's commit what is on its way already may still arrive.
const GRACE: Duration = Duration::from_secs(2);

/// A webhook with a key, and what came of it.
#[derive(Clone, Debug)]
pub struct Ordered {
    pub job_id: Uuid,
    /// Destination and key.
    pub line: String,
    /// The order in which they were taken.
    pub outbox_id: i64,
    pub began: Instant,
    pub taken: Instant,
    /// Then its place is where its time comes.
    pub is_scheduled: bool,
    /// Its POSTs in their order.
    pub posts: Vec<Post>,
}

/// One POST at its receiver.
#[derive(Clone, Copy, Debug)]
pub struct Post {
    pub at: OffsetDateTime,
    /// How long the receiver took for it.
    pub lasted: Duration,
    /// Its worker was lost, or gave up: it may have arrived whenever its bytes did.
    pub is_unheard: bool,
}

/// What is out of order, in words.
pub fn violations(jobs: Vec<Ordered>) -> Vec<String> {
    let mut lines: BTreeMap<String, Vec<Ordered>> = BTreeMap::new();
    for job in jobs {
        lines.entry(job.line.clone()).or_default().push(job);
    }
    let mut found = Vec::new();
    for (line, mut jobs) in lines {
        jobs.sort_by_key(|job| job.outbox_id);
        for (place, earlier) in jobs.iter().enumerate() {
            for later in &jobs[place + 1..] {
                found.extend(violation(earlier, later).map(|words| {
                    format!(
                        "{line}: row {} ({}) {words} row {} ({})",
                        later.outbox_id, later.job_id, earlier.outbox_id, earlier.job_id
                    )
                }));
            }
        }
    }
    found
}

fn violation(earlier: &Ordered, later: &Ordered) -> Option<String> {
    let (first, second) = (earlier.posts.first()?, later.posts.first()?);
    let is_known = earlier.taken < later.began && !earlier.is_scheduled && !later.is_scheduled;
    if is_known && second.at < first.at {
        return Some(format!("arrived {} before", first.at - second.at));
    }
    // Whichever went first, the other waits for its end.
    let (one, two) = if first.at <= second.at { (earlier, second) } else { (later, first) };
    let last = one.posts.iter().rfind(|post| !post.is_unheard)?;
    let overlap = last.at + last.lasted - two.at;
    overlap.is_positive().then(|| format!("was at the receiver {overlap} together with"))
}

/// The webhooks that came under a limit, and the most of them in any second.
pub fn under(limit: &Limit, arrivals: &[OffsetDateTime]) -> (usize, usize) {
    let mut arrivals: Vec<OffsetDateTime> =
        arrivals.iter().copied().filter(|at| (limit.from + GRACE..limit.until).contains(at)).collect();
    arrivals.sort();
    let within = |place: usize| {
        arrivals[place..].iter().take_while(|at| **at - arrivals[place] < Duration::from_secs(1)).count()
    };
    (arrivals.len(), (0..arrivals.len()).map(within).max().unwrap_or(0))
}

/// What may come in a second: the clocks and the proxies of a busy machine add something to a limit.
pub fn allowed(per_second: i32) -> usize {
    let limit = per_second.unsigned_abs() as usize;
    limit + (limit / 4).max(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(outbox_id: i64, posts: &[i64], overlaps: bool) -> Ordered {
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        let posts = posts.iter().map(|second| Post {
            at: OffsetDateTime::UNIX_EPOCH + Duration::from_secs(second.unsigned_abs()),
            lasted: Duration::from_secs(1),
            is_unheard: false,
        });
        let began = if overlaps { start } else { at(outbox_id.unsigned_abs()) };
        let taken = at(outbox_id.unsigned_abs()) + Duration::from_millis(500);
        Ordered {
            job_id: Uuid::nil(),
            line: "k".to_owned(),
            outbox_id,
            began,
            taken,
            is_scheduled: false,
            posts: posts.collect(),
        }
    }

    #[test]
    fn finds_what_is_out_of_order_or_at_once() {
        for (first, second, overlaps, is_good) in [
            (&[10, 12][..], &[13][..], false, true),
            (&[10, 14], &[13], false, false),
            (&[10], &[9], false, false),
            (&[10], &[9], true, true),
            (&[10], &[10], true, false),
            (&[], &[9], false, true),
        ] {
            let found = violations(vec![job(2, second, overlaps), job(1, first, false)]);
            assert_eq!(found.is_empty(), is_good, "{first:?} {second:?} {overlaps}: {found:?}");
        }
    }

    #[test]
    fn counts_the_most_of_any_second() {
        let start = OffsetDateTime::UNIX_EPOCH;
        let limit = Limit { per_second: 3, from: start, until: start + Duration::from_secs(10) };
        let arrivals = [1_000, 3_000, 3_400, 3_999, 4_000, 4_100, 11_000, 11_000, 11_000, 11_000];
        let arrivals: Vec<_> = arrivals.iter().map(|it| start + Duration::from_millis(*it)).collect();
        assert_eq!(under(&limit, &arrivals), (5, 4));
    }
}
