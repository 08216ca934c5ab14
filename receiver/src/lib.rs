//! A webhook endpoint for people and tests: it verifies, keeps and shows what it gets, and answers as the query string asks.
//!
//! The signature is verified by the `standardwebhooks` crate and not by Outhook's own code, so a mistake
//! in the signer cannot hide behind the same mistake in the verifier.

mod behaviour;
mod kept;
mod line;
mod received;
mod routes;
mod server;
mod shared;
mod verify;

pub use behaviour::{Answer, Behaviour};
pub use kept::{Counts, Limits, WaitTimedOut};
pub use line::line;
pub use received::{Received, Signature};
pub use server::{Options, Receiver, StartError};
pub use shared::Observer;
