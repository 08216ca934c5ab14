//! The open connections, what the strangers among them hold, and who makes way when that is too much.
//!
//! Whoever connects or sends a body costs something before a secret has been shown. Both are bounded, and nobody is
//! kept out by whoever came first and stands still: that one goes. A request that is verified stays until its
//! answer is out.

mod body_buffer;
mod connection;
mod partial_body;
mod receiving;
mod registry;
mod table;

#[cfg(test)]
mod tests;

pub(crate) use connection::Connection;
pub(crate) use partial_body::MadeWay;
pub(crate) use receiving::Receiving;
pub(crate) use registry::{Connections, Limits};
