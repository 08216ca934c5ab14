//! Strict JSON: one reading for everybody.
//!
//! A payload is handed on as the caller's own bytes, so it must not mean one thing to us and another to
//! the receiver: keys that stand twice, lone surrogates and nesting deeper than 127 are refused.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::error::ApiError;

/// Checks that the bytes are one JSON text (RFC 8259) and nothing else. Errors say where it is not.
fn check(bytes: &[u8]) -> Result<(), serde_json::Error> {
    serde_json::from_slice::<Strict>(bytes).map(|Strict| ())
}

/// Checks and reads a body that is an object. Malformed JSON is one error, a field that cannot be used another.
pub(crate) fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    check(body).map_err(|error| ApiError::MalformedJson(error.to_string()))?;
    // An array would be taken for the fields in their order.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(ApiError::InvalidField("the body must be an object".to_owned()));
    }
    serde_json::from_slice(body).map_err(|error| ApiError::InvalidField(error.to_string()))
}

/// A JSON value that was looked at and thrown away.
struct Strict;

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Self;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while let Some(Self) = items.next_element()? {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self, A::Error> {
        let mut keys: Vec<Key<'de>> = Vec::new();
        while let Some((key, Self)) = entries.next_entry()? {
            keys.push(key);
        }
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(_) => Err(A::Error::custom("an object has the same key twice")),
            None => Ok(self),
        }
    }
}

/// An object's key, borrowed where it has no escapes.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(key)))
            }

            fn visit_str<E>(self, key: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(key.to_owned())))
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_formed_texts_pass() {
        let deep = format!("{}{}", "[".repeat(127), "]".repeat(127));
        for text in ["{}", "[]", "null", " {\"a\": [1, -2.5e3, \"\\u00e9\\ud83d\\ude00\", {\"a\": true}]}\n", &deep] {
            assert!(check(text.as_bytes()).is_ok(), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let deep = format!("{}{}", "[".repeat(128), "]".repeat(128));
        for text in [
            &b""[..],
            b"{",
            b"{} {}",
            b"{}x",
            b"\xef\xbb\xbf{}",
            b"{\"a\":\"\xff\"}",
            deep.as_bytes(),
            b"\"\\ud800\"",
            b"{\"a\":\"\\udc00\"}",
            b"NaN",
            b"[Infinity]",
            b"{\"a\":1,\"a\":2}",
            b"{\"a\":{\"b\":1,\"\\u0062\":2}}",
            b"{'a':1}",
            b"[1,]",
            b"{\"a\":01}",
            b"\"\n\"",
        ] {
            assert!(check(text).is_err(), "{}", String::from_utf8_lossy(text));
        }
    }
}
