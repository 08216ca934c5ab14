//! What goes in and out: each body is a type. The fields of an answer stand in the order in which they are written.

mod error;
mod job;
mod new_signing_key;
mod new_webhook;
mod probe;
mod receipt;
mod signing_key;
mod timestamp;

pub(crate) use error::{ErrorBody, ErrorDetails};
pub(crate) use job::Job;
pub(crate) use new_signing_key::NewSigningKey;
pub(crate) use new_webhook::NewWebhook;
pub(crate) use probe::{Health, ProbeStatus, Readiness};
pub(crate) use receipt::Receipt;
pub(crate) use signing_key::{SigningKeyDetails, SigningKeyList, SigningKeyReceipt, SigningKeyRemoval};
pub(crate) use timestamp::Timestamp;
