//! What comes of a request.

use std::time::Duration;

use time::OffsetDateTime;

use crate::send_error::SendError;

/// What the receiver answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    /// HTTP status.
    pub status: u16,
    /// The Retry-After headers as they came.
    pub retry_after: Vec<String>,
    /// Beginning of the body, made safe for text.
    pub excerpt: String,
}

/// What came of a request: a response, or the reason why there is none.
pub(crate) type Exchange = Result<Response, SendError>;

impl Response {
    /// For how long it asks to be left alone. One that says so twice is given the longer time.
    pub(crate) fn asked_wait(&self, now: OffsetDateTime) -> Option<Duration> {
        self.retry_after.iter().filter_map(|text| parse_retry_after(text, now)).max()
    }
}

/// Seconds, or a date in one of the three forms of HTTP (RFC 9110, sections 5.6.7 and 10.2.3). Garbage and the past are no
/// wish at all; the retry policy bounds the rest.
fn parse_retry_after(text: &str, now: OffsetDateTime) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More than fits is a long time as well.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = OffsetDateTime::from(httpdate::parse_http_date(text).ok()?);
    Duration::try_from(date - now).ok()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-01-01 12:00 UTC);

    #[test]
    fn retry_after_is_read_in_all_its_forms_and_garbage_is_ignored() {
        let seconds = |text| parse_retry_after(text, NOW).map(|wait| wait.as_secs());
        assert_eq!(seconds("120"), Some(120));
        assert_eq!(seconds("99999999999999999999"), Some(u64::MAX), "as long as can be; it is clamped");
        for date in ["Thu, 01 Jan 2026 12:00:30 GMT", "Thursday, 01-Jan-26 12:00:30 GMT", "Thu Jan  1 12:00:30 2026"] {
            assert_eq!(seconds(date), Some(30), "{date}");
        }
        for ignored in ["-1", "soon", "", "1e9", "+5", "1.5", "Thu, 01 Jan 2026 11:00:00 GMT"] {
            assert_eq!(seconds(ignored), None, "{ignored}");
        }
    }

    #[test]
    fn of_two_waits_the_longer_is_asked_for() {
        let retry_after = ["5", "garbage", "Thu, 01 Jan 2026 12:00:30 GMT"].map(ToOwned::to_owned).to_vec();
        let response = Response { status: 503, retry_after, excerpt: String::new() };
        assert_eq!(response.asked_wait(NOW), Some(Duration::from_secs(30)));
    }
}
