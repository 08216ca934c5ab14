//! A claimed job as the statements return it: one whose columns cannot be read must not take the others of its batch with
//! it.

use serde_json::Value;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueRef};
use sqlx::{Decode, Postgres, Type};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Claimed;

/// What a caller has written into a column; `None` if it cannot be read.
pub(super) struct Readable<T>(Option<T>);

impl<T: Type<Postgres>> Type<Postgres> for Readable<T> {
    fn type_info() -> PgTypeInfo {
        T::type_info()
    }

    fn compatible(other: &PgTypeInfo) -> bool {
        T::compatible(other)
    }
}

impl<'row, T: Decode<'row, Postgres>> Decode<'row, Postgres> for Readable<T> {
    fn decode(value: PgValueRef<'row>) -> Result<Self, BoxDynError> {
        Ok(Self(T::decode(value).ok()))
    }
}

/// The columns of [`Claimed`].
pub(super) struct Row {
    pub job_id: Uuid,
    pub attempt: i32,
    pub retry_count: i32,
    pub max_attempts: Option<i32>,
    pub timeout_ms: Option<i32>,
    pub ordered: bool,
    pub client_url: Readable<String>,
    pub payload: Readable<String>,
    pub headers: Readable<Value>,
    pub started_at: OffsetDateTime,
    pub created_at: OffsetDateTime,
    pub sealed_key: Option<Vec<u8>>,
    pub destination_keys: Option<Vec<Vec<u8>>>,
}

impl From<Row> for Claimed {
    fn from(row: Row) -> Self {
        let unreadable = [
            ("client_url", row.client_url.0.is_none()),
            ("payload", row.payload.0.is_none()),
            ("headers", row.headers.0.is_none()),
        ];
        Self {
            job_id: row.job_id,
            attempt: row.attempt,
            retry_count: row.retry_count,
            max_attempts: row.max_attempts,
            timeout_ms: row.timeout_ms,
            ordered: row.ordered,
            client_url: row.client_url.0.unwrap_or_default(),
            payload: row.payload.0.unwrap_or_default(),
            headers: row.headers.0.unwrap_or_default(),
            unreadable: unreadable.into_iter().find_map(|(column, is_unreadable)| is_unreadable.then_some(column)),
            started_at: row.started_at,
            created_at: row.created_at,
            sealed_key: row.sealed_key,
            destination_keys: row.destination_keys,
        }
    }
}
