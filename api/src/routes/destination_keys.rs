//! `/destinations/keys`: the keys that deliveries to a destination are signed with, for whoever has the token. No
//! answer ever holds a key, but for the public one of a pair.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{RawQuery, State};
use outbox::destination::Destination;
use outbox::signing::key::{Scheme, SigningKey};
use outbox::signing::sealed::Owner;
use outbox::signing::store::{self, NewKey, StoredKey};
use secrecy::{ExposeSecret, SecretString};
use tracing::{info, warn};
use url::form_urlencoded;
use uuid::Uuid;

use crate::app::App;
use crate::error::ApiError;
use crate::extract::{Authorized, JsonBody, PathId};
use crate::json;
use crate::model::{NewSigningKey, SigningKeyDetails, SigningKeyList, SigningKeyReceipt, SigningKeyRemoval, Timestamp};

/// For how long earlier keys sign on, in seconds, unless it is said; and at the most, which are 366 days.
const DEFAULT_OVERLAP_SEC: i64 = 24 * 60 * 60;
const MAX_OVERLAP_SEC: i64 = 366 * DEFAULT_OVERLAP_SEC;

/// Sets a key. The earlier ones of its scheme sign beside it until the overlap is over.
pub(crate) async fn set(
    State(app): State<Arc<App>>,
    _: Authorized,
    body: JsonBody,
) -> Result<Json<SigningKeyReceipt>, ApiError> {
    let written: NewSigningKey = body.parse()?;
    let client_url = written.client_url.map(|value| json::string("client_url", value)).transpose()?;
    let named = written.destination.map(|value| json::string("destination", value)).transpose()?;
    let destination = destination_in(&app, client_url.as_deref(), named.as_deref())?;
    let key = key_in(&written)?;
    let overlap = overlap_in(&written)?;
    let (scheme, public_key) = (key.scheme().as_str(), key.public_key());
    let key_id = known_or_stored(&app, &destination, &key, overlap).await?;
    Ok(Json(SigningKeyReceipt { destination, key_id, public_key, scheme }))
}

fn key_in(written: &NewSigningKey) -> Result<SigningKey, ApiError> {
    let scheme = Scheme::from_text(&json::string("scheme", written.scheme)?)
        .ok_or_else(|| invalid("scheme: it must be v1, v1a or github"))?;
    let secret = SecretString::from(json::string("secret", written.secret)?);
    SigningKey::parse(scheme, secret.expose_secret()).map_err(|error| invalid(format!("secret: {error}")))
}

fn overlap_in(written: &NewSigningKey) -> Result<Duration, ApiError> {
    let overlap_sec = written.overlap_sec.map(|value| json::integer("overlap_sec", value, 0..=MAX_OVERLAP_SEC));
    Ok(Duration::from_secs(overlap_sec.transpose()?.unwrap_or(DEFAULT_OVERLAP_SEC).cast_unsigned()))
}

async fn known_or_stored(
    app: &App,
    destination: &Destination,
    key: &SigningKey,
    overlap: Duration,
) -> Result<Uuid, ApiError> {
    let config = app.config();
    let secrets = config.secrets.key().ok_or(ApiError::NoSecretsKey)?;
    if let Some(id) = known(app, destination, key).await? {
        return Ok(id);
    }
    let sealed = key.seal(secrets, Owner::Destination(destination.as_str()));
    let (id, destination, scheme) = (Uuid::now_v7(), destination.clone(), key.scheme());
    store(app, NewKey { id, destination, scheme, sealed, overlap }).await
}

/// The key's id if it is the newest of its scheme already: a caller whose answer was lost asks again, and must not
/// start a rotation from the key to itself.
async fn known(app: &App, destination: &Destination, key: &SigningKey) -> Result<Option<Uuid>, ApiError> {
    let stored = store::list(&app.postgres()?.pool, destination).await.map_err(|error| unanswered(&error))?;
    let open = |stored: &StoredKey| {
        SigningKey::open(&app.config().secrets, Owner::Destination(destination.as_str()), &stored.sealed).ok()
    };
    let newest = stored.iter().find(|it| it.scheme == key.scheme().as_str() && it.expires_at.is_none());
    Ok(newest.filter(|it| open(it).is_some_and(|opened| opened.is_same_as(key))).map(|it| it.id))
}

async fn store(app: &App, key: NewKey) -> Result<Uuid, ApiError> {
    match store::set(&app.postgres()?.changes, &key).await {
        Ok(true) => {
            note("set", key.id, key.scheme.as_str());
            Ok(key.id)
        }
        Ok(false) => Err(ApiError::TooManyKeys),
        Err(error) => Err(unanswered(&error)),
    }
}

/// Lists the keys of `?destination=…` or of `?client_url=…`, the newest first.
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    _: Authorized,
    RawQuery(query): RawQuery,
) -> Result<Json<SigningKeyList>, ApiError> {
    let (mut client_url, mut named) = (None, None);
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        match name.as_ref() {
            "client_url" => client_url = Some(value.into_owned()),
            "destination" => named = Some(value.into_owned()),
            _ => return Err(invalid("the query must be ?destination=… or ?client_url=…")),
        }
    }
    let destination = destination_in(&app, client_url.as_deref(), named.as_deref())?;
    let keys = store::list(&app.postgres()?.pool, &destination).await.map_err(|error| unanswered(&error))?;
    let keys = keys.into_iter().map(|key| shown(&app, &destination, key)).collect();
    Ok(Json(SigningKeyList { destination, keys }))
}

/// Removes a key at once.
pub(crate) async fn remove(
    State(app): State<Arc<App>>,
    _: Authorized,
    PathId(id): PathId,
) -> Result<Json<SigningKeyRemoval>, ApiError> {
    let removed = store::remove(&app.postgres()?.changes, id).await.map_err(|error| unanswered(&error))?;
    let scheme = removed.ok_or(ApiError::NotFound)?;
    note("removed", id, &scheme);
    Ok(Json(SigningKeyRemoval { key_id: id, message: "key is removed and signs nothing more" }))
}

/// The destination of whichever of the two is there; a URL that may not be delivered to has none.
fn destination_in(app: &App, client_url: Option<&str>, named: Option<&str>) -> Result<Destination, ApiError> {
    let (field, url) = match (client_url, named) {
        (Some(url), None) => ("client_url", url),
        (None, Some(url)) => ("destination", url),
        _ => return Err(invalid("one of client_url and destination must be there, and not both")),
    };
    let checked = app.config().targets.check_url(url).map_err(|error| invalid(format!("{field}: {error}")))?;
    Ok(Destination::of(&checked))
}

/// A key as it may be seen. One that the worker could not open either says why.
fn shown(app: &App, destination: &Destination, key: StoredKey) -> SigningKeyDetails {
    let opened = SigningKey::open(&app.config().secrets, Owner::Destination(destination.as_str()), &key.sealed);
    SigningKeyDetails {
        created_at: key.created_at.into(),
        expires_at: key.expires_at.map(Timestamp::from),
        key_id: key.id,
        public_key: opened.as_ref().ok().and_then(SigningKey::public_key),
        error: opened.err().map(|error| format!("the key cannot be opened: {error}")),
        scheme: key.scheme,
    }
}

/// The trace of a change, without the destination, which is part of somebody's URL.
fn note(change: &'static str, key_id: Uuid, scheme: &str) {
    info!(%key_id, scheme, change, "signing key of a destination");
    metrics::counter!("outhook_api_signing_keys_total", "change" => change).increment(1);
}

fn invalid(what: impl Into<String>) -> ApiError {
    ApiError::InvalidField(what.into())
}

fn unanswered(error: &sqlx::Error) -> ApiError {
    warn!(%error, "signing keys cannot be read or written");
    ApiError::Unanswered
}
