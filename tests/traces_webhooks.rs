//! A webhook is one trace, through all processes and attempts, and the receiver's request is part of it. What a caller has
//! begun is continued, and made only if the caller makes it. No trace says where anything goes or what it carries, and a
//! collector delays nothing, whatever it does.

mod useless_collectors;

use harness::client::send;
use harness::collector::{Collector, Span};
use harness::{PATIENCE, Stack, StackBuilder, Webhook, wait_until};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use rustix::process::Signal;
use uuid::Uuid;

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const CALLERS: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn traced(collector: &Collector) -> StackBuilder {
    Stack::builder().env(ENDPOINT, &collector.url())
}

/// Posts a webhook as part of a caller's trace, under a key that goes by the receiver's query.
async fn post_in(stack: &Stack, traceparent: &str, query: &str) -> Uuid {
    let request = stack.client.request(stack.webhook(query)).header("traceparent", traceparent);
    let request = if query.is_empty() { request } else { request.header("idempotency-key", query) };
    let id = send(request).await.expect("the api answers").job_id();
    stack.client.remember(id, Some("{}"));
    id
}

/// The traceparents that the receiver got for a job.
fn received(stack: &Stack, job_id: Uuid) -> Vec<String> {
    let deliveries = stack.deliveries(job_id);
    deliveries.iter().map(|it| it.header("traceparent").expect("there always is one").to_owned()).collect()
}

/// The one span that does this for this attempt.
fn the<'a>(spans: &'a [Span], verb: &str, attempt: &str) -> &'a Span {
    let found: Vec<&Span> =
        spans.iter().filter(|span| span.verb() == verb && span.get("outhook.attempt") == attempt).collect();
    assert_eq!(found.len(), 1, "{verb} of attempt {attempt:?} in {spans:#?}");
    found[0]
}

/// Whether what a worker does in this attempt is under what the relay published for it, and that under `accepted`.
fn assert_attempt(spans: &[Span], attempt: &str, accepted: &str) {
    let publish = the(spans, "publish", attempt);
    assert_eq!((publish.service(), publish.kind), ("outhook-relay", SpanKind::Producer));
    assert_eq!(publish.parent_id, accepted, "{publish:#?}");
    for verb in ["claim", "POST", "settle"] {
        let span = the(spans, verb, attempt);
        assert_eq!((span.service(), span.kind), ("outhook-worker", SpanKind::Client), "{span:#?}");
        assert_eq!(span.parent_id, publish.span_id, "{span:#?}");
        assert!(span.time.0 <= span.time.1, "{span:#?}");
    }
    let (claim, request, settle) =
        (the(spans, "claim", attempt), the(spans, "POST", attempt), the(spans, "settle", attempt));
    assert!(claim.time.1 <= request.time.0 && request.time.1 <= settle.time.0, "one after the other: {spans:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_is_one_trace_with_all_its_attempts() {
    let collector = Collector::start().await;
    let stack = traced(&collector)
        .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20of%20spans,x-tenant=blue")
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        .start()
        .await;
    let id = stack.post("{}", "?fail_times=1").await.job_id;
    stack.wait_until_drained(PATIENCE).await;
    let spans = collector.wait_for(id, 9).await;
    assert_eq!(spans.len(), 9, "{spans:#?}");

    let trace_id = id.simple().to_string();
    for span in &spans {
        assert_eq!(span.trace_id, trace_id, "nobody else began it, so it bears the job's id");
        assert_eq!(span.resource["deployment.environment.name"], "test");
    }
    let accept = the(&spans, "POST", "");
    assert_eq!(
        (accept.name.as_str(), accept.kind, accept.parent_id.as_str()),
        ("POST /webhooks", SpanKind::Server, "")
    );
    assert_eq!((accept.service(), accept.get("http.response.status_code")), ("outhook-api", "202"));
    assert_attempt(&spans, "1", &accept.span_id);
    assert_attempt(&spans, "2", &accept.span_id);

    let (first, second) = (the(&spans, "POST", "1"), the(&spans, "POST", "2"));
    assert_eq!(received(&stack, id), [first.traceparent(), second.traceparent()]);
    assert_eq!((first.get("http.response.status_code"), first.get("error.type"), first.failed), ("500", "500", true));
    assert_eq!((second.get("http.response.status_code"), second.get("error.type"), second.failed), ("200", "", false));
    assert_eq!(the(&spans, "settle", "1").get("outhook.outcome"), "pending");
    assert_eq!(the(&spans, "settle", "2").get("outhook.outcome"), "success");
    let publish = the(&spans, "publish", "1");
    assert_eq!((publish.get("messaging.system"), publish.get("messaging.operation.type")), ("rabbitmq", "send"));

    for request in collector.requests() {
        assert_eq!(request.headers["authorization"], "Bearer of spans");
        assert_eq!(
            (&request.headers["x-tenant"], &request.headers["content-type"]),
            (&"blue".parse().expect("a value"), &"application/x-protobuf".parse().expect("a value"))
        );
    }
    // It counts when the collector has answered.
    let exported = async || stack.workers[0].counter("outhook_spans_exported_total").await >= 6.0;
    wait_until("its spans to be counted", PATIENCE, exported).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callers_trace_is_continued() {
    let collector = Collector::start().await;
    let stack = traced(&collector).start().await;
    let id = post_in(&stack, CALLERS, "?one=1").await;
    let spans = collector.wait_for(id, 5).await;
    assert!(spans.iter().all(|span| span.trace_id == CALLERS[3..35]), "{spans:#?}");
    let accept = the(&spans, "POST", "");
    assert_eq!(accept.parent_id, CALLERS[36..52]);
    assert_attempt(&spans, "1", &accept.span_id);
    assert_eq!(received(&stack, id), [the(&spans, "POST", "1").traceparent()]);

    // Repeated in another trace: that has the repetition, and the webhook stays where it is.
    let other = CALLERS.replace("4bf9", "5bf9");
    assert_eq!(post_in(&stack, &other, "?one=1").await, id);
    let spans = collector.wait_for(id, 6).await;
    let repeated = spans.last().expect("there are six");
    assert_eq!((repeated.trace_id.as_str(), repeated.get("http.response.status_code")), (&other[3..35], "200"));
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_sampled_is_not_exported_by_anybody() {
    let collector = Collector::start().await;
    let stack = traced(&collector)
        .env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
        .env("OTEL_TRACES_SAMPLER_ARG", "0")
        .start()
        .await;
    let unsampled = format!("{}00", &CALLERS[..53]);
    let (theirs, nobodys) = (post_in(&stack, &unsampled, "").await, stack.post("{}", "").await.job_id);
    stack.enqueue(&stack.receiver_url(""), "{}", 1).await;
    stack.wait_until_drained(PATIENCE).await;
    // Sampled, and behind the others in every queue.
    let sampled = post_in(&stack, CALLERS, "").await;
    collector.wait_for(sampled, 5).await;

    let spans = collector.spans();
    assert!(spans.iter().all(|span| span.get("outhook.job_id") == sampled.to_string()), "{spans:#?}");
    let [theirs, nobodys] = [theirs, nobodys].map(|id| received(&stack, id).remove(0));
    assert!(theirs.starts_with(&unsampled[..36]) && theirs.ends_with("-00"), "{theirs}");
    assert!(nobodys.ends_with("-00"), "{nobodys}");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_from_sql_is_one_trace_too() {
    let collector = Collector::start().await;
    let stack = traced(&collector).start().await;
    stack.enqueue(&stack.receiver_url("?fail_times=1"), "{}", 1).await;
    stack.wait_until_drained(PATIENCE).await;
    let id: Uuid =
        sqlx::query_scalar("SELECT id FROM webhook_jobs").fetch_one(stack.pool()).await.expect("there is one");
    let spans = collector.wait_for(id, 8).await;
    assert!(spans.iter().all(|span| span.trace_id == id.simple().to_string()), "{spans:#?}");
    assert_attempt(&spans, "1", "");
    assert_attempt(&spans, "2", "");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_trace_says_where_a_webhook_goes_or_what_it_carries() {
    let collector = Collector::start().await;
    let stack = traced(&collector).env("MAX_RETRIES", "1").start().await;
    let payload = r#"{"card":"payload-4711"}"#;
    let receiver = stack.receiver_url("?query=secret-4712");
    let host = receiver.split('/').nth(2).expect("a URL has a host").to_owned();
    let (refused, unknown) = ("http://10.11.12.13/path-4713", "http://receiver-4714.invalid/path-4713");
    let mut jobs = Vec::new();
    // From SQL, since the api would not take it.
    stack.enqueue(refused, payload, 1).await;
    for url in [&receiver, unknown] {
        let webhook = Webhook::to(url).payload(payload).header("X-Secret", "header-4715").ordering_key("key-4716");
        jobs.push(stack.client.post_webhook(&webhook).await.job_id);
    }
    stack.wait_until_drained(PATIENCE).await;
    for id in jobs {
        collector.wait_for(id, 5).await;
    }
    wait_until("the refused one's spans", PATIENCE, async || collector.spans().len() >= 14).await;

    let failures: Vec<String> = collector.spans().iter().map(|span| span.get("error.type").to_owned()).collect();
    assert!(failures.contains(&"target_refused".to_owned()), "{failures:?}");
    assert!(failures.contains(&"name_not_resolved".to_owned()), "{failures:?}");
    for request in collector.requests() {
        let text = String::from_utf8_lossy(&request.body);
        for word in ["http:", "hook?", "10.11.12.13", "-471", &host, stack.database_url()] {
            assert!(!text.contains(word), "a request to the collector holds {word}");
        }
    }
    stack.finish_unheard().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_collectors_token_is_read_anew() {
    let collector = Collector::start().await;
    let directory = tempfile::tempdir().expect("there is room for temporary files");
    let file = directory.path().join("headers");
    let write = |text: &str| std::fs::write(&file, text).expect("there is room for a file");
    write("authorization=first\n");
    let path = file.to_str().expect("the path is text");
    let stack = traced(&collector).env("OTEL_EXPORTER_OTLP_HEADERS_FILE", path).start().await;
    let spans = collector.wait_for(stack.post("{}", "").await.job_id, 5).await;
    assert_eq!(spans.len(), 5);
    assert!(collector.requests().iter().all(|request| request.headers["authorization"] == "first"));

    write("authorization=second\n");
    let before = collector.requests().len();
    for process in [&stack.apis[0], &stack.relays[0], &stack.workers[0]] {
        process.signal(Signal::HUP);
        let done = r#"outhook_reloads_total{outcome="done"}"#;
        wait_until("the file to be read anew", PATIENCE, async || process.series(done).await > 0.0).await;
    }
    collector.wait_for(stack.post("{}", "").await.job_id, 5).await;
    assert!(collector.requests()[before..].iter().all(|request| request.headers["authorization"] == "second"));
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turned_off_nothing_is_exported() {
    let collector = Collector::start().await;
    let stack = traced(&collector).env("OTEL_SDK_DISABLED", "true").start().await;
    let id = post_in(&stack, CALLERS, "").await;
    stack.wait_until_drained(PATIENCE).await;
    assert!(received(&stack, id)[0].starts_with(&CALLERS[..36]), "the caller's trace is passed on all the same");
    // What there was would be sent at the end at the latest.
    stack.finish().await;
    assert_eq!(collector.requests().len(), 0);
}
