//! The lists that a URL is judged by, and every spelling that must not slip through them.

use super::*;
use crate::destination::Destination;

#[test]
fn public_targets_are_taken() {
    for url in [
        "http://example.com",
        "https://example.com:8443/hook?x=1",
        "HTTPS://EXAMPLE.com/",
        "https://93.184.216.34/",
        "https://[2606:2800:220:1::1]/",
        "https://bücher.example/",
    ] {
        assert!(TargetPolicy::default().check_url(url).is_ok(), "{url}");
    }
}

#[test]
fn a_destination_is_the_same_in_every_spelling() {
    for url in ["https://example.com", "HTTPS://EXAMPLE.com:443/a?b", "https://ex%61mple.com/c"] {
        let url = TargetPolicy::default().check_url(url).expect(url);
        assert_eq!(Destination::of(&url).as_str(), "https://example.com");
    }
    let url = TargetPolicy::default().check_url("http://example.com:8080/").expect("it is public");
    assert_eq!(Destination::of(&url).as_str(), "http://example.com:8080");
}

#[test]
fn a_url_is_accepted_as_it_is_sent() {
    for (text, sent) in [
        ("HTTPS://EXAMPLE.com:443", "https://example.com/"),
        ("https://b\u{fc}cher.example?a=b", "https://xn--bcher-kva.example/?a=b"),
        ("http://ex%61mple.com:0080/%7e//x|^[]%zz?{}`\\", "http://example.com/%7e//x|^[]%zz?{}`\\"),
        ("http://0x5d.184.55514/...?", "http://93.184.216.218/...?"),
    ] {
        let url = TargetPolicy::default().accept_url(text).expect(text);
        assert_eq!(url.as_str(), sent);
        assert_eq!(TargetPolicy::default().accept_url(sent), Ok(url), "what was accepted is accepted again");
    }
}

#[test]
fn a_url_that_would_be_sent_otherwise_is_refused() {
    let short_of_a_slash = format!("http://{}.com", "a".repeat(MAX_URL_BYTES - 11));
    for (url, error) in [
        ("http://example.com/a/../b", TargetError::DotSegment),
        ("http://example.com/%2E%2e?a", TargetError::DotSegment),
        ("http://example.com/a/.", TargetError::DotSegment),
        ("http://example.com/{id}", TargetError::NotEncoded('{')),
        ("http://example.com\\a", TargetError::NotEncoded('\\')),
        ("http://example.com/?q='a'", TargetError::NotEncoded('\'')),
        ("http://example.com/caf\u{e9}", TargetError::NotEncoded('\u{e9}')),
        ("http:///example.com/", TargetError::NotHttp),
        ("http://a..b/", TargetError::NotAHost),
        ("http://a{b}/", TargetError::NotAHost),
        (short_of_a_slash.as_str(), TargetError::TooLong),
    ] {
        assert_eq!(TargetPolicy::default().accept_url(url), Err(error), "{url}");
        assert!(TargetPolicy::default().check_url(url).is_ok(), "at an attempt nobody asks how it is written: {url}");
    }
    let said = TargetError::NotEncoded('\u{e9}').to_string();
    assert_eq!(said, "the URL must have %C3%A9 in place of \u{e9} in its path or query");
}

#[test]
fn malformed_targets_are_refused() {
    let long = format!("http://example.com/{}", "a".repeat(MAX_URL_BYTES));
    for (url, error) in [
        ("", TargetError::NotHttp),
        ("/hook", TargetError::NotHttp),
        ("example.com/hook", TargetError::NotHttp),
        ("http://", TargetError::NotHttp),
        ("ftp://example.com", TargetError::NotHttp),
        ("file:///etc/passwd", TargetError::NotHttp),
        ("http:/\\127.0.0.1", TargetError::NotHttp),
        ("http:example.com", TargetError::NotHttp),
        ("http://example.com:65536", TargetError::NotHttp),
        ("http://example.com:0", TargetError::PortZero),
        ("http://user@example.com", TargetError::UserInfo),
        ("http://user:secret@example.com", TargetError::UserInfo),
        ("http://@example.com", TargetError::UserInfo),
        ("http://x@127.0.0.1", TargetError::UserInfo),
        ("http://example.com/#top", TargetError::Fragment),
        ("http://example.com/a\nb", TargetError::ControlCharacter),
        ("http://exam\tple.com/", TargetError::ControlCharacter),
        (" http://example.com/", TargetError::ControlCharacter),
        (long.as_str(), TargetError::TooLong),
    ] {
        assert_eq!(TargetPolicy::default().check_url(url), Err(error), "{url}");
    }
}

#[test]
fn every_spelling_of_a_private_address_is_refused() {
    for host in [
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "0",
        "127.0.0.1",
        "127.0.0.1.",
        "１２７.０.０.１",
        "①②⑦.⓪.⓪.①",
        "127。0。0。1",
        "%31%32%37.0.0.1",
        "[::1]",
        "[::]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[2001::1]",
        "[fe80::1]",
        "[fd00::1]",
        "localhost",
        "LOCALHOST.",
        "a.localhost",
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.168.1.1",
        "224.0.0.1",
        "255.255.255.255",
    ] {
        let checked = TargetPolicy::default().check_url(&format!("http://{host}/"));
        assert_eq!(checked, Err(TargetError::PrivateNetwork), "{host}");
    }
}

#[test]
fn an_allowed_network_is_reached_in_every_spelling_and_no_other() {
    let policy = TargetPolicy::allowing(vec!["127.0.0.0/8".parse().expect("a network")]);
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        assert!(policy.check_url(&format!("http://{host}/")).is_ok(), "{host}");
    }
    assert_eq!(policy.check_url("http://10.0.0.1/"), Err(TargetError::PrivateNetwork));
}

#[derive(clap::Parser)]
struct Process {
    #[command(flatten)]
    targets: TargetPolicy,
}

/// The policy of these options.
fn policy(arguments: &[&str]) -> TargetPolicy {
    let arguments = [&["process"], arguments].concat();
    clap::Parser::try_parse_from(arguments).map(|process: Process| process.targets).expect("the options are right")
}

#[test]
fn a_denied_network_is_refused_whether_it_is_public_or_allowed() {
    let policy =
        policy(&["--allow-networks", "10.0.0.0/8", "--deny-networks", "10.0.9.0/24,93.184.0.0/16,2606:2800::/32"]);
    for host in ["10.0.9.1", "167774465", "[::ffff:10.0.9.1]", "93.184.216.34", "[2606:2800:220:1::1]"] {
        let checked = policy.check_url(&format!("http://{host}/"));
        assert_eq!(checked, Err(TargetError::DeniedNetwork), "{host}");
    }
    assert!(policy.check_url("http://10.0.8.1/").is_ok(), "the rest of the allowed network is");
    assert!(policy.check_url("http://93.185.0.1/").is_ok(), "so is the rest of what is public");
    assert_eq!(policy.check_url("http://192.168.0.1/"), Err(TargetError::PrivateNetwork));
}

#[test]
fn plain_http_is_refused_where_https_is_asked_for() {
    let policy = policy(&["--https-only", "true"]);
    for url in ["http://example.com", "HTTP://example.com:443/"] {
        assert_eq!(policy.check_url(url), Err(TargetError::NotHttps), "{url}");
    }
    assert!(policy.check_url("https://example.com:8443/").is_ok());
}

#[test]
fn only_ports_of_the_list_are_taken_whether_written_or_implied() {
    let policy = policy(&["--allow-ports", "443,8080"]);
    for url in ["https://example.com", "https://example.com:443/", "http://example.com:8080/"] {
        assert!(policy.check_url(url).is_ok(), "{url}");
    }
    for url in ["http://example.com", "http://example.com:22/", "https://example.com:80/"] {
        assert_eq!(policy.check_url(url), Err(TargetError::PortNotAllowed), "{url}");
    }
}
