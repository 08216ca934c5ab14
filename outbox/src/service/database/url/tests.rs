use secrecy::ExposeSecret;

use super::*;
use crate::service::database::tls::Mode;

fn read(text: &str) -> Result<DatabaseUrl, String> {
    DatabaseUrl::read(text, |_| None)
}

fn hosts_of(text: &str) -> Vec<Host> {
    read(text).unwrap_or_else(|error| panic!("{text}: {error}")).hosts
}

#[test]
fn every_form_of_libpq_leads_to_its_hosts() {
    let tcp = |host: &str, port| Host::Tcp(host.to_owned(), port);
    let socket = |directory: &str, port| Host::Socket(directory.into(), port);
    for (text, hosts) in [
        ("postgres://u@localhost/d", vec![tcp("localhost", 5432)]),
        ("postgresql://u@127.0.0.1:1/d", vec![tcp("127.0.0.1", 1)]),
        ("postgres://u@[::1]/d", vec![tcp("::1", 5432)]),
        ("postgres://u@[fd00::5]:7/d", vec![tcp("fd00::5", 7)]),
        ("postgres://u@a,b:2,[::1]:3/d", vec![tcp("a", 5432), tcp("b", 2), tcp("::1", 3)]),
        ("postgres://u@/d?host=a,b&port=4", vec![tcp("a", 4), tcp("b", 4)]),
        ("postgres://u@/d?host=a,b&port=,4", vec![tcp("a", 5432), tcp("b", 4)]),
        ("postgres://u@%2Frun%2Fpg:5/d", vec![socket("/run/pg", 5)]),
        ("postgres:///d?user=u&host=/run/pg&port=6", vec![socket("/run/pg", 6)]),
    ] {
        assert_eq!(hosts_of(text), hosts, "{text}");
    }
}

#[test]
fn who_logs_in_where_is_decoded() {
    let url = read("postgres://a%40b:p+%2F%20w@h/d%20e?connect_timeout=3").expect("it is a URL");
    assert_eq!((url.user.as_str(), url.database.as_str()), ("a@b", "d e"));
    assert_eq!(url.password.expect("it has one").expose_secret(), "p+/ w");
    assert_eq!(url.connect_timeout, Some(Duration::from_secs(3)));
    assert_eq!(read("postgres://u@h").expect("it is a URL").database, "u");
    let url = read("postgres://h/?user=u&password=a%20b+c&dbname=d").expect("it is a URL");
    assert_eq!(url.password.expect("it has one").expose_secret(), "a b+c");
}

#[test]
fn libpqs_variables_stand_in_for_what_is_left_out() {
    let variables = |name: &str| {
        let value = match name {
            "PGUSER" => "u",
            "PGPASSWORD" => "p",
            "PGHOST" => "h",
            "PGPORT" => "9",
            "PGDATABASE" => "d",
            "PGSSLMODE" => "disable",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let url = DatabaseUrl::read("postgres://", variables).expect("it is a URL");
    assert_eq!((url.user.as_str(), url.database.as_str()), ("u", "d"));
    assert_eq!((url.hosts, url.trust.mode), (vec![Host::Tcp("h".to_owned(), 9)], Mode::Disable));
    let url = DatabaseUrl::read("postgres://v@i:1/e?sslmode=require", variables).expect("it is a URL");
    assert_eq!((url.user.as_str(), url.database.as_str()), ("v", "e"));
    assert_eq!((url.hosts, url.trust.mode), (vec![Host::Tcp("i".to_owned(), 1)], Mode::Require));
}

#[test]
fn options_become_settings() {
    let options = |text: &str| read(&format!("postgres://u@h/d?options={text}")).map(|url| url.options);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let all = options("-c%20a=1%20-cb=2%20--c-d=x%5C%20y").expect("they are settings");
    assert_eq!(all, [pair("a", "1"), pair("b", "2"), pair("c_d", "x y")]);
    assert!(options("-c").is_err() && options("-N").is_err() && options("-c%20a").is_err());
}

#[test]
fn what_is_not_known_is_named() {
    for (text, words) in [
        ("", "not a URL like"),
        ("localhost", "not a URL like"),
        ("mysql://localhost/d", "not a URL like"),
        ("postgres://u:p@localhost:port/d", "not a URL like"),
        ("postgres://u@h/d?sslmod=require", "parameter sslmod is not known"),
        ("postgres://u@h/d?sslmode=on", "sslmode"),
        ("postgres://u:pass?word@h/d", "is written %3F"),
        ("postgres://u@h/d?sslcert=/c", "sslcert and sslkey"),
        ("postgres://u@h/d?channel_binding=require", "channel_binding"),
        ("postgres://u@h/d?target_session_attrs=read-only", "target_session_attrs=read-only"),
        ("postgres://u@h/d?sslmode=verify-ca&sslrootcert=system", "verify-full"),
        ("postgres://u@a,b,c:1,2/d?port=1,2", "hosts and of ports"),
    ] {
        let error = read(text).expect_err(text);
        assert!(error.contains(words), "{text}: {error}");
    }
}
