//! Keys that deliveries are signed with: which there are, how they are written, and how they are kept.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{Ed25519KeyPair, KeyPair};
use secrecy::{ExposeSecret, SecretString};

use crate::signing::sealed::{OpenError, Owner, SecretsConfig, SecretsKey};

/// Bytes of a symmetric key, as Standard Webhooks bounds them.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Bytes of a key in GitHub's scheme, which says nothing of it.
const GITHUB_BYTES: std::ops::RangeInclusive<usize> = 16..=255;

/// Bytes of an Ed25519 seed, which the public key may follow.
const SEED_BYTES: usize = 32;

/// How a key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// HMAC-SHA256 of Standard Webhooks; the key is `whsec_…`.
    V1,
    /// Ed25519 of Standard Webhooks; the key is `whsk_…`.
    V1a,
    /// `X-Hub-Signature-256` as GitHub sends it; the key is any text.
    Github,
}

impl Scheme {
    /// As it is in the database and in the HTTP API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V1a => "v1a",
            Self::Github => "github",
        }
    }

    /// The inverse of [`Self::as_str`].
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        [Self::V1, Self::V1a, Self::Github].into_iter().find(|scheme| scheme.as_str() == text)
    }
}

/// A key that was checked. `Debug` does not show it.
#[derive(Clone, Debug)]
pub struct SigningKey {
    scheme: Scheme,
    text: SecretString,
}

/// What a scheme computes with.
pub enum KeyMaterial {
    /// The bytes of an HMAC's key.
    Hmac(Vec<u8>),
    /// A private key with its public one.
    Ed25519(Ed25519KeyPair),
}

impl SigningKey {
    /// Reads a key as its owner writes it.
    ///
    /// # Errors
    /// It is not one of this scheme. The sentence does not repeat it.
    pub fn parse(scheme: Scheme, text: &str) -> Result<Self, &'static str> {
        material(scheme, text)?;
        let text = match scheme {
            // With its public key behind it or without, it is one key, which is kept and compared as its seed.
            Scheme::V1a => format!("whsk_{}", STANDARD.encode(&private_bytes(text)?[..SEED_BYTES])),
            Scheme::V1 | Scheme::Github => text.to_owned(),
        };
        Ok(Self { scheme, text: SecretString::from(text) })
    }

    /// Reads a key of Standard Webhooks, whose beginning says which scheme it is of.
    ///
    /// # Errors
    /// It is none. The sentence does not repeat it.
    pub fn parse_standard(text: &str) -> Result<Self, &'static str> {
        match text {
            _ if text.starts_with("whsec_") => Self::parse(Scheme::V1, text),
            _ if text.starts_with("whsk_") => Self::parse(Scheme::V1a, text),
            _ => Err("a key must start with whsec_ or whsk_"),
        }
    }

    /// How it signs.
    #[must_use]
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Whether both are the same key of the same scheme.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.scheme == other.scheme && self.text.expose_secret() == other.text.expose_secret()
    }

    /// What it computes with.
    #[must_use]
    pub fn material(&self) -> KeyMaterial {
        material(self.scheme, self.text.expose_secret()).expect("checked when it was read")
    }

    /// What receivers of an asymmetric key verify with, `whpk_…`.
    #[must_use]
    pub fn public_key(&self) -> Option<String> {
        match self.material() {
            KeyMaterial::Ed25519(pair) => Some(format!("whpk_{}", STANDARD.encode(pair.public_key()))),
            KeyMaterial::Hmac(_) => None,
        }
    }

    /// Seals it for its owner. The scheme is sealed with it: whoever can write to the database cannot have a
    /// key sign in another scheme.
    #[must_use]
    pub fn seal(&self, secrets: &SecretsKey, owner: Owner) -> Vec<u8> {
        let text = format!("{}:{}", self.scheme.as_str(), self.text.expose_secret());
        secrets.seal(owner, &SecretString::from(text))
    }

    /// Opens what [`Self::seal`] sealed.
    ///
    /// # Errors
    /// It cannot be opened, or what was sealed is no key.
    pub fn open(secrets: &SecretsConfig, owner: Owner, sealed: &[u8]) -> Result<Self, OpenError> {
        let opened = secrets.open(owner, sealed)?;
        let (scheme, text) = opened.expose_secret().split_once(':').ok_or(OpenError::UnknownForm)?;
        let scheme = Scheme::from_text(scheme).ok_or(OpenError::UnknownForm)?;
        Self::parse(scheme, text).map_err(|_| OpenError::UnknownForm)
    }
}

fn material(scheme: Scheme, text: &str) -> Result<KeyMaterial, &'static str> {
    match scheme {
        Scheme::V1 => {
            let encoded = text.strip_prefix("whsec_").ok_or("a key must start with whsec_")?;
            let key = STANDARD.decode(encoded).map_err(|_| "what follows whsec_ must be base64")?;
            if !KEY_BYTES.contains(&key.len()) {
                return Err("a key must have 24 to 64 bytes");
            }
            Ok(KeyMaterial::Hmac(key))
        }
        Scheme::V1a => {
            let key = private_bytes(text)?;
            let pair = match key.split_at_checked(SEED_BYTES) {
                Some((seed, [])) => Ed25519KeyPair::from_seed_unchecked(seed),
                Some((seed, public)) => Ed25519KeyPair::from_seed_and_public_key(seed, public),
                None => return Err("a key must have 32 bytes, or 64 with its public key"),
            };
            pair.map(KeyMaterial::Ed25519).map_err(|_| "a key must have 32 bytes, or 64 with its own public key")
        }
        Scheme::Github => {
            if !GITHUB_BYTES.contains(&text.len()) || text.contains(char::is_control) {
                return Err("a key must have 16 to 255 bytes without control characters");
            }
            Ok(KeyMaterial::Hmac(text.as_bytes().to_vec()))
        }
    }
}

/// An Ed25519 seed, and whatever follows it.
fn private_bytes(text: &str) -> Result<Vec<u8>, &'static str> {
    let encoded = text.strip_prefix("whsk_").ok_or("a key must start with whsk_")?;
    STANDARD.decode(encoded).map_err(|_| "what follows whsk_ must be base64")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032, section 7.1, test 1.
    const SEED: &str = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=";
    const PUBLIC: &str = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";

    #[test]
    fn an_asymmetric_key_is_a_seed_with_or_without_its_public_key() {
        let decode = |text: &str| STANDARD.decode(text).expect("it is base64");
        let with = |public: &[u8]| format!("whsk_{}", STANDARD.encode([&decode(SEED), public].concat()));
        for text in [with(&[]), with(&decode(PUBLIC))] {
            let key = SigningKey::parse(Scheme::V1a, &text).expect("it is a key");
            assert_eq!(key.public_key(), Some(format!("whpk_{PUBLIC}")));
            assert!(key.is_same_as(&SigningKey::parse(Scheme::V1a, &with(&[])).expect("it is a key")));
        }
        for wrong in [with(&[1]), with(&[1; 32]), with(&[1; 33]), "whsk_AAAA".to_owned()] {
            assert!(SigningKey::parse(Scheme::V1a, &wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn refuses_what_is_no_key_without_repeating_it() {
        let v1 = format!("whsec_{}", STANDARD.encode([7; 32]));
        for (scheme, wrong) in [
            (Scheme::V1, "hunter2"),
            (Scheme::V1, "whsec_hunter2!"),
            (Scheme::V1, &v1[..10]),
            (Scheme::V1a, v1.as_str()),
            (Scheme::Github, "hunter2"),
            (Scheme::Github, "hunter2-hunter2-hunter2\n"),
        ] {
            let error = SigningKey::parse(scheme, wrong).expect_err(wrong);
            assert!(!error.contains("hunter2"), "{error}");
        }
        let key = SigningKey::parse_standard(&v1).expect("it is a key");
        assert!(!format!("{key:?}").contains(&v1[6..]), "{key:?}");
        assert!(SigningKey::parse_standard("hunter2-hunter2-hunter2").is_err());
    }

    #[test]
    fn comes_back_from_its_seal_as_it_was() {
        let secrets = SecretsKey::parse(SEED).expect("it has 32 bytes");
        let config = SecretsConfig::from_key(secrets.clone());
        let owner = Owner::Destination("https://example.com");
        for (scheme, text) in
            [(Scheme::V1a, format!("whsk_{SEED}")), (Scheme::Github, "a:b whsec_ and more".to_owned())]
        {
            let sealed = SigningKey::parse(scheme, &text).expect("it is a key").seal(&secrets, owner);
            let opened = SigningKey::open(&config, owner, &sealed).expect("it can be opened");
            assert_eq!((opened.scheme(), opened.text.expose_secret()), (scheme, text.as_str()));
        }
        assert!(SigningKey::open(&config, owner, &secrets.seal(owner, &SecretString::from("v9:x"))).is_err());
    }
}
