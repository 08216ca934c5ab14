//! Which keys sign a delivery: the job's own, or else its destination's, or else `WEBHOOK_SIGNING_SECRET`.

use std::borrow::Cow;

use outbox::destination::Destination;
use outbox::job::claim::Claimed;
use outbox::signing::key::SigningKey;
use outbox::signing::sealed::{OpenError, Owner, SecretsConfig};
use tracing::warn;
use url::Url;

use crate::signature::SigningKeys;

/// A key is there and cannot be used. The delivery must not go out without it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not sent: the {owner}'s signing key cannot be opened: {reason}")]
pub(crate) struct KeyError {
    owner: &'static str,
    reason: OpenError,
}

pub(crate) struct Keyring {
    secrets: SecretsConfig,
    /// For jobs that have no key of their own, to destinations that have none.
    default: Option<SigningKeys>,
}

impl Keyring {
    pub(crate) const fn new(secrets: SecretsConfig, default: Option<SigningKeys>) -> Self {
        Self { secrets, default }
    }

    /// The keys that sign this delivery; `None` when it goes out unsigned, because none is configured anywhere.
    pub(crate) fn keys_for(&self, job: &Claimed, url: &Url) -> Result<Option<Cow<'_, SigningKeys>>, KeyError> {
        if let Some(sealed) = &job.sealed_key {
            return self.open("job", Owner::Job(job.job_id), std::slice::from_ref(sealed)).map(Some);
        }
        match job.destination_keys.as_deref() {
            None | Some([]) => Ok(self.default.as_ref().map(Cow::Borrowed)),
            Some(sealed) => {
                self.open("destination", Owner::Destination(Destination::of(url).as_str()), sealed).map(Some)
            }
        }
    }

    /// All of them or none: with one missing, the receiver that verifies with just that one would refuse.
    fn open(&self, kind: &'static str, owner: Owner, sealed: &[Vec<u8>]) -> Result<Cow<'_, SigningKeys>, KeyError> {
        let keys: Result<Vec<SigningKey>, OpenError> =
            sealed.iter().map(|sealed| SigningKey::open(&self.secrets, owner, sealed)).collect();
        match keys {
            Ok(keys) => Ok(Cow::Owned(SigningKeys::new(&distinct(keys)))),
            Err(reason) => {
                warn!(owner = kind, %reason, "a signing key cannot be opened: nothing is sent");
                metrics::counter!("outhook_worker_unopened_keys_total", "owner" => kind).increment(1);
                Err(KeyError { owner: kind, reason })
            }
        }
    }
}

/// Each key once: one that was set again after another is there twice, and signs once.
fn distinct(keys: Vec<SigningKey>) -> Vec<SigningKey> {
    let mut distinct: Vec<SigningKey> = Vec::with_capacity(keys.len());
    for key in keys {
        if !distinct.iter().any(|other| other.is_same_as(&key)) {
            distinct.push(key);
        }
    }
    distinct
}

#[cfg(test)]
mod tests {
    use outbox::service::clock;
    use outbox::signing::sealed::SecretsKey;
    use secrecy::SecretString;
    use uuid::Uuid;

    use super::*;

    const KEYS: [&str; 3] = [
        "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "whsec_cmVwbGFjZS1tZS13aXRoLTMyLXJhbmRvbS1ieXRlcyE=",
    ];
    const DESTINATION: Owner = Owner::Destination("http://example.com");
    const JOB: Owner = Owner::Job(Uuid::from_u128(0xabc));

    fn secrets() -> SecretsKey {
        SecretsKey::parse("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").expect("it has 32 bytes")
    }

    fn sealed(key: usize, owner: Owner) -> Vec<u8> {
        SigningKey::parse_standard(KEYS[key]).expect("it is a key").seal(&secrets(), owner)
    }

    fn job(sealed_key: Option<Vec<u8>>, destination_keys: Option<Vec<Vec<u8>>>) -> Claimed {
        Claimed {
            job_id: Uuid::from_u128(0xabc),
            attempt: 1,
            retry_count: 0,
            max_attempts: None,
            timeout_ms: None,
            ordered: false,
            client_url: "http://example.com:80/hook".to_owned(),
            payload: String::new(),
            headers: serde_json::json!({}),
            unreadable: None,
            sealed_key,
            destination_keys,
            started_at: clock::now(),
            created_at: clock::now(),
        }
    }

    fn signature(keyring: &Keyring, job: &Claimed) -> Result<Option<String>, KeyError> {
        let url = Url::parse(&job.client_url).expect("it is one");
        Ok(keyring.keys_for(job, &url)?.and_then(|keys| keys.sign("a", 1, b"x").standard))
    }

    #[test]
    fn the_jobs_own_key_comes_before_the_destinations_and_that_before_the_default() {
        let of = |key: usize| SigningKeys::parse(KEYS[key]).expect("it is a key").sign("a", 1, b"x").standard;
        let keyring = Keyring::new(SecretsConfig::from_key(secrets()), SigningKeys::parse(KEYS[0]).ok());
        assert_eq!(signature(&keyring, &job(None, None)), Ok(of(0)));
        assert_eq!(signature(&keyring, &job(None, Some(vec![]))), Ok(of(0)));
        let destination = Some(vec![sealed(1, DESTINATION)]);
        assert_eq!(signature(&keyring, &job(None, destination.clone())), Ok(of(1)));
        assert_eq!(signature(&keyring, &job(Some(sealed(2, JOB)), destination)), Ok(of(2)));
    }

    #[test]
    fn a_key_that_cannot_be_opened_is_an_error_and_never_another_key() {
        let default = || SigningKeys::parse(KEYS[0]).ok();
        let keyring = Keyring::new(SecretsConfig::from_key(secrets()), default());
        let without = Keyring::new(SecretsConfig::default(), default());
        let own = job(Some(sealed(2, JOB)), None);
        assert_eq!(
            signature(&without, &own).expect_err("there is no SECRETS_KEY").to_string(),
            "not sent: the job's signing key cannot be opened: SECRETS_KEY is not set"
        );
        for (case, job) in [
            ("a destination's key in a job", job(Some(sealed(1, DESTINATION)), None)),
            ("a job's key at a destination", job(None, Some(vec![sealed(2, JOB)]))),
            ("one good key and one bad", job(None, Some(vec![sealed(1, DESTINATION), vec![0; 40]]))),
            ("what is no key", job(Some(secrets().seal(JOB, &SecretString::from("v1:hunter2"))), None)),
        ] {
            let error = signature(&keyring, &job).expect_err(case).to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
