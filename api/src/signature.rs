//! Whether a request comes from somebody who knows a secret.
//!
//! Two schemes, over the raw body and before any parsing:
//! - `X-Signature: sha256=<hex of HMAC-SHA256(secret, body)>`, up to five separated by commas. It carries no
//!   time, so it can be replayed; an `Idempotency-Key` makes a replay harmless.
//! - Standard Webhooks 1.0.0: `webhook-id`, `webhook-timestamp` and `webhook-signature`. Within its 300 s a
//!   replay finds the job that its id made, whatever `Idempotency-Key` stands beside it.
//!
//! `REQUIRE_TIMESTAMP` leaves only the second.

use axum::http::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};
use time::OffsetDateTime;

use crate::error::ApiError;

/// Signatures that one request may carry: enough for any rotation.
const MAX_SIGNATURES: usize = 5;

/// How far a timestamp may be from now, in seconds, either way.
const TOLERANCE_SEC: u64 = 300;

/// Fewest bytes of a secret.
const MIN_SECRET_BYTES: usize = 16;

type Mac256 = [u8; 32];

/// The secrets that callers may sign with; any of them verifies.
#[derive(Clone)]
pub(crate) struct Secrets(Vec<Secret>);

#[derive(Clone)]
struct Secret {
    /// Keyed with the text of the secret.
    plain: Hmac<Sha256>,
    /// Keyed with what `whsec_…` stands for, or else with the text.
    standard: Hmac<Sha256>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} secrets", self.0.len())
    }
}

/// What a valid signature says besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verified {
    /// The request's own id, in the timestamped scheme.
    pub webhook_id: Option<String>,
}

impl Secrets {
    /// Reads secrets separated by commas.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        text.split(',').map(|secret| Secret::parse(secret.trim())).collect::<Result<_, _>>().map(Self)
    }

    /// Verifies a request by whichever scheme its headers speak, or only by the one with a timestamp.
    pub(crate) fn verify(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        now: OffsetDateTime,
        require_timestamp: bool,
    ) -> Result<Verified, ApiError> {
        if require_timestamp {
            return self.verify_standard(headers, body, now);
        }
        if headers.contains_key("x-signature") || !headers.contains_key("webhook-signature") {
            return self.verify_plain(headers, body);
        }
        self.verify_standard(headers, body, now)
    }

    fn verify_plain(&self, headers: &HeaderMap, body: &[u8]) -> Result<Verified, ApiError> {
        let given =
            given(single(headers, "x-signature")?, ',', |text| hex::decode(text.strip_prefix("sha256=")?).ok())?;
        self.any_matches(&given, |secret| mac(&secret.plain, &[body]))?;
        Ok(Verified { webhook_id: None })
    }

    fn verify_standard(&self, headers: &HeaderMap, body: &[u8], now: OffsetDateTime) -> Result<Verified, ApiError> {
        let id = single(headers, "webhook-id")?;
        let timestamp = single(headers, "webhook-timestamp")?;
        let given =
            given(single(headers, "webhook-signature")?, ' ', |text| STANDARD.decode(text.strip_prefix("v1,")?).ok())?;
        if id.is_empty() || id.len() > 255 || id.contains('.') {
            return Err(ApiError::MalformedHeader("webhook-id must be 1 to 255 bytes without a dot"));
        }
        if !is_recent(timestamp, now) {
            return Err(ApiError::Unauthorized);
        }
        let prefix = format!("{id}.{timestamp}.");
        self.any_matches(&given, |secret| mac(&secret.standard, &[prefix.as_bytes(), body]))?;
        Ok(Verified { webhook_id: Some(id.to_owned()) })
    }

    /// Compares every signature with every secret's, in a time that does not tell which matched.
    fn any_matches(&self, given: &[Mac256], expected: impl Fn(&Secret) -> Mac256) -> Result<(), ApiError> {
        let mut matched = Choice::from(0);
        for secret in &self.0 {
            let expected = expected(secret);
            for given in given {
                matched |= given.ct_eq(&expected);
            }
        }
        if matched.into() { Ok(()) } else { Err(ApiError::Unauthorized) }
    }
}

impl Secret {
    fn parse(text: &str) -> Result<Self, String> {
        let too_short = || format!("each secret must have at least {MIN_SECRET_BYTES} bytes");
        let key = match text.strip_prefix("whsec_") {
            Some(encoded) => STANDARD.decode(encoded).map_err(|_| "what follows whsec_ must be base64")?,
            None => text.as_bytes().to_vec(),
        };
        if key.len() < MIN_SECRET_BYTES {
            return Err(too_short());
        }
        let keyed = |key: &[u8]| Hmac::new_from_slice(key).expect("HMAC takes keys of any length");
        Ok(Self { plain: keyed(text.as_bytes()), standard: keyed(&key) })
    }
}

/// The value of a header that must be there just once.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, ApiError> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().map_err(|_| ApiError::Unauthorized),
        _ => Err(ApiError::Unauthorized),
    }
}

/// The signatures in a header, without those that are of another kind or length.
fn given(header: &str, separator: char, decode: impl Fn(&str) -> Option<Vec<u8>>) -> Result<Vec<Mac256>, ApiError> {
    if header.split(separator).count() > MAX_SIGNATURES {
        return Err(ApiError::Unauthorized);
    }
    Ok(header.split(separator).filter_map(|text| Mac256::try_from(decode(text.trim())?).ok()).collect())
}

fn mac(keyed: &Hmac<Sha256>, parts: &[&[u8]]) -> Mac256 {
    let mut mac = keyed.clone();
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Whole seconds since 1970 in plain digits, within the tolerance.
fn is_recent(timestamp: &str, now: OffsetDateTime) -> bool {
    let digits = !timestamp.is_empty() && timestamp.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = timestamp.parse::<i64>().ok().filter(|_| digits);
    seconds.is_some_and(|seconds| now.unix_timestamp().abs_diff(seconds) <= TOLERANCE_SEC)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";
    /// GitHub's documentation, "Validating webhook deliveries".
    const VECTOR: &str = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    /// Headers, by name and value.
    type Pairs<'a> = &'a [(&'static str, &'a str)];

    fn headers(pairs: Pairs) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().expect("a header value"));
        }
        headers
    }

    fn verify(secrets: &str, pairs: Pairs, body: &[u8]) -> Result<Verified, ApiError> {
        let now = OffsetDateTime::from_unix_timestamp(1_614_265_330).expect("a moment");
        Secrets::parse(secrets).expect("secrets").verify(&headers(pairs), body, now, false)
    }

    #[test]
    fn plain_signatures() {
        let good = format!("sha256={VECTOR}");
        let wrong = format!("sha256={}", "0".repeat(64));
        let cases: [(&str, Pairs, bool); 14] = [
            ("the published vector", &[("x-signature", &good)], true),
            ("none", &[], false),
            ("empty", &[("x-signature", "")], false),
            ("without its prefix", &[("x-signature", VECTOR)], false),
            ("not hex", &[("x-signature", &good.replace('7', "x"))], false),
            ("31 bytes", &[("x-signature", &good[..good.len() - 2])], false),
            ("33 bytes", &[("x-signature", &format!("{good}00"))], false),
            ("wrong", &[("x-signature", &wrong)], false),
            ("two, one valid", &[("x-signature", &format!("{wrong}, {good}"))], true),
            ("five, one valid", &[("x-signature", &format!("{wrong},{wrong},{wrong},{wrong},{good}"))], true),
            ("six", &[("x-signature", &[good.as_str(); 6].join(","))], false),
            ("the header twice", &[("x-signature", &good), ("x-signature", &good)], false),
            ("sha1", &[("x-signature", &good.replace("sha256", "sha1"))], false),
            ("both schemes, the plain one wrong", &[("x-signature", &wrong), ("webhook-signature", "v1,x")], false),
        ];
        for (case, pairs, accepted) in cases {
            assert_eq!(verify(SECRET, pairs, BODY).is_ok(), accepted, "{case}");
        }
        assert!(verify(SECRET, &[("x-signature", &good)], b"Hello, World").is_err(), "of another body");
    }

    #[test]
    fn any_secret_of_a_rotation_verifies_and_a_revoked_one_does_not() {
        let good = format!("sha256={VECTOR}");
        let rotation = format!("the-new-secret-of-all, {SECRET}");
        assert!(verify(&rotation, &[("x-signature", &good)], BODY).is_ok());
        assert!(verify("the-new-secret-of-all", &[("x-signature", &good)], BODY).is_err());
    }

    #[test]
    fn where_a_timestamp_is_required_only_the_scheme_with_one_is_taken() {
        let now = OffsetDateTime::from_unix_timestamp(1_614_265_330).expect("a moment");
        let verify = |secret: &str, pairs: Pairs, body: &[u8]| {
            Secrets::parse(secret).expect("secrets").verify(&headers(pairs), body, now, true)
        };
        let good = format!("sha256={VECTOR}");
        assert_eq!(verify(SECRET, &[("x-signature", &good)], BODY), Err(ApiError::Unauthorized));
        let standard =
            [("webhook-id", ID), ("webhook-timestamp", "1614265330"), ("webhook-signature", STANDARD_SIGNATURE)];
        assert!(verify(STANDARD_KEY, &standard, STANDARD_BODY).is_ok());
        let both = [&standard[..], &[("x-signature", "sha256=00")]].concat();
        assert!(verify(STANDARD_KEY, &both, STANDARD_BODY).is_ok(), "the other header counts for nothing");
    }

    #[test]
    fn secrets_must_be_long_enough() {
        for wrong in ["", "short", &format!("{SECRET},"), "whsec_aHVudGVyMg==", "whsec_!"] {
            assert!(Secrets::parse(wrong).is_err(), "{wrong}");
        }
    }

    const STANDARD_KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const STANDARD_BODY: &[u8] = br#"{"test": 2432232314}"#;
    const STANDARD_SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";

    fn verify_standard(id: &str, timestamp: &str, signature: &str) -> Result<Verified, ApiError> {
        let pairs = [("webhook-id", id), ("webhook-timestamp", timestamp), ("webhook-signature", signature)];
        verify(STANDARD_KEY, &pairs, STANDARD_BODY)
    }

    #[test]
    fn the_published_standard_vector() {
        let verified = verify_standard(ID, "1614265330", STANDARD_SIGNATURE).expect("it is valid");
        assert_eq!(verified.webhook_id.as_deref(), Some(ID));
        assert!(verify_standard(ID, "1614265330", &format!("v2,abc v1,AAAA {STANDARD_SIGNATURE}")).is_ok());
        assert!(verify_standard("other", "1614265330", STANDARD_SIGNATURE).is_err());
        assert!(verify_standard(ID, "1614265331", STANDARD_SIGNATURE).is_err());
        assert_eq!(
            verify_standard("a.b", "1614265330", STANDARD_SIGNATURE),
            Err(ApiError::MalformedHeader("webhook-id must be 1 to 255 bytes without a dot"))
        );
    }

    #[test]
    fn timestamps_are_plain_seconds_within_300_of_now() {
        let secrets = Secrets::parse(STANDARD_KEY).expect("secrets");
        let signed = |timestamp: &str| {
            let prefix = format!("{ID}.{timestamp}.");
            format!("v1,{}", STANDARD.encode(mac(&secrets.0[0].standard, &[prefix.as_bytes(), STANDARD_BODY])))
        };
        for (timestamp, accepted) in [
            ("1614265330", true),
            ("1614265030", true),
            ("1614265630", true),
            ("1614265029", false),
            ("1614265631", false),
            ("1614265330000", false),
            ("", false),
            ("1e9", false),
            ("+1614265330", false),
            ("-1614265330", false),
            ("99999999999999999999", false),
        ] {
            assert_eq!(verify_standard(ID, timestamp, &signed(timestamp)).is_ok(), accepted, "{timestamp}");
        }
    }
}
