//! One job an idempotency key, however often and however concurrently it comes.

use futures_util::future::join_all;
use harness::client::{body, send};
use harness::{PATIENCE, Stack};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_equal_requests_at_once_are_one_job() {
    let stack = Stack::builder("fifty_equal_requests").start().await;
    let text = body(r#"{"order":1}"#, &stack.receiver_url(""), "");
    let requests = (0..50).map(|_| send(stack.client.request(text.clone()).header("Idempotency-Key", "order-1")));
    let responses = join_all(requests).await;

    let mut statuses = Vec::new();
    let mut ids = std::collections::HashSet::new();
    for response in responses {
        let response = response.expect("the api answers");
        statuses.push(response.status);
        ids.insert(response.job_id());
    }
    statuses.sort_unstable();
    assert_eq!((&statuses[..49], statuses[49]), (&[200; 49][..], 202));
    assert_eq!(ids.len(), 1);
    stack.client.remember(ids.into_iter().next().expect("there is one"), Some(r#"{"order":1}"#));

    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(stack.count("SELECT count(*) FROM webhook_jobs").await, 1);
    assert_eq!(stack.receiver.received().len(), 1);
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_key_answers_its_job_or_a_conflict() {
    let mut stack = Stack::builder("a_known_key").start().await;
    let text = body("{}", &stack.receiver_url(""), "");
    let keyed = |stack: &Stack, text: &str| send(stack.client.request(text).header("Idempotency-Key", "k"));
    let first = keyed(&stack, &text).await.expect("the api answers");
    assert_eq!(first.status, 202);
    stack.client.remember(first.job_id(), Some("{}"));
    stack.wait_until_drained(PATIENCE).await;

    let conflict = keyed(&stack, &body("[]", &stack.receiver_url(""), "")).await.expect("the api answers");
    assert_eq!((conflict.status, &conflict.json()["error"]["code"]), (409, &"idempotency_conflict".into()));

    // The key outlives the process and the job.
    stack.apis[0].kill().await;
    stack.apis.clear();
    stack.start_api().await;
    let again = keyed(&stack, &text).await.expect("the api answers");
    assert_eq!((again.status, again.job_id()), (200, first.job_id()));
    assert_eq!(again.json()["status"], "success", "it says how far the job is");
    assert_eq!(stack.receiver.received().len(), 1);
    stack.finish().await;
}
