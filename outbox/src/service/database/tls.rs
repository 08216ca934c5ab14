//! Whether a connection to Postgres is encrypted, and whose certificate it takes.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::DatabaseError;
use crate::service::pem;

/// `sslmode`, with libpq's meaning (Postgres manual, "SSL Mode Descriptions") but for two: `require` verifies as well,
/// and so does what is encrypted without an `sslmode`. See docs/decisions/0020.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    Disable,
    Allow,
    Prefer,
    /// The URL says nothing.
    #[default]
    Unsaid,
    Require,
    VerifyCa,
    VerifyFull,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "disable" => Self::Disable,
            "allow" => Self::Allow,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => {
                return Err("its sslmode is none of disable, allow, prefer, require, verify-ca, verify-full".to_owned());
            }
        })
    }
}

/// How one try to connect is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encryption {
    Off,
    /// Whoever the server is.
    Unverified,
    /// An authority vouches for the server, under whatever name.
    Chain,
    /// An authority vouches for the server under the name that was connected to.
    Full,
}

impl Mode {
    /// What is tried, one after the other.
    pub(super) fn tries(self) -> &'static [Encryption] {
        use Encryption::{Chain, Full, Off, Unverified};
        match self {
            Self::Disable => &[Off],
            Self::Allow => &[Off, Unverified],
            Self::Prefer => &[Unverified, Off],
            Self::Unsaid => &[Full, Off],
            Self::Require | Self::VerifyFull => &[Full],
            Self::VerifyCa => &[Chain],
        }
    }
}

/// The authorities that servers are trusted by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Roots {
    /// Those that this machine trusts.
    System,
    /// Those of a file of certificates (PEM).
    File(PathBuf),
}

impl From<String> for Roots {
    /// `system` is libpq's word.
    fn from(text: String) -> Self {
        if text == "system" { Self::System } else { Self::File(text.into()) }
    }
}

/// What the URL says of all that.
#[derive(Clone, Debug)]
pub(super) struct Trust {
    pub mode: Mode,
    /// Those of the system when it says nothing.
    pub roots: Option<Roots>,
    /// Files of the certificate that the server gets to see, and of its key (PEM).
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Trust {
    /// Refuses what would look safe and is not.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.mode == Mode::VerifyCa && self.roots == Some(Roots::System) {
            return Err("sslmode=verify-ca with the system's authorities takes anybody's certificate: use verify-full"
                .to_owned());
        }
        let read = self.root_file().map(certificates).transpose().and(self.identity.as_ref().map(identity).transpose());
        read.map(drop).map_err(|error| error.to_string())
    }

    /// Refuses to take anybody's certificate where some authority was asked for.
    pub(super) fn needs_no_more(&self) -> Result<(), DatabaseError> {
        match (self.mode, self.root_file()) {
            (Mode::VerifyCa, None) => Err(DatabaseError::NoAuthority),
            _ => Ok(()),
        }
    }

    /// The file of authorities, if there is one.
    pub(super) fn root_file(&self) -> Option<&Path> {
        match &self.roots {
            Some(Roots::File(file)) => Some(file),
            _ => None,
        }
    }

    /// TLS for one try. The files are read each time: a renewed certificate is used from the next connection on.
    pub(super) fn client_config(&self, encryption: Encryption) -> Result<ClientConfig, DatabaseError> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("ring speaks the default TLS versions");
        let builder = if encryption == Encryption::Full {
            builder.with_root_certificates(self.store()?)
        } else {
            let authorities = match encryption {
                Encryption::Chain => Some(self.authorities(Arc::clone(&provider))?),
                _ => None,
            };
            let verifier = Arc::new(Lenient { authorities, provider });
            builder.dangerous().with_custom_certificate_verifier(verifier)
        };
        match &self.identity {
            None => Ok(builder.with_no_client_auth()),
            Some(files) => {
                let (certificates, key) = identity(files)?;
                builder.with_client_auth_cert(certificates, key).map_err(|error| unreadable(&files.0, &error))
            }
        }
    }

    fn authorities(&self, provider: Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, DatabaseError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(self.store()?), provider).build();
        verifier.map_err(|_| DatabaseError::NoAuthority)
    }

    fn store(&self) -> Result<RootCertStore, DatabaseError> {
        let mut store = RootCertStore::empty();
        let certificates = match self.root_file() {
            Some(file) => certificates(file)?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        store.add_parsable_certificates(certificates);
        Ok(store)
    }
}

/// For clap: a file of certificates.
pub(super) fn certificate_file(text: &str) -> Result<PathBuf, String> {
    pem::Roots::read(text).map(|_| text.into())
}

/// The certificates of a file.
pub(super) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, DatabaseError> {
    let roots = pem::Roots::read(&file.to_string_lossy()).map_err(|error| unreadable(file, &error))?;
    Ok(roots.certificates().to_vec())
}

fn identity((certificate, key): &(PathBuf, PathBuf)) -> Result<pem::Identity, DatabaseError> {
    let read = pem::ClientCertificate::read(&certificate.to_string_lossy());
    let certificates = read.map_err(|error| unreadable(certificate, &error))?;
    let key = pem::ClientKey::read(&key.to_string_lossy()).map_err(|error| unreadable(key, &error))?;
    Ok(pem::identity(Some(&certificates), Some(&key)).expect("there are both"))
}

fn unreadable(file: &Path, error: &impl ToString) -> DatabaseError {
    DatabaseError::Certificate { file: file.to_owned(), error: error.to_string() }
}

/// Takes a server under any name: whom these authorities vouch for, or anybody.
#[derive(Debug)]
struct Lenient {
    authorities: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(authorities) = &self.authorities else { return Ok(ServerCertVerified::assertion()) };
        match authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // Comes after everything else was found right.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
