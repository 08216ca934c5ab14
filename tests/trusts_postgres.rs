//! Which Postgres is spoken to: password and payloads go to none whose certificate is not vouched for, unless the URL
//! says that this is of no concern. All programs are of one mind.

use std::path::Path;

use harness::certificates::Identity;
use harness::postgres_with_tls::PostgresWithTls;
use harness::processes::{Process, output};
use harness::{Program, Stack, Webhook};

/// How the programs are started: what is in the URL, and whether `DATABASE_CA_FILE` names the authority.
struct Way {
    parameters: &'static str,
    ca_file: bool,
    /// Whether each of three certificates will do: the authority's, the authority's for another name, and one that
    /// nobody vouches for.
    takes: [bool; 3],
}

const fn way(parameters: &'static str, ca_file: bool, takes: [bool; 3]) -> Way {
    Way { parameters, ca_file, takes }
}

/// libpq's meaning, but for the second and the third: what is encrypted is verified, unless it is said otherwise.
const WAYS: [Way; 9] = [
    way("sslmode=disable", false, [true, true, true]),
    way("", true, [true, false, false]),
    way("sslmode=require", true, [true, false, false]),
    way("sslmode=require", false, [false, false, false]),
    way("sslmode=allow", true, [true, true, true]),
    way("sslmode=prefer", true, [true, true, true]),
    way("sslmode=verify-ca", true, [true, true, false]),
    way("sslmode=verify-full", true, [true, false, false]),
    way("", false, [false, false, false]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_program_takes_the_same_certificates() {
    let postgres = PostgresWithTls::start().await;
    let ca_file = postgres.ca_file();
    let migrated = output(Program::Migrate, &[("DATABASE_URL", &postgres.url_with("sslmode=disable"))], &[]).await;
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let identities = [
        postgres.authority.issue("127.0.0.1"),
        postgres.authority.issue("elsewhere.example"),
        Identity::self_signed("127.0.0.1"),
    ];
    for (number, identity) in identities.iter().enumerate() {
        postgres.show(identity).await;
        for way in &WAYS {
            let url = postgres.url_with(way.parameters);
            let context = format!("{} with DATABASE_CA_FILE: {}, certificate {number}", way.parameters, way.ca_file);
            // One by each driver: migrate and the relay have one, the api and the worker the other.
            for program in [Program::Migrate, Program::Api] {
                let taken = takes(program, &url, way.ca_file.then_some(&*ca_file)).await;
                assert_eq!(taken, way.takes[number], "{program:?}, {context}");
            }
        }
    }
}

/// Whether it gets past the certificate.
async fn takes(program: Program, url: &str, ca_file: Option<&Path>) -> bool {
    let mut environment = vec![("DATABASE_URL", url)];
    if let Some(file) = ca_file {
        environment.push(("DATABASE_CA_FILE", file.to_str().expect("a name in UTF-8")));
    }
    if program == Program::Migrate {
        let ended = output(program, &environment, &[]).await;
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success() || said.contains("certificate"), "{said}");
        return ended.status.success();
    }
    environment.extend([
        ("APP_HOST", "127.0.0.1"),
        ("APP_PORT", "0"),
        ("HMAC_SECRET", "a secret of some bytes"),
        ("API_TOKEN", "a token of some bytes too"),
    ]);
    let mut api = Process::start("trusts-postgres-api".to_owned(), program, &environment).await;
    let taken = api.wait_for_one_of(&["ready", "waiting"]).await == "ready";
    assert!(taken || api.log().contains("certificate"), "{}", api.log());
    api.terminate().await;
    taken
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_replaced_by_a_wrong_one_gets_nothing() {
    let postgres = PostgresWithTls::start().await;
    let ca_file = postgres.ca_file();
    let ca_file = ca_file.to_str().expect("a name in UTF-8");
    let builder = Stack::builder().relays(0).workers(0);
    let stack =
        builder.env("DATABASE_CA_FILE", ca_file).start_between(&postgres.servers, harness::Servers::shared().await);
    let stack = stack.await;
    stack.post("{}", "").await;
    postgres.show(&Identity::self_signed("127.0.0.1")).await;
    let end =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'outhook-api%'";
    assert!(stack.count(end).await > 0, "the api has no session");
    for _ in 0..3 {
        let answer = stack.client.try_post(Webhook::to("http://127.0.0.1:9/").body(), None).await;
        assert_eq!(answer.expect("the api answers").status, 503);
    }
    postgres.show(&postgres.authority.issue("127.0.0.1")).await;
    harness::wait_until("the api to accept again", harness::PATIENCE, async || {
        let answer = stack.client.try_post(Webhook::to("http://127.0.0.1:9/").body(), None).await;
        answer.expect("the api answers").status == 202
    })
    .await;
}
