//! What the receiver's connections share.

use standardwebhooks::Webhook;

use crate::kept::Kept;
use crate::{Answer, Received};

/// Called for each delivery when it has arrived, with the answer it is going to get.
pub type Observer = Box<dyn Fn(&Received, &Answer) + Send + Sync>;

pub(crate) struct Shared {
    pub(crate) kept: Kept,
    pub(crate) verifier: Option<Webhook>,
    pub(crate) observer: Option<Observer>,
}
