//! Processor time and memory of processes, from `/proc`.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use anyhow::Context;

/// Clock ticks a second in `/proc/<pid>/stat`: `USER_HZ`, the same on every Linux of today.
const TICKS_PER_SECOND: u64 = 100;

/// What a process has used, from the fields of `/proc/<pid>/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    own_ticks: u64,
    /// Of children that ended: a backend's time must not vanish with it.
    ended_children_ticks: u64,
}

/// Processor time of a process, of all its descendants, and of those of them that ended.
pub(crate) fn of_tree(root: u32) -> anyhow::Result<Duration> {
    let stats = all_stats()?;
    let ticks = tree(root, &stats).filter_map(|pid| stats.get(&pid));
    let ticks: u64 = ticks.map(|stat| stat.own_ticks + stat.ended_children_ticks).sum();
    Ok(Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
}

/// Processor time of one process, without its children.
pub(crate) fn of_process(pid: u32) -> anyhow::Result<Duration> {
    let stat = read_stat(pid).with_context(|| format!("process {pid} has ended"))?;
    Ok(Duration::from_millis(stat.own_ticks * 1_000 / TICKS_PER_SECOND))
}

/// Processor time of a process's threads in nanoseconds, for what is shorter than a tick. Threads that ended
/// do not count.
pub(crate) fn of_threads(pid: u32) -> anyhow::Result<Duration> {
    let mut nanoseconds = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text.split(' ').next().and_then(|it| it.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Processor time that was used on this machine by anybody, since it was started.
pub(crate) fn of_machine() -> anyhow::Result<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    Ok(Duration::from_millis(busy_ticks(&text).context("/proc/stat has no sum")? * 1_000 / TICKS_PER_SECOND))
}

/// proc(5): the first line sums up all processors as user, nice, system, idle, iowait, irq, softirq, steal.
fn busy_ticks(text: &str) -> Option<u64> {
    let fields = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).take(8).collect();
    Some(ticks.iter().sum::<u64>() - ticks.get(3)? - ticks.get(4)?)
}

/// Most memory that a process ever had resident, in bytes.
pub(crate) fn peak_memory(pid: u32) -> anyhow::Result<u64> {
    read_kibibytes(&format!("/proc/{pid}/status"), "VmHWM:")
}

/// Memory of a process and its descendants now, in bytes. What they share is counted once.
pub(crate) fn proportional_memory(root: u32) -> anyhow::Result<u64> {
    let stats = all_stats()?;
    // One that ended meanwhile has no memory.
    Ok(tree(root, &stats).filter_map(|pid| read_kibibytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:").ok()).sum())
}

fn read_kibibytes(path: &str, name: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let line =
        text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("{path} has no {name}"))?;
    let number = line.split_whitespace().next().context("a size is a number")?;
    Ok(number.parse::<u64>()? * 1_024)
}

/// The process and all below it.
fn tree(root: u32, stats: &HashMap<u32, Stat>) -> impl Iterator<Item = u32> {
    stats.keys().copied().filter(move |&pid| {
        let mut ancestors = std::iter::successors(Some(pid), |pid| stats.get(pid).map(|stat| stat.parent));
        // No family is that deep: bounded, as the table was not read in one moment.
        ancestors.by_ref().take(64).any(|ancestor| ancestor == root)
    })
}

fn all_stats() -> anyhow::Result<HashMap<u32, Stat>> {
    let names = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(names.filter_map(|pid| Some((pid, read_stat(pid)?))).collect())
}

fn read_stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// proc(5): state is field 3, parent 4, then utime, stime, cutime and cstime from field 14.
fn parse_stat(text: &str) -> Option<Stat> {
    // The name before it is in brackets and may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        parent: number(4)?.try_into().ok()?,
        own_ticks: number(14)? + number(15)?,
        ended_children_ticks: number(16)? + number(17)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_times_behind_a_strange_name() {
        let text = "41 (a) b) S 7 41 41 0 -1 4194304 100 0 0 0 250 50 30 20 20 0 4 0 100 0";
        assert_eq!(parse_stat(text), Some(Stat { parent: 7, own_ticks: 300, ended_children_ticks: 50 }));
    }

    #[test]
    fn idle_and_waiting_processors_are_not_busy() {
        assert_eq!(busy_ticks("cpu  100 10 50 9000 700 1 2 3 0 0\ncpu0 1"), Some(166));
    }

    #[test]
    fn a_tree_has_the_descendants_and_no_others() {
        let stat = |parent| Stat { parent, own_ticks: 0, ended_children_ticks: 0 };
        let stats = HashMap::from([(1, stat(0)), (2, stat(1)), (3, stat(2)), (4, stat(1))]);
        let mut found: Vec<u32> = tree(2, &stats).collect();
        found.sort_unstable();
        assert_eq!(found, [2, 3]);
    }

    #[test]
    fn this_process_has_memory() {
        assert!(peak_memory(std::process::id()).expect("it runs") > 0);
    }
}
