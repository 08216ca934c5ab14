//! The handlers, one file each.

pub(crate) mod accept;
pub(crate) mod cancel;
pub(crate) mod destination_keys;
pub(crate) mod probes;
pub(crate) mod show;
