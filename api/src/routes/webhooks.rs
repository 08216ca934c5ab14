//! `/webhooks`: webhooks come in, and their jobs are looked at and cancelled.

mod accept;
mod cancel;
mod checked_webhook;
mod idempotency;
mod show;
mod trace_context;

pub(crate) use accept::accept;
pub(crate) use cancel::cancel;
pub(crate) use show::show;
