//! The caller of the api: signs, posts, and remembers what it was promised.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use sha2::Sha256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

/// A webhook that was answered with 202.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its job.
    pub job_id: Uuid,
    /// The bytes that must arrive, if known.
    pub payload: Option<Vec<u8>>,
}

/// An answer of the api.
#[derive(Clone, Debug)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, as it came.
    pub body: String,
}

impl Response {
    /// The body as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}, in: {}", self.body))
    }

    /// The job that the body names.
    #[must_use]
    pub fn job_id(&self) -> Uuid {
        let body = self.json();
        let id = body["job_id"].as_str().unwrap_or_else(|| panic!("no job_id in {body}"));
        id.parse().expect("a job id is a UUID")
    }
}

/// A job as `GET /webhooks/{id}` shows it.
pub type Job = Value;

/// A signing client. Clones share what was accepted.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    http: reqwest::Client,
    url: String,
    hmac_secret: String,
    api_token: String,
    accepted: Mutex<Vec<Accepted>>,
}

impl Client {
    pub(crate) fn new(url: String, hmac_secret: String, api_token: String) -> Self {
        Self(Arc::new(Inner { http: http_client(), url, hmac_secret, api_token, accepted: Mutex::default() }))
    }

    /// Where the api is, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// The token of `GET /webhooks/{id}`.
    #[must_use]
    pub fn api_token(&self) -> &str {
        &self.0.api_token
    }

    /// The value of `X-Signature` for a body.
    #[must_use]
    pub fn sign(&self, body: &[u8]) -> String {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(self.0.hmac_secret.as_bytes()).expect("HMAC takes keys of any length");
        mac.update(body);
        format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
    }

    /// A signed `POST /webhooks` with this body, to be changed and sent.
    pub fn request(&self, body: impl Into<Vec<u8>>) -> RequestBuilder {
        let body = body.into();
        self.unsigned_request().header("X-Signature", self.sign(&body)).body(body)
    }

    /// A `POST /webhooks` without signature and body.
    pub fn unsigned_request(&self) -> RequestBuilder {
        self.0.http.post(format!("{}/webhooks", self.0.url)).header("Content-Type", "application/json")
    }

    /// Posts a body, signed. The error is one of the connection: nobody knows whether it was accepted.
    pub async fn try_post(&self, body: String, payload: Option<&str>) -> Result<Response, reqwest::Error> {
        let response = send(self.request(body)).await?;
        if response.status == 202 {
            self.remember(response.job_id(), payload);
        }
        Ok(response)
    }

    /// Posts a webhook that must be accepted. `payload` is JSON text.
    pub async fn post(&self, payload: &str, client_url: &str) -> Accepted {
        self.post_body(body(payload, client_url, ""), payload).await
    }

    /// The same with the whole body, in which the payload stands.
    pub(crate) async fn post_body(&self, body: String, payload: &str) -> Accepted {
        let response = self.try_post(body, Some(payload)).await.expect("the api answers");
        assert_eq!(response.status, 202, "{}", response.body);
        Accepted { job_id: response.job_id(), payload: Some(delivered(payload)) }
    }

    /// Remembers a webhook as accepted, for the invariants. `payload` is JSON text, when known.
    pub fn remember(&self, job_id: Uuid, payload: Option<&str>) {
        let accepted = Accepted { job_id, payload: payload.map(delivered) };
        self.0.accepted.lock().unwrap_or_else(PoisonError::into_inner).push(accepted);
    }

    /// All that was accepted so far.
    #[must_use]
    pub fn accepted(&self) -> Vec<Accepted> {
        self.0.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A GET of this path, without a token.
    pub fn get(&self, path: &str) -> RequestBuilder {
        self.0.http.get(format!("{}{path}", self.0.url))
    }

    /// A `DELETE /webhooks/{id}`, without a token.
    pub fn delete(&self, id: Uuid) -> RequestBuilder {
        self.0.http.delete(format!("{}/webhooks/{id}", self.0.url))
    }

    /// A request with the token.
    pub fn authorized(&self, method: Method, path: &str) -> RequestBuilder {
        self.0.http.request(method, format!("{}{path}", self.0.url)).bearer_auth(&self.0.api_token)
    }

    /// What the api says to these bytes, until it closes the connection.
    pub async fn raw(&self, request: &[u8]) -> String {
        let address = self.0.url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).await.expect("the api listens");
        // It may have closed before it has read all of them.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).expect("the answer is text")
    }

    /// Asks for a job to be cancelled.
    pub async fn cancel(&self, id: Uuid) -> Response {
        send(self.delete(id).bearer_auth(&self.0.api_token)).await.expect("the api answers")
    }

    /// A job, by `GET /webhooks/{id}`.
    pub async fn job(&self, id: Uuid) -> Job {
        let request = self.get(&format!("/webhooks/{id}")).bearer_auth(&self.0.api_token);
        let response = send(request).await.expect("the api answers");
        assert_eq!(response.status, 200, "{}", response.body);
        response.json()
    }
}

/// A client that asks nobody but whom it is told to, and waits for 30 s at the most.
#[must_use]
pub fn http_client() -> reqwest::Client {
    // Fails when it was done before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build();
    client.expect("a client without special wishes can be built")
}

/// The text behind a URL.
pub async fn fetch(url: &str) -> String {
    send(http_client().get(url)).await.expect("the URL answers").body
}

/// Posts `{}` with these headers and returns the status.
pub async fn post_raw(url: &str, headers: &[(&str, &str)]) -> u16 {
    let request = headers.iter().fold(http_client().post(url), |request, (name, value)| request.header(*name, *value));
    send(request.body("{}")).await.expect("the URL answers").status
}

/// Sends a request and reads the whole answer.
pub async fn send(request: RequestBuilder) -> Result<Response, reqwest::Error> {
    let response = request.send().await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Ok(Response { status, headers, body: response.text().await? })
}

/// The body of a `POST /webhooks` where a test is about how it is written: the payload's JSON text as it is, and more fields
/// as in `,"max_attempts":3`. For all others there is [`crate::Webhook`].
#[must_use]
pub fn body(payload: &str, client_url: &str, fields: &str) -> String {
    format!(r#"{{"payload":{payload},"client_url":{}{fields}}}"#, Value::from(client_url))
}

/// What arrives: the contents of a string, and the very text of anything else.
fn delivered(payload: &str) -> Vec<u8> {
    serde_json::from_str::<String>(payload).unwrap_or_else(|_| payload.to_owned()).into_bytes()
}
