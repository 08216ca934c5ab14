//! Jobs: what becomes of a webhook, from its acceptance to its end.
//!
//! [`states`] says which transitions there are, and is pure. Each of the others writes one of them, in one statement that
//! is guarded by the state before.

pub mod accept;
pub mod cancel;
pub mod claim;
pub mod keys;
pub mod settle;
pub mod states;
pub mod unclaimed;
