//! What a handler asks of a request: its signature says it, in the order in which it is looked at.

mod authorized;
mod json_body;
mod path_id;
mod signed_request;

pub(crate) use authorized::Authorized;
pub(crate) use json_body::JsonBody;
pub(crate) use path_id::PathId;
pub(crate) use signed_request::SignedRequest;
