//! What each command does, from its arguments to its end. All else of it is in a library.

pub(crate) mod api;
pub(crate) mod check;
pub(crate) mod health;
pub(crate) mod migrate;
pub(crate) mod receiver;
pub(crate) mod relay;
pub(crate) mod worker;
