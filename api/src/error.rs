//! Every error that a caller sees, its status, code and text.
//!
//! The text never holds what the database said, a host name, an address or a secret.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use outbox::signing::store::MAX_KEYS;

use crate::connections::MadeWay;
use crate::head_limits::{MAX_HEAD_BYTES, MAX_HEADERS};
use crate::model::{ErrorBody, ErrorDetails};

/// What is wrong with a request, or with us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ApiError {
    /// The body is not the JSON it says it is.
    MalformedJson(String),
    /// The request is not HTTP/1.1 as it must be.
    MalformedRequest,
    /// A header that the request depends on is malformed.
    MalformedHeader(&'static str),
    /// The body did not arrive whole.
    BodyBroken,
    /// No signature, a wrong one, no token, a wrong one: not told apart, so that nothing is learned.
    Unauthorized,
    /// Unknown path, or no such job.
    NotFound,
    /// The path is known, the method is not.
    MethodNotAllowed,
    /// The body did not arrive in time.
    BodyTimeout,
    /// The idempotency key was used with another body.
    IdempotencyConflict,
    /// The job is being delivered, or has ended otherwise.
    TooLateToCancel,
    /// The destination has as many signing keys as it may.
    TooManyKeys,
    /// The body is longer than this many bytes.
    BodyTooLarge(u32),
    /// The path with its query is too long.
    UriTooLong,
    /// The head is too long, or has too many headers.
    HeadTooLarge,
    /// Not JSON, or compressed.
    UnsupportedMediaType(&'static str),
    /// The JSON is well-formed, what it says is not.
    InvalidField(String),
    /// A secret cannot be stored: there is nothing to seal it with.
    NoSecretsKey,
    /// Too many wait already.
    Overloaded,
    /// It stood still, without having shown a secret, and others needed the room.
    MadeWay,
    /// Postgres is away or full. Whether the job was stored is not known.
    Unavailable,
    /// Postgres is away or busy with the job, and the request may be repeated whatever came of it.
    Unanswered,
}

impl ApiError {
    pub(crate) const fn status(&self) -> StatusCode {
        self.status_and_code().0
    }

    const fn status_and_code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::MalformedJson(_) => (StatusCode::BAD_REQUEST, "malformed_json"),
            Self::MalformedRequest => (StatusCode::BAD_REQUEST, "malformed_request"),
            Self::MalformedHeader(_) => (StatusCode::BAD_REQUEST, "malformed_header"),
            Self::BodyBroken => (StatusCode::BAD_REQUEST, "malformed_body"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
            Self::IdempotencyConflict => (StatusCode::CONFLICT, "idempotency_conflict"),
            Self::TooLateToCancel => (StatusCode::CONFLICT, "too_late"),
            Self::TooManyKeys => (StatusCode::CONFLICT, "too_many_keys"),
            Self::BodyTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::UriTooLong => (StatusCode::URI_TOO_LONG, "uri_too_long"),
            Self::HeadTooLarge => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large"),
            Self::UnsupportedMediaType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Self::InvalidField(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_field"),
            Self::NoSecretsKey => (StatusCode::NOT_IMPLEMENTED, "secrets_key_missing"),
            Self::Overloaded | Self::MadeWay => (StatusCode::SERVICE_UNAVAILABLE, "overloaded"),
            Self::Unavailable | Self::Unanswered => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        }
    }

    fn message(&self) -> String {
        match self {
            Self::MalformedJson(what) => format!("the body is not well-formed JSON: {what}"),
            Self::MalformedRequest => "the request is not well-formed HTTP/1.1".to_owned(),
            Self::BodyBroken => "the body did not arrive whole".to_owned(),
            Self::Unauthorized => "the signature or token is missing or wrong".to_owned(),
            Self::NotFound => "there is nothing here".to_owned(),
            Self::MethodNotAllowed => "this path does not have that method".to_owned(),
            Self::BodyTimeout => "the body did not arrive in time".to_owned(),
            Self::IdempotencyConflict => "this Idempotency-Key was used with another body".to_owned(),
            Self::TooLateToCancel => {
                "the job is being delivered or has ended: only a pending one can be cancelled".to_owned()
            }
            Self::TooManyKeys => {
                format!("a destination has at most {MAX_KEYS} signing keys that have not expired: remove one first")
            }
            Self::BodyTooLarge(limit) => format!("the body is longer than {limit} bytes"),
            Self::UriTooLong => "the path with its query is too long".to_owned(),
            Self::HeadTooLarge => {
                format!("the request's head may have {MAX_HEADERS} headers and {MAX_HEAD_BYTES} bytes")
            }
            Self::MalformedHeader(what) | Self::UnsupportedMediaType(what) => (*what).to_owned(),
            Self::InvalidField(what) => what.clone(),
            Self::NoSecretsKey => "this service stores no secrets: its SECRETS_KEY is not set".to_owned(),
            Self::Overloaded | Self::MadeWay => "too many requests wait already; try again".to_owned(),
            Self::Unavailable => {
                "the job may or may not be stored; send it again with the same Idempotency-Key".to_owned()
            }
            Self::Unanswered => "the database does not answer; try again".to_owned(),
        }
    }
}

impl From<MadeWay> for ApiError {
    fn from(_: MadeWay) -> Self {
        Self::MadeWay
    }
}

/// An error on its way out: whoever knows the request's id writes the body.
#[derive(Clone, Debug)]
pub(crate) struct Explanation {
    code: &'static str,
    message: String,
    /// Whether it is worth a line in the log: not what is counted and warned of for many at once.
    pub notable: bool,
}

impl From<&ApiError> for Explanation {
    fn from(error: &ApiError) -> Self {
        let (status, code) = error.status_and_code();
        let notable = status.is_server_error() && *error != ApiError::MadeWay;
        Self { code, message: error.message(), notable }
    }
}

impl Explanation {
    pub(crate) fn to_json(&self, request_id: &str) -> String {
        let body = ErrorBody { error: ErrorDetails { code: self.code, message: &self.message, request_id } };
        serde_json::to_string(&body).expect("texts have a JSON text")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, _) = self.status_and_code();
        let mut response = status.into_response();
        response.extensions_mut().insert(Explanation::from(&self));
        match status {
            StatusCode::SERVICE_UNAVAILABLE => {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            // Also where a signature would do: no 401 tells which of them it misses.
            StatusCode::UNAUTHORIZED => {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}
