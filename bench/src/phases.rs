//! What is measured of Outhook, a file for each part.

mod conservation;
pub(crate) mod drain;
pub(crate) mod end_to_end;
pub(crate) mod growth;
pub(crate) mod idle;
pub(crate) mod ingest;
pub(crate) mod latency;
pub(crate) mod long_transaction;
pub(crate) mod sick;
pub(crate) mod statements;

use std::time::Duration;

use crate::options::{Options, Scale};
use crate::progress::Progress;
use crate::stack::Site;

/// All that a phase needs.
pub(crate) struct Bench<'a> {
    pub site: Site<'a>,
    pub options: &'a Options,
    pub scale: Scale,
    pub progress: Progress,
}

/// Connections of the headline figures.
const CONNECTIONS: usize = 64;

/// The longest that a phase waits for its last delivery.
const DELIVERY_TIMEOUT: Duration = Duration::from_mins(15);

impl Bench<'_> {
    /// Relays and workers that run.
    fn deliveries(&self) -> (usize, usize) {
        let count = |number: u64| usize::try_from(number).expect("at most 16");
        (count(self.options.relays), count(self.options.workers))
    }
}
