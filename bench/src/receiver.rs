//! The endpoint that webhooks are delivered to: hyper on a thread of its own, which remembers when each job
//! arrived and nothing else.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::sync::oneshot;
use uuid::Uuid;

/// How often it is looked whether all have arrived; the moment of an arrival is exact all the same.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// What is answered to a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    /// 200, and the job's arrival is kept.
    Deliveries,
    /// 202 with a job's id, as the api does: to measure the load generator alone.
    Api,
}

/// A delivery.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub job_id: Uuid,
    pub at: Instant,
}

#[derive(Default)]
struct Shared {
    arrivals: Mutex<Vec<Arrival>>,
    /// Arrivals; what is waited for, without the lock.
    count: AtomicUsize,
    /// Requests that name no job.
    strange: AtomicUsize,
}

/// An endpoint that listens until it is dropped.
pub(crate) struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Its end is the thread's end.
    _running: oneshot::Sender<()>,
}

impl Receiver {
    pub(crate) async fn start(role: Role) -> anyhow::Result<Self> {
        let (running, stopped) = oneshot::channel();
        let (listening, listens) = oneshot::channel();
        let shared = Arc::new(Shared::default());
        let kept = Arc::clone(&shared);
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("receiver".to_owned()).spawn(move || {
            runtime.block_on(async {
                let bound = TcpListener::bind("127.0.0.1:0").await;
                let address = bound
                    .as_ref()
                    .map_err(ToString::to_string)
                    .and_then(|it| it.local_addr().map_err(|error| error.to_string()));
                let _ = listening.send(address);
                if let Ok(listener) = bound {
                    tokio::select! {
                        () = accept(listener, kept, role) => {}
                        _ = stopped => {}
                    }
                }
            });
        })?;
        let address = listens.await?.map_err(anyhow::Error::msg).context("the receiver cannot listen")?;
        Ok(Self { address, shared, _running: running })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What jobs are delivered to.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// Deliveries since the last [`Self::take`].
    pub(crate) fn count(&self) -> usize {
        self.shared.count.load(Ordering::Relaxed)
    }

    /// Waits until so many deliveries have arrived.
    pub(crate) async fn wait_for(&self, count: usize, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        while self.count() < count {
            let arrived = self.count();
            ensure!(Instant::now() < deadline, "only {arrived} of {count} deliveries arrived within {limit:?}");
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }

    /// Takes all arrivals, in their order, and forgets them.
    pub(crate) fn take(&self) -> anyhow::Result<Vec<Arrival>> {
        let strange = self.shared.strange.swap(0, Ordering::Relaxed);
        ensure!(strange == 0, "{strange} deliveries named no job");
        self.shared.count.store(0, Ordering::Relaxed);
        Ok(std::mem::take(&mut *self.shared.arrivals.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, role: Role) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve(stream, Arc::clone(&shared), role));
            }
            // Out of file descriptors, most likely: wait for some to be given back.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>, role: Role) {
    // Small answers must not wait for the sender's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move {
            Ok::<_, Infallible>(match role {
                Role::Deliveries => deliver(request, &shared).await,
                Role::Api => pretend(request).await,
            })
        }
    });
    // An error here is the other side's end, which is its own affair.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn deliver(request: Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    let at = Instant::now();
    let job_id = request.headers().get("x-webhook-job-id").and_then(|id| Uuid::try_parse_ascii(id.as_bytes()).ok());
    let whole = request.into_body().collect().await.is_ok();
    match job_id {
        Some(job_id) if whole => {
            shared.arrivals.lock().unwrap_or_else(PoisonError::into_inner).push(Arrival { job_id, at });
            shared.count.fetch_add(1, Ordering::Relaxed);
        }
        _ => {
            shared.strange.fetch_add(1, Ordering::Relaxed);
        }
    }
    Response::new(Full::new(Bytes::from_static(b"ok")))
}

async fn pretend(request: Request<Incoming>) -> Response<Full<Bytes>> {
    const BODY: &[u8] = br#"{"job_id":"01890000-0000-7000-8000-000000000000","status":"pending","message":"job accepted and queued for processing"}"#;
    let _ = request.into_body().collect().await;
    let mut response = Response::new(Full::new(Bytes::from_static(BODY)));
    *response.status_mut() = StatusCode::ACCEPTED;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
