//! A delivery as people see it on a terminal.

use time::macros::format_description;

use crate::{Answer, Received};

/// How much of a body a line shows, in characters.
const SHOWN_CHARACTERS: usize = 200;

/// A line about a delivery and its answer, which nothing in it can break.
#[must_use]
pub fn line(request: &Received, answer: &Answer) -> String {
    let time =
        request.at.format(format_description!("[hour]:[minute]:[second].[subsecond digits:3]Z")).unwrap_or_default();
    let job = request.job_id.as_deref().or(request.webhook_id.as_deref()).unwrap_or("(no job id)");
    let attempt = request.attempt.map_or_else(|| "?".to_owned(), |attempt| attempt.to_string());
    let bytes = request.body.len();
    let signature = &request.signature;
    let body = for_terminal(&request.body);
    let answer = match answer {
        Answer::Status(status) => status.to_string(),
        Answer::Hang => "no answer".to_owned(),
        Answer::Reset => "connection reset".to_owned(),
    };
    let job = for_terminal(job.as_bytes());
    format!("{time}  job {job}  attempt {attempt}  {bytes} bytes  {signature}  {body}  -> {answer}")
}

/// The start of a text with everything a terminal would act on replaced.
fn for_terminal(bytes: &[u8]) -> String {
    // A character has at most four bytes, so the rest need not be decoded.
    let start = &bytes[..bytes.len().min(SHOWN_CHARACTERS * 4)];
    let text = String::from_utf8_lossy(start);
    let mut shown: String = text
        .chars()
        .take(SHOWN_CHARACTERS)
        .map(|character| if is_unsafe_on_terminals(character) { '\u{fffd}' } else { character })
        .collect();
    if bytes.len() > start.len() || text.chars().nth(SHOWN_CHARACTERS).is_some() {
        shown.push('…');
    }
    shown
}

/// Control characters and the marks that reverse the order of the text after them.
fn is_unsafe_on_terminals(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2028}' | '\u{2029}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_bodies_safely() {
        assert_eq!(for_terminal(b"{\"a\":1}"), "{\"a\":1}");
        assert_eq!(for_terminal(b"\x1b[2Jx\r\n\xff"), "\u{fffd}[2Jx\u{fffd}\u{fffd}\u{fffd}");
        assert_eq!(for_terminal("\u{202e}x".as_bytes()), "\u{fffd}x");
        assert_eq!(for_terminal("é".repeat(201).as_bytes()).chars().count(), 201);
        assert_eq!(for_terminal("é".repeat(200).as_bytes()).chars().count(), 200);
        assert!(for_terminal(&[b'x'; 5000]).ends_with('…'));
    }
}
