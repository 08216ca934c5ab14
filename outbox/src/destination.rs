//! Destinations that are sick or limited: a circuit breaker in Postgres, which all relays and workers share.
//!
//! [`breaker`] decides, and is pure. [`store`] keeps what workers find out; the relay holds what becomes due for a sick
//! destination ([`hold`]), costing one update a row, and sets it free again as the breaker says ([`release`]). Requests to a
//! destination with a [`limit`] have slots; a [`pause`] is one URL's. A destination that is well has no row in `destinations`.
//!
//! All of this is advice, which decides when a job is attempted, never whether. A hold never outlasts its reason: what is
//! held for a destination that is well is found and set free, whoever was killed ([`hold::free_strays`]).

pub mod breaker;
pub mod hold;
pub mod limit;
pub mod pause;
pub mod release;
pub mod store;
pub mod upkeep;

use std::time::Duration;

/// Between two releases of a metered destination: short, so that others do not queue behind a crowd.
pub const TICK: Duration = Duration::from_millis(250);
