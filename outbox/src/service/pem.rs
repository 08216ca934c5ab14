//! Certificates and keys from files in PEM. They are read when a process starts, so that a wrong file is a sentence then
//! and not a failed connection later.

use std::fs;

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// Certificates that others are trusted by.
#[derive(Clone, Debug)]
pub struct Roots(Vec<CertificateDer<'static>>);

impl Roots {
    /// Reads them.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else.
    pub fn read(path: &str) -> Result<Self, String> {
        let roots = Self(certificates(&read(path)?)?);
        let mut store = RootCertStore::empty();
        for root in roots.certificates() {
            store.add(root.clone()).map_err(|_| NOT_CERTIFICATES)?;
        }
        Ok(roots)
    }

    /// The certificates.
    #[must_use]
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0
    }
}

/// A certificate of the process's own and its intermediates.
#[derive(Clone, Debug)]
pub struct ClientCertificate(Vec<CertificateDer<'static>>);

impl ClientCertificate {
    /// Reads it.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else.
    pub fn read(path: &str) -> Result<Self, String> {
        certificates(&read(path)?).map(Self)
    }
}

/// A private key, which nothing shows.
#[derive(Debug)]
pub struct ClientKey(PrivateKeyDer<'static>);

impl ClientKey {
    /// Reads it.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else, or is encrypted.
    pub fn read(path: &str) -> Result<Self, String> {
        private_key(&read(path)?).map(Self)
    }
}

impl Clone for ClientKey {
    fn clone(&self) -> Self {
        Self(self.0.clone_key())
    }
}

impl From<PrivateKeyDer<'static>> for ClientKey {
    fn from(key: PrivateKeyDer<'static>) -> Self {
        Self(key)
    }
}

/// What a server gets to see that asks for a certificate.
pub type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A certificate and its key, if there are both.
#[must_use]
pub fn identity(certificate: Option<&ClientCertificate>, key: Option<&ClientKey>) -> Option<Identity> {
    certificate.zip(key).map(|(certificate, key)| (certificate.0.clone(), key.0.clone_key()))
}

/// Whether certificate and key belong together.
#[must_use]
pub fn is_a_pair((certificates, key): Identity) -> bool {
    CertifiedKey::from_der(certificates, key, &ring::default_provider()).is_ok()
}

const NOT_CERTIFICATES: &str = "the file holds no certificates in PEM, or one that is damaged";

fn read(path: &str) -> Result<String, String> {
    // The kind of the error and not its text, which may repeat the path.
    fs::read_to_string(path).map_err(|error| format!("the file cannot be read: {}", error.kind()))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let certificates = certificates.map_err(|_| NOT_CERTIFICATES)?;
    if certificates.is_empty() { Err(NOT_CERTIFICATES.to_owned()) } else { Ok(certificates) }
}

fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, String> {
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes());
    key.map_err(|_| "the file holds no private key in PEM, or one that is encrypted".to_owned())
}
