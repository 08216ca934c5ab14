//! Secrets at rest: sealed with a key that is not in the database.
//!
//! A sealed secret is a version (one byte), which key sealed it (one byte), a random nonce (12 bytes), and the
//! ciphertext with its tag (ChaCha20-Poly1305). What it belongs to is authenticated with it: in the row of
//! another destination or job it cannot be opened.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

/// The form of what is sealed here. Another form would get another number.
const VERSION: u8 = 1;

/// Version and key id.
const HEAD_LEN: usize = 2;

/// The key that secrets are sealed with.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Secrets")]
pub struct SecretsConfig {
    /// Key that signing keys are sealed with in the database: the base64 of 32 random bytes, as `openssl rand
    /// -base64 32` makes it. Several, separated by commas, during a rotation: the first seals, all of them open.
    /// Unset, no key of a destination or a job can be stored or used.
    #[arg(long, env, hide_env_values = true, value_parser = SecretsKey::parse)]
    secrets_key: Option<SecretsKey>,
}

impl SecretsConfig {
    /// What a process with this key would be configured with.
    #[must_use]
    pub const fn from_key(key: SecretsKey) -> Self {
        Self { secrets_key: Some(key) }
    }

    /// The key, if there is one.
    #[must_use]
    pub const fn key(&self) -> Option<&SecretsKey> {
        self.secrets_key.as_ref()
    }

    /// Opens what was sealed for `owner`.
    ///
    /// # Errors
    /// There is no key, it is another one, or the secret is damaged or belongs to somebody else.
    pub fn open(&self, owner: Owner, sealed: &[u8]) -> Result<SecretString, OpenError> {
        self.key().ok_or(OpenError::NoSecretsKey)?.open(owner, sealed)
    }
}

/// Keys that seal (the first) and open (all of them).
#[derive(Clone)]
pub struct SecretsKey(Arc<Vec<(u8, LessSafeKey)>>);

impl std::fmt::Debug for SecretsKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} secrets keys", self.0.len())
    }
}

/// What a secret belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner<'a> {
    /// A destination, as [`crate::destination::Destination`] writes it.
    Destination(&'a str),
    /// A job.
    Job(Uuid),
}

impl Owner<'_> {
    fn associated_data(self) -> Aad<Vec<u8>> {
        Aad::from(match self {
            Self::Destination(destination) => [b"destination:", destination.as_bytes()].concat(),
            Self::Job(id) => [&b"job:"[..], id.as_bytes()].concat(),
        })
    }
}

/// Why a sealed secret cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// This process has no key.
    #[error("SECRETS_KEY is not set")]
    NoSecretsKey,
    /// None of this process's keys sealed it.
    #[error("it was sealed with another SECRETS_KEY")]
    AnotherSecretsKey,
    /// Its tag does not fit.
    #[error("it is damaged, was sealed for something else or with another SECRETS_KEY")]
    NotAuthentic,
    /// Too short, of a version to come, or not text.
    #[error("its form is not known to this build")]
    UnknownForm,
}

impl SecretsKey {
    /// Reads keys separated by commas, each the base64 of 32 bytes.
    ///
    /// # Errors
    /// One of them is not that. The sentence does not repeat it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let keys: Result<_, String> = text.split(',').map(|key| parse_key(key.trim())).collect();
        keys.map(Arc::new).map(Self)
    }

    /// Seals a secret for `owner`.
    #[must_use]
    pub fn seal(&self, owner: Owner, secret: &SecretString) -> Vec<u8> {
        let (id, key) = self.0.first().expect("splitting a text gives one part at least");
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).expect("the system has random bytes");
        let mut sealed = secret.expose_secret().as_bytes().to_vec();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), owner.associated_data(), &mut sealed)
            .expect("a secret is far shorter than the cipher's limit");
        [&[VERSION, *id], &nonce[..], &sealed].concat()
    }

    /// Opens what was sealed for `owner`.
    ///
    /// # Errors
    /// It was sealed with another key, for somebody else, or is damaged.
    pub fn open(&self, owner: Owner, sealed: &[u8]) -> Result<SecretString, OpenError> {
        let (head, rest) = sealed.split_at_checked(HEAD_LEN).ok_or(OpenError::UnknownForm)?;
        let (nonce, ciphertext) = rest.split_first_chunk::<NONCE_LEN>().ok_or(OpenError::UnknownForm)?;
        if head[0] != VERSION {
            return Err(OpenError::UnknownForm);
        }
        let mut error = OpenError::AnotherSecretsKey;
        // An id is one byte, so that two keys may share it: the tag decides.
        for (_, key) in self.0.iter().filter(|(id, _)| *id == head[1]) {
            let mut opened = ciphertext.to_vec();
            let nonce = Nonce::assume_unique_for_key(*nonce);
            if let Ok(text) = key.open_in_place(nonce, owner.associated_data(), &mut opened) {
                let text = std::str::from_utf8(text).map_err(|_| OpenError::UnknownForm)?;
                return Ok(SecretString::from(text));
            }
            error = OpenError::NotAuthentic;
        }
        Err(error)
    }
}

/// A key and its id: the first byte of its SHA-256.
fn parse_key(text: &str) -> Result<(u8, LessSafeKey), String> {
    let not_a_key = || "each key must be the base64 of 32 bytes".to_owned();
    let bytes = STANDARD.decode(text).map_err(|_| not_a_key())?;
    let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes).map_err(|_| not_a_key())?;
    Ok((digest(&SHA256, &bytes).as_ref()[0], LessSafeKey::new(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner::Destination("https://example.com");

    fn text_of(byte: u8) -> String {
        STANDARD.encode([byte; 32])
    }

    fn key(text: &str) -> SecretsKey {
        SecretsKey::parse(text).expect("it is a key")
    }

    fn open(keys: &SecretsKey, owner: Owner, sealed: &[u8]) -> Result<String, OpenError> {
        keys.open(owner, sealed).map(|secret| secret.expose_secret().to_owned())
    }

    #[test]
    fn opens_what_it_sealed_and_never_seals_alike() {
        let (keys, secret) = (key(&text_of(1)), SecretString::from("hunter2"));
        let (first, second) = (keys.seal(OWNER, &secret), keys.seal(OWNER, &secret));
        assert_eq!(open(&keys, OWNER, &first), Ok("hunter2".to_owned()));
        assert_ne!(first, second);
        assert!(!first.windows(7).any(|bytes| bytes == b"hunter2"));
    }

    #[test]
    fn a_secret_cannot_be_moved_or_changed() {
        let keys = key(&text_of(1));
        let sealed = keys.seal(OWNER, &SecretString::from("hunter2"));
        for owner in [Owner::Destination("https://example.org"), Owner::Job(Uuid::nil())] {
            assert_eq!(open(&keys, owner, &sealed), Err(OpenError::NotAuthentic), "{owner:?}");
        }
        for place in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[place] ^= 1;
            assert!(open(&keys, OWNER, &changed).is_err(), "byte {place}");
            assert!(open(&keys, OWNER, &sealed[..place]).is_err(), "the first {place} bytes");
        }
    }

    #[test]
    fn the_first_key_seals_and_all_of_them_open() {
        let (old, new) = (text_of(1), text_of(2));
        let both = key(&format!("{new}, {old}"));
        let secret = SecretString::from("hunter2");
        assert!(open(&both, OWNER, &key(&old).seal(OWNER, &secret)).is_ok());
        let sealed = both.seal(OWNER, &secret);
        assert!(open(&key(&new), OWNER, &sealed).is_ok());
        assert_eq!(open(&key(&old), OWNER, &sealed), Err(OpenError::AnotherSecretsKey));
    }

    #[test]
    fn refuses_what_is_no_key_without_repeating_it() {
        for wrong in ["", "hunter2", &STANDARD.encode([1; 31]), &format!("{},", text_of(1))] {
            let error = SecretsKey::parse(wrong).expect_err(wrong);
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!(!format!("{:?}", key(&text_of(1))).contains(&text_of(1)));
    }
}
