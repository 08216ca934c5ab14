//! The check of a delivery's signature, by a library that shares no code with the signer.

use axum::http::HeaderMap;
use standardwebhooks::Webhook;

use crate::Signature;

/// What a request's `webhook-*` headers are worth.
pub(crate) fn verify(verifier: Option<&Webhook>, headers: &HeaderMap, body: &[u8]) -> Signature {
    if !headers.contains_key(standardwebhooks::HEADER_WEBHOOK_SIGNATURE) {
        return Signature::Unsigned;
    }
    match verifier.map(|verifier| verifier.verify(body, headers)) {
        None => Signature::Unchecked,
        Some(Ok(())) => Signature::Verified,
        Some(Err(error)) => Signature::Invalid(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::OffsetDateTime;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the verifier compares with the system's clock")]
    fn tells_the_four_cases_apart() {
        let verifier = Webhook::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let mut headers = HeaderMap::new();
        assert_eq!(verify(Some(&verifier), &headers, b"{}"), Signature::Unsigned);

        let signature = verifier.sign("msg_1", now, b"{}").unwrap();
        headers.insert("webhook-id", "msg_1".parse().unwrap());
        headers.insert("webhook-timestamp", now.to_string().parse().unwrap());
        headers.insert("webhook-signature", signature.parse().unwrap());
        assert_eq!(verify(Some(&verifier), &headers, b"{}"), Signature::Verified);
        assert_eq!(verify(None, &headers, b"{}"), Signature::Unchecked);
        assert!(matches!(verify(Some(&verifier), &headers, b"{ }"), Signature::Invalid(_)));
    }
}
