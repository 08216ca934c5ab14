//! W3C Trace Context: whose trace a webhook belongs to. Pure.

/// Longest `tracestate` that is passed on, in bytes: what its specification asks to be (section 3.3.1.5).
pub const MAX_TRACESTATE_BYTES: usize = 512;

/// A valid `traceparent` of version 00 (Trace Context, level 1, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent<'a> {
    /// 32 lower-case hex digits, not all of them zero.
    pub trace_id: &'a str,
    /// 16 of them: the span that it came from.
    pub parent_id: &'a str,
    /// Two hex digits.
    pub flags: &'a str,
}

impl<'a> TraceParent<'a> {
    /// Reads it. `None` if it is not one: a trace is begun anew then.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace_id, parent_id, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_id = |text: &str, length| is_hex(text, length) && text.bytes().any(|byte| byte != b'0');
        let is_valid = version == "00"
            && is_id(trace_id, 32)
            && is_id(parent_id, 16)
            && is_hex(flags, 2)
            && parts.next().is_none();
        is_valid.then_some(Self { trace_id, parent_id, flags })
    }
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read() {
        let read = TraceParent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let (trace_id, parent_id) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        assert_eq!(read, Some(TraceParent { trace_id, parent_id, flags: "01" }));
    }

    #[test]
    fn what_is_none_begins_a_trace_anew() {
        for text in [
            "",
            "garbage",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473\n-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceParent::parse(text), None, "{text}");
        }
    }
}
