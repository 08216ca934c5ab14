//! How requests leave: whom they trust, who they say they are, and by way of which proxy.
//!
//! Files are read when the process starts, so that a wrong one is a sentence then and not a failed
//! delivery later. Variables like `HTTP_PROXY` are no part of this: they are ignored.

use std::fmt;
use std::fs;

use reqwest::{Certificate, ClientBuilder, Identity, Proxy};
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

/// How requests leave.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Egress")]
#[allow(clippy::struct_field_names, reason = "a variable is named after its field")]
pub(crate) struct EgressConfig {
    /// File of certificates (PEM) that receivers are trusted by, besides those of the system.
    #[arg(long, env, value_parser = Roots::read)]
    egress_ca_file: Option<Roots>,
    /// File of the certificate (PEM, its intermediates after it) that a receiver gets to see if it asks for one.
    #[arg(long, env, requires = "egress_client_key_file", value_parser = ClientCertificate::read)]
    egress_client_cert_file: Option<ClientCertificate>,
    /// File of that certificate's private key (PEM, not encrypted).
    #[arg(long, env, requires = "egress_client_cert_file", value_parser = ClientKey::read)]
    egress_client_key_file: Option<ClientKey>,
    /// Forward proxy that all deliveries go through, as in `http://proxy:3128`. It resolves the names, so it has
    /// to keep them from private networks: the worker then judges only what a URL itself says.
    #[arg(long, env, hide_env_values = true, value_parser = proxy_url)]
    egress_proxy: Option<SecretString>,
}

/// What is wrong with options that are right by themselves.
#[derive(Debug, thiserror::Error)]
#[error("EGRESS_CLIENT_KEY_FILE cannot be used: it is not the key of the certificate in EGRESS_CLIENT_CERT_FILE")]
pub struct KeyMismatch;

impl EgressConfig {
    /// Checks what can only be said of two options together.
    pub(crate) fn check(&self) -> Result<(), KeyMismatch> {
        let (Some(certificate), Some(key)) = (&self.egress_client_cert_file, &self.egress_client_key_file) else {
            return Ok(());
        };
        let certificates = certificates(certificate.0.as_bytes()).map_err(|_| KeyMismatch)?;
        let key = private_key(key.0.expose_secret()).map_err(|_| KeyMismatch)?;
        CertifiedKey::from_der(certificates, key, &ring::default_provider()).map(|_| ()).map_err(|_| KeyMismatch)
    }

    /// Makes a client leave this way.
    pub(crate) fn apply(&self, mut builder: ClientBuilder) -> Result<ClientBuilder, reqwest::Error> {
        if let Some(roots) = &self.egress_ca_file {
            builder = builder.tls_certs_merge(roots.0.iter().cloned());
        }
        if let (Some(certificate), Some(key)) = (&self.egress_client_cert_file, &self.egress_client_key_file) {
            let both = format!("{}\n{}", certificate.0, key.0.expose_secret());
            builder = builder.identity(Identity::from_pem(both.as_bytes())?);
        }
        if let Some(proxy) = &self.egress_proxy {
            builder = builder.proxy(Proxy::all(proxy.expose_secret())?);
        }
        Ok(builder)
    }

    /// Whether the other end of every connection is the proxy.
    pub(crate) const fn has_proxy(&self) -> bool {
        self.egress_proxy.is_some()
    }
}

/// Certificates that receivers are trusted by.
#[derive(Clone, Debug)]
struct Roots(Vec<Certificate>);

impl Roots {
    fn read(path: &str) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        let mut roots = Vec::new();
        for certificate in certificates(read(path)?.as_bytes())? {
            let root = Certificate::from_der(&certificate).map_err(|_| NOT_CERTIFICATES)?;
            store.add(certificate).map_err(|_| NOT_CERTIFICATES)?;
            roots.push(root);
        }
        Ok(Self(roots))
    }
}

/// A certificate of the worker's own and its intermediates, in PEM.
#[derive(Clone, Debug)]
struct ClientCertificate(String);

impl ClientCertificate {
    fn read(path: &str) -> Result<Self, String> {
        let text = read(path)?;
        certificates(text.as_bytes())?;
        Ok(Self(text))
    }
}

/// A private key in PEM.
#[derive(Clone)]
struct ClientKey(SecretString);

impl ClientKey {
    fn read(path: &str) -> Result<Self, String> {
        let text = read(path)?;
        private_key(&text)?;
        Ok(Self(text.into()))
    }
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ClientKey(…)")
    }
}

const NOT_CERTIFICATES: &str = "the file holds no certificates in PEM, or one that is damaged";

fn read(path: &str) -> Result<String, String> {
    // The kind of the error and not its text, which may repeat the path.
    fs::read_to_string(path).map_err(|error| format!("the file cannot be read: {}", error.kind()))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|_| NOT_CERTIFICATES)?;
    if certificates.is_empty() { Err(NOT_CERTIFICATES.to_owned()) } else { Ok(certificates) }
}

fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, String> {
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes());
    key.map_err(|_| "the file holds no private key in PEM, or one that is encrypted".to_owned())
}

fn proxy_url(text: &str) -> Result<SecretString, String> {
    let is_one = Url::parse(text).is_ok_and(|url| {
        url.scheme() == "http"
            && url.has_host()
            && url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
    });
    if is_one { Ok(text.into()) } else { Err("it is not a URL like http://proxy:3128".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_an_http_url_and_nothing_more() {
        for right in ["http://proxy:3128", "http://proxy:3128/", "http://user:secret@10.0.0.1:8080"] {
            assert!(proxy_url(right).is_ok(), "{right}");
        }
        for wrong in ["", "proxy:3128", "https://proxy:3128", "socks5://proxy:1080", "http://", "http://proxy/path"] {
            assert!(proxy_url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_shown_of_the_configuration_holds_no_secret() {
        let config = EgressConfig {
            egress_client_key_file: Some(ClientKey("hunter2".into())),
            egress_proxy: Some("http://user:hunter2@proxy:3128".into()),
            ..EgressConfig::default()
        };
        assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
    }
}
