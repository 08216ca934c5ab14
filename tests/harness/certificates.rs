//! Certificates of a test's own, and servers that show them.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncWriteExt, copy, sink};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use uuid::Uuid;

use crate::raw_server::{Connection, RawServer};

/// Issues certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate, in PEM.
    pub certificate: String,
    /// Its key, in PEM.
    pub key: String,
}

impl Authority {
    /// A new one, which nobody trusts yet.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "each is another")]
    pub fn new() -> Self {
        let mut parameters = parameters(&[]);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = new_key();
        let certificate = parameters.self_signed(&key).expect("the parameters can be signed");
        Self { pem: certificate.pem(), issuer: Issuer::new(parameters, key) }
    }

    /// Its own certificate, in PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for this name or address.
    #[must_use]
    pub fn issue(&self, name: &str) -> Identity {
        self.sign(&parameters(&[name]))
    }

    /// The same, whose time is over.
    #[must_use]
    pub fn issue_expired(&self, name: &str) -> Identity {
        let mut parameters = parameters(&[name]);
        parameters.not_after = now() - Duration::DAY;
        self.sign(&parameters)
    }

    /// A certificate whose time has not come.
    #[must_use]
    pub fn issue_early(&self, name: &str) -> Identity {
        let mut parameters = parameters(&[name]);
        (parameters.not_before, parameters.not_after) = (now() + Duration::DAY, now() + Duration::DAY * 2);
        self.sign(&parameters)
    }

    /// A certificate for no host at all.
    #[must_use]
    pub fn issue_nameless(&self) -> Identity {
        self.sign(&parameters(&[]))
    }

    fn sign(&self, parameters: &CertificateParams) -> Identity {
        let key = new_key();
        let certificate = parameters.signed_by(&key, &self.issuer).expect("the parameters can be signed");
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.pem)).expect("it is a certificate");
        roots
    }
}

impl Identity {
    /// A certificate for this name or address that nobody vouches for but itself.
    #[must_use]
    pub fn self_signed(name: &str) -> Self {
        let key = new_key();
        let certificate = parameters(&[name]).self_signed(&key).expect("the parameters can be signed");
        Self { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// The same that says it is an authority's, as those that `openssl req -x509` makes.
    #[must_use]
    pub fn authoritys_own(name: &str) -> Self {
        let mut parameters = parameters(&[name]);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = new_key();
        let certificate = parameters.self_signed(&key).expect("the parameters can be signed");
        Self { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// A server that shows this certificate and, if an authority is named, asks for one of its. It answers
    /// every request with 200.
    pub async fn serve(&self, clients: Option<&Authority>) -> RawServer {
        self.serve_after(std::time::Duration::ZERO, clients).await
    }

    /// The same, each answer after this time.
    pub async fn serve_after(&self, pause: std::time::Duration, clients: Option<&Authority>) -> RawServer {
        let acceptor = self.acceptor(clients, &[]);
        RawServer::start(move |connection| {
            let acceptor = acceptor.clone();
            async move {
                let mut connection = accept(connection, &acceptor).await?;
                connection.request().await?;
                sleep(pause).await;
                connection.stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await?;
                connection.stream.shutdown().await
            }
        })
        .await
    }

    pub(crate) fn acceptor(&self, clients: Option<&Authority>, protocols: &[&str]) -> TlsAcceptor {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().expect("ring knows them");
        let builder = match clients {
            Some(authority) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(authority.roots().into(), provider);
                builder.with_client_cert_verifier(verifier.build().expect("there is a root"))
            }
            None => builder.with_no_client_auth(),
        };
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("it is a key");
        let config = builder.with_single_cert(vec![certificate(&self.certificate)], key);
        let mut config = config.expect("the key is the certificate's");
        config.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// The handshake. After one that failed it stays until the other end is gone: a reset might overtake the alert.
async fn accept(connection: Connection, acceptor: &TlsAcceptor) -> io::Result<Connection<TlsStream<TcpStream>>> {
    let mut handshake = None;
    let rest = connection.with(|stream| handshake = Some(acceptor.accept(stream).into_fallible()));
    match handshake.expect("it was put there just now").await {
        Ok(stream) => Ok(rest.with(|()| stream)),
        Err((error, mut stream)) => {
            stream.shutdown().await?;
            copy(&mut stream, &mut sink()).await?;
            Err(error)
        }
    }
}

/// Valid from yesterday until tomorrow, whatever little is wrong with clocks.
fn parameters(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut parameters = CertificateParams::new(names).expect("they are names or addresses");
    (parameters.not_before, parameters.not_after) = (now() - Duration::DAY * 2, now() + Duration::DAY);
    // Of its own: with the name of another authority it would be taken for one whose key is wrong.
    parameters.distinguished_name.push(DnType::CommonName, Uuid::new_v4().to_string());
    parameters
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("there is randomness")
}

fn now() -> OffsetDateTime {
    outbox::service::clock::now()
}

fn certificate(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("it is a certificate")
}

/// Several texts in PEM as one, which is a bundle.
#[must_use]
pub fn bundle(texts: &[&str]) -> String {
    texts.iter().fold(String::new(), |mut bundle, text| {
        let _ = writeln!(bundle, "{text}");
        bundle
    })
}
