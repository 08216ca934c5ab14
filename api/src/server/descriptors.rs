//! File descriptors: each connection is one, and so is each to Postgres, without which none is of use.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// For all that is no connection of a caller's.
const RESERVED: u32 = 128;

/// File descriptors ran out, for this process or for all (errno(3) of Linux).
const OUT_OF_DESCRIPTORS: [i32; 2] = [24, 23];

/// So many connections as are wished for, or as many as the process may have besides what it needs itself. Asks for
/// more descriptors than it started with if it has to.
pub(crate) fn affordable_connections(wished: u32) -> u32 {
    let needed = u64::from(wished) + u64::from(RESERVED);
    let limit = getrlimit(Resource::Nofile);
    let allowed = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    if allowed(limit.current) < needed {
        let current = Some(needed.min(allowed(limit.maximum)));
        // Should it be refused, fewer will do.
        let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum: limit.maximum });
    }
    let files = u32::try_from(allowed(getrlimit(Resource::Nofile).current)).unwrap_or(u32::MAX);
    let affordable = wished.min(files.saturating_sub(RESERVED).max(1));
    if affordable < wished {
        warn!(files, connections = affordable, "too few open files are allowed for MAX_CONNECTIONS: see ulimit -n");
    }
    affordable
}

pub(crate) fn ran_out(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| OUT_OF_DESCRIPTORS.contains(&code))
}
