//! What a session of a service sets, so that no default of the server, the database or the role changes what a
//! statement does.
//!
//! By a statement once the session is there: poolers refuse settings when it begins.

use std::collections::BTreeMap;
use std::time::Duration;

/// No statement of a service takes longer; set in Postgres, so that it holds for a stuck client too.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);

/// No statement of a service waits longer for a row that another transaction holds, unless it says so.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// A session whose process has vanished gives up what it holds, too. The kernel notices a dead peer within 11 s;
/// Postgres ends a transaction that nobody goes on with after 10 s.
const SESSION: [(&str, &str); 9] = [
    ("default_transaction_isolation", "read committed"),
    ("idle_in_transaction_session_timeout", "10s"),
    ("search_path", "public"),
    ("synchronous_commit", "on"),
    ("tcp_keepalives_count", "3"),
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "2"),
    ("tcp_user_timeout", "10s"),
    ("TimeZone", "UTC"),
];

/// Plans are made once and kept, so they must be right whatever size a table has by then. Every statement of a service
/// names the rows that it wants; so it finds them by an index, in a scan that also cleans up what is dead. What has no
/// index, the few destinations, looks expensive like this, which is no reason to compile the plan. And the plan is made
/// once, not five times for the values at hand before that. See docs/decisions/0012.
const PLANNER: [(&str, &str); 4] = [
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("jit", "off"),
    ("plan_cache_mode", "force_generic_plan"),
];

/// A setting for statements that join a batch with the rows that it names, by hashing. Postgres expects ten elements of
/// any array, and would compare each with each.
pub const JOIN_BY_HASH: (&str, &str) = ("enable_nestloop", "off");

/// How long a setting lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    SessionEnds,
    TransactionEnds,
}

/// Settings that take the place of a session's own, by their names.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings(BTreeMap<String, String>);

impl Settings {
    /// Those of the URL.
    pub(super) fn of_administrator(url: &[(String, String)]) -> Self {
        let mut settings = Self::default();
        for (name, value) in url {
            settings.set(name, value);
        }
        settings
    }

    /// Those, but for what every service needs, and that but for what one kind of its statements needs.
    pub(super) fn of_service(url: &[(String, String)], special: &[(&str, &str)]) -> Self {
        let mut settings = Self::of_administrator(url);
        for (name, limit) in [("statement_timeout", STATEMENT_TIMEOUT), ("lock_timeout", LOCK_TIMEOUT)] {
            settings.set(name, &format!("{}ms", limit.as_millis()));
        }
        for (name, value) in SESSION.iter().chain(&PLANNER).chain(special) {
            settings.set(name, value);
        }
        settings
    }

    fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_ascii_lowercase(), value.to_owned());
    }

    /// The statement that makes them. Its column `read_only` is `on` where the session takes no writes.
    pub(super) fn statement(&self, until: Until) -> String {
        let local = until == Until::TransactionEnds;
        let each =
            self.0.iter().map(|(name, value)| format!("set_config({}, {}, {local})", quoted(name), quoted(value)));
        let each: Vec<String> = each.chain([READ_ONLY.to_owned()]).collect();
        format!("SELECT {}", each.join(", "))
    }
}

/// A standby is read-only whatever the setting is.
const READ_ONLY: &str = "current_setting('transaction_read_only') AS read_only";

/// A literal, whatever `standard_conforming_strings` is.
fn quoted(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_special_goes_before_what_is_general() {
        let url = [("Lock_timeout".to_owned(), "1".to_owned()), ("my.own".to_owned(), "it's \\".to_owned())];
        let url_alone = Settings::of_administrator(&url).statement(Until::TransactionEnds);
        assert!(url_alone.starts_with("SELECT set_config(E'lock_timeout', E'1', true), "), "{url_alone}");
        assert!(url_alone.contains(r"set_config(E'my.own', E'it''s \\', true)"), "{url_alone}");
        for (special, limit) in [(&[][..], "1000ms"), (&[("lock_timeout", "7ms")][..], "7ms")] {
            let statement = Settings::of_service(&url, special).statement(Until::SessionEnds);
            assert!(statement.contains(&format!("set_config(E'lock_timeout', E'{limit}', false)")), "{statement}");
            assert_eq!(statement.matches("lock_timeout").count(), 1, "{statement}");
        }
    }
}
