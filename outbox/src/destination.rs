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

use std::borrow::Borrow;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use url::Url;

/// Between two releases of a metered destination: short, so that others do not queue behind a crowd.
pub const TICK: Duration = Duration::from_millis(250);

/// What shares a circuit breaker, a limit and slots: the origin of a URL, as `scheme://host:port` without a default port.
///
/// [`Destination::of`] makes one; all others were read where one was written. The default is that of a task that does not say
/// where it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(from = "String")]
pub struct Destination(Arc<str>);

impl Destination {
    /// That of a URL. `outhook.destination` is the same for SQL.
    #[must_use]
    pub fn of(url: &Url) -> Self {
        Self(url.origin().ascii_serialization().into())
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is that of a task that does not say where it goes.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Destination {
    fn from(written: String) -> Self {
        Self(written.into())
    }
}

impl Borrow<str> for Destination {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Serialize for Destination {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}
