//! A body's JSON: what is well-formed is taken as it is written, with one reading for everybody.
//!
//! A payload is handed on as the caller's own bytes, so it must not mean one thing to us and another to the receiver: an
//! object may not have a key twice. Numbers of any size and escapes of half a character are no concern of ours.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use memchr::memchr2;
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde_json::value::RawValue;

use crate::error::ApiError;

/// Objects and arrays inside one another, the body itself counted: receivers' parsers have limits as well.
const MAX_DEPTH: usize = 127;

/// Reads a body that is an object. Malformed JSON is one error, what cannot be used another.
pub(crate) fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    // Only looked at: a number is not computed, nor an escape resolved.
    let text: &RawValue = serde_json::from_slice(body).map_err(|error| ApiError::MalformedJson(error.to_string()))?;
    check(text.get())?;
    require("the body", text, "an object", b'{')?;
    serde_json::from_str(text.get()).map_err(|error| invalid(error.to_string()))
}

/// A field that is a string.
pub(crate) fn string(field: &str, value: &RawValue) -> Result<String, ApiError> {
    require(field, value, "a string", b'"')?;
    serde_json::from_str(value.get())
        .map_err(|_| invalid(format!("{field}: it has half of a surrogate pair, which no text can hold")))
}

/// A field that is a whole number, and one of these.
pub(crate) fn integer(field: &str, value: &RawValue, allowed: RangeInclusive<i64>) -> Result<i64, ApiError> {
    if kind(value) != "a number" {
        return Err(mismatch(field, "a number", value));
    }
    let number = value.get().parse().ok().filter(|number| allowed.contains(number));
    number.ok_or_else(|| {
        invalid(format!("{field}: it must be a whole number from {} to {}", allowed.start(), allowed.end()))
    })
}

/// A field that is an object of strings.
pub(crate) fn strings(field: &str, value: &RawValue) -> Result<BTreeMap<String, String>, ApiError> {
    require(field, value, "an object", b'{')?;
    let entries: BTreeMap<String, &RawValue> = serde_json::from_str(value.get())
        .map_err(|_| invalid(format!("{field}: a key has half of a surrogate pair, which no text can hold")))?;
    entries
        .into_iter()
        .map(|(name, value)| {
            let value = string(&format!("{field}.{name}"), value)?;
            Ok((name, value))
        })
        .collect()
}

/// A field is not what it has to be; which names both in JSON's words, and not the value, which may be a secret.
pub(crate) fn mismatch(field: &str, wanted: &str, value: &RawValue) -> ApiError {
    invalid(format!("{field}: {wanted}, not {}", kind(value)))
}

fn require(field: &str, value: &RawValue, wanted: &str, first: u8) -> Result<(), ApiError> {
    if value.get().as_bytes().first() == Some(&first) { Ok(()) } else { Err(mismatch(field, wanted, value)) }
}

fn kind(value: &RawValue) -> &'static str {
    match value.get().as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

fn invalid(what: impl Into<String>) -> ApiError {
    ApiError::InvalidField(what.into())
}

/// Refuses what is well-formed, and not taken. The text is known to be well-formed.
fn check(text: &str) -> Result<(), ApiError> {
    let bytes = text.as_bytes();
    // The keys of each object that is open; an open array has none.
    let mut open: Vec<Vec<Key>> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'{' | b'[' if open.len() == MAX_DEPTH => {
                let what = format!("the body: it may be nested {MAX_DEPTH} deep, and is deeper at byte {at}");
                return Err(invalid(what));
            }
            b'{' | b'[' => open.push(Vec::new()),
            b'}' | b']' => {
                let mut keys = open.pop().unwrap_or_default();
                keys.sort_unstable();
                if keys.windows(2).any(|pair| pair[0] == pair[1]) {
                    let what =
                        format!("the body: an object may have each key once, and has one twice before byte {at}");
                    return Err(invalid(what));
                }
            }
            b'"' => {
                let end = end_of_string(bytes, at);
                let is_key = bytes[end..].iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b':');
                if let (true, Some(keys)) = (is_key, open.last_mut()) {
                    keys.push(serde_json::from_str(&text[at..end]).expect("the text is well-formed"));
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// Where the string that starts here has ended.
fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(found) = memchr2(b'"', b'\\', &bytes[at..]) {
        at += found;
        if bytes[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    bytes.len()
}

/// An object's key with its escapes resolved, also those that no text can hold.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key<'a>(Cow<'a, [u8]>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a key")
            }

            fn visit_borrowed_bytes<E: Error>(self, key: &'de [u8]) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(key)))
            }

            fn visit_bytes<E: Error>(self, key: &[u8]) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(key.to_owned())))
            }
        }
        deserializer.deserialize_bytes(KeyVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a body whose one field is this.
    fn outcome(value: &str) -> Result<(), ApiError> {
        read::<BTreeMap<String, &RawValue>>(format!("{{\"a\":{value}}}").as_bytes()).map(|_| ())
    }

    #[test]
    fn whatever_is_well_formed_is_taken() {
        let (deep, digits) = (format!("{}{}", "[".repeat(126), "]".repeat(126)), "9".repeat(400));
        for value in [
            "{}",
            "[]",
            "null",
            " {\"a\": [1, -2.5e3, \"\\u00e9\\ud83d\\ude00\", {\"a\": true}]}\n",
            "1e400",
            "-0",
            &digits,
            "\"\\ud800\"",
            "{\"\\udfff\":\"\\ud83d\\ud83d\"}",
            "{\"\\ud800\":1,\"\\udbff\":2}",
            "[\"a:\\\\\",\"a\",\"\\\"a\\\":\",\"a\"]",
            "[{\"b\":\"b\"},{\"b\":\"b\"}]",
            &deep,
        ] {
            assert_eq!(outcome(value), Ok(()), "{value}");
        }
    }

    #[test]
    fn what_is_malformed_is_one_error_and_what_goes_too_far_another() {
        for value in [
            "",
            "{",
            "{}x",
            "{} {}",
            "\"\n\"",
            "{\"\n\":1}",
            "NaN",
            "[Infinity]",
            "{'a':1}",
            "[1,]",
            "01",
            "1e",
            "\"\\u12\"",
        ] {
            assert!(matches!(outcome(value), Err(ApiError::MalformedJson(_))), "{value}");
        }
        for body in [&b"\xef\xbb\xbf{}"[..], b"{\"a\":\"\xff\"}", b"{\"\xff\":1}", b"{}{}", b""] {
            let read = read::<BTreeMap<String, &RawValue>>(body).map(|_| ());
            assert!(matches!(read, Err(ApiError::MalformedJson(_))), "{}", String::from_utf8_lossy(body));
        }
        let deep = format!("{}{}", "[".repeat(127), "]".repeat(127));
        for (value, words) in [
            (&deep[..], "nested 127 deep"),
            ("{\"b\":1,\"b\":2}", "each key once"),
            ("[{\"a\":{\"b\":1,\"\\u0062\":2}}]", "each key once"),
            ("{\"\\ud800\":1,\"\\uD800\":2}", "each key once"),
            ("1,\"a\" : 2", "each key once"),
        ] {
            let refused = outcome(value);
            assert!(
                matches!(&refused, Err(ApiError::InvalidField(what)) if what.contains(words)),
                "{value}: {refused:?}"
            );
        }
    }
}
