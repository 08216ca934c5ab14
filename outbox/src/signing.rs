//! Keys that deliveries are signed with: what they are, how they are kept secret, and where.

pub mod key;
pub mod sealed;
pub mod store;
