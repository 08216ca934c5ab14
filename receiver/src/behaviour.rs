//! How the endpoint answers, as the query string of its URL says. Pure.

use std::time::Duration;

/// The longest delay a query string may ask for, so that a typing mistake does not look like a hang.
const LONGEST_DELAY: Duration = Duration::from_mins(10);

/// What the query string asks for. Keys it does not know are left to the caller's own use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Behaviour {
    /// `status`: the answer, or, with `fail_times`, the answer while failing.
    pub status: Option<u16>,
    /// `fail_times`: how many requests of one webhook fail before one succeeds.
    pub fail_times: Option<u32>,
    /// `delay_ms`: how long the answer takes.
    pub delay: Duration,
    /// `retry_after`: the value of the header of that name, sent with answers that are not a success.
    pub retry_after: Option<String>,
    /// `location`: the value of the header of that name.
    pub location: Option<String>,
    /// `hang`: never answer.
    pub hang: bool,
    /// `reset`: drop the connection instead of answering.
    pub reset: bool,
}

/// What one request gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A response.
    Status(u16),
    /// Nothing, for as long as the sender cares to wait.
    Hang,
    /// A connection reset.
    Reset,
}

impl Behaviour {
    /// Reads a query string. The error is a sentence for whoever wrote the URL.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut behaviour = Self::default();
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match key.as_ref() {
                "status" => behaviour.status = Some(status(&value)?),
                "fail_times" => behaviour.fail_times = Some(number("fail_times", &value)?),
                "delay_ms" => behaviour.delay = delay(&value)?,
                "retry_after" => behaviour.retry_after = Some(value.into_owned()),
                "location" => behaviour.location = Some(value.into_owned()),
                "hang" => behaviour.hang = flag("hang", &value)?,
                "reset" => behaviour.reset = flag("reset", &value)?,
                _ => {}
            }
        }
        Ok(behaviour)
    }

    /// The answer to a request of a webhook of which `earlier` requests came before.
    #[must_use]
    pub fn answer(&self, earlier: u32) -> Answer {
        let still_failing = self.fail_times.is_none_or(|times| earlier < times);
        if !still_failing {
            return Answer::Status(200);
        }
        match (self.hang, self.reset) {
            (true, _) => Answer::Hang,
            (false, true) => Answer::Reset,
            (false, false) => {
                let default = if self.fail_times.is_some() { 500 } else { 200 };
                Answer::Status(self.status.unwrap_or(default))
            }
        }
    }
}

fn status(value: &str) -> Result<u16, String> {
    // A 1xx is not an answer: the sender would wait for the real one.
    value
        .parse()
        .ok()
        .filter(|status| (200..=999).contains(status))
        .ok_or_else(|| format!("status must be a number from 200 to 999, not {value:?}"))
}

fn delay(value: &str) -> Result<Duration, String> {
    let delay = Duration::from_millis(number("delay_ms", value)?);
    if delay > LONGEST_DELAY {
        return Err(format!("delay_ms must be at most {}", LONGEST_DELAY.as_millis()));
    }
    Ok(delay)
}

fn number<N: std::str::FromStr>(key: &str, value: &str) -> Result<N, String> {
    value.parse().map_err(|_| format!("{key} must be a number that is not negative, not {value:?}"))
}

fn flag(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(format!("{key} must be 1 or 0, not {value:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(query: &str) -> Vec<Answer> {
        let behaviour = Behaviour::parse(query).unwrap();
        (0..4).map(|earlier| behaviour.answer(earlier)).collect()
    }

    #[test]
    fn answers_as_the_query_says() {
        use Answer::{Hang, Reset, Status};
        for (query, expected) in [
            ("", [Status(200), Status(200), Status(200), Status(200)]),
            ("status=503", [Status(503), Status(503), Status(503), Status(503)]),
            ("fail_times=2", [Status(500), Status(500), Status(200), Status(200)]),
            ("fail_times=1&status=429", [Status(429), Status(200), Status(200), Status(200)]),
            ("hang=1&fail_times=1", [Hang, Status(200), Status(200), Status(200)]),
            ("reset=1", [Reset, Reset, Reset, Reset]),
            ("mine=too&hang=0", [Status(200), Status(200), Status(200), Status(200)]),
        ] {
            assert_eq!(answers(query), expected, "{query:?}");
        }
    }

    #[test]
    fn refuses_what_it_cannot_do() {
        for query in ["status=100", "status=abc", "fail_times=-1", "delay_ms=700000", "hang=yes", "reset="] {
            assert!(Behaviour::parse(query).is_err(), "{query:?} was taken");
        }
    }
}
