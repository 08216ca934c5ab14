//! Which receivers' certificates are trusted, and why one is not, in words that name no host.

use std::error::Error;
use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
};
use webpki::EndEntityCert;

/// Why there is no TLS to be had at all.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// Neither the system nor `EGRESS_CA_FILE` has certificates.
    #[error("no receiver can be trusted: install the system's CA certificates, or set EGRESS_CA_FILE: {0}")]
    NoRoots(#[from] rustls::client::VerifierBuilderError),
    /// The client certificate cannot be used.
    #[error("EGRESS_CLIENT_CERT_FILE: {0}")]
    ClientCertificate(#[from] rustls::Error),
}

/// How receivers are spoken to: they are trusted by the system's authorities and by `roots`, and get to see `identity` if
/// they ask for a certificate.
pub(crate) fn client_config(
    roots: &[CertificateDer<'static>],
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    http2: bool,
) -> Result<ClientConfig, TlsSetupError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier::new(roots, Arc::clone(&provider))?;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        Some((certificates, key)) => builder.with_client_auth_cert(certificates, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = if http2 { vec![b"h2".to_vec()] } else { Vec::new() };
    config.alpn_protocols.push(b"http/1.1".to_vec());
    Ok(config)
}

/// Decides as `webpki` does, but for one kind of certificate: one that says it is an authority's own is no server's,
/// unless exactly it is trusted. `openssl req -x509` makes them like this.
#[derive(Debug)]
struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
}

impl Verifier {
    fn new(
        trusted: &[CertificateDer<'static>],
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, rustls::client::VerifierBuilderError> {
        let mut store = RootCertStore::empty();
        // What of the system's cannot be read is nobody's certificate.
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        store.add_parsable_certificates(trusted.iter().cloned());
        let webpki = WebPkiServerVerifier::builder_with_provider(store.into(), provider).build()?;
        Ok(Self { webpki, trusted: trusted.to_vec() })
    }
}

/// What `webpki`'s own errors do not tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Distrust {
    #[error("the certificate is self-signed: EGRESS_CA_FILE may name it")]
    SelfSigned,
    #[error("the certificate is an authority's own, not a server's: EGRESS_CA_FILE may name exactly it")]
    AuthoritysOwn,
}

impl Distrust {
    fn error(self) -> rustls::Error {
        CertificateError::Other(OtherError(Arc::new(self))).into()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // Comes after its time was checked, and before everything else.
            Err(error) if is_ca_as_server(&error) => {
                if !self.trusted.contains(end_entity) {
                    return Err(Distrust::AuthoritysOwn.error());
                }
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) if is_self_signed(end_entity) => {
                Err(Distrust::SelfSigned.error())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        task: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(task, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        task: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(task, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

fn is_ca_as_server(error: &rustls::Error) -> bool {
    let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(other))) = error else { return false };
    matches!(other.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

fn is_self_signed(certificate: &CertificateDer<'_>) -> bool {
    EndEntityCert::try_from(certificate).is_ok_and(|certificate| certificate.issuer() == certificate.subject())
}

/// Why TLS failed, if that was it. rustls's own text names hosts, and it hides its errors in those of the streams below it,
/// one in another.
pub(crate) fn describe(cause: &(dyn Error + 'static)) -> Option<String> {
    match cause.downcast_ref::<io::Error>() {
        Some(io) => describe(io.get_ref()?),
        None => cause.downcast_ref().map(reason),
    }
}

fn reason(error: &rustls::Error) -> String {
    let text = match error {
        rustls::Error::InvalidCertificate(reason) => match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "the certificate has expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the certificate is not valid yet"
            }
            CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
                "the certificate names no host: it needs a subjectAltName"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the certificate is for another name"
            }
            CertificateError::UnknownIssuer => "the certificate's issuer is not trusted",
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "the certificate is not for servers"
            }
            CertificateError::Other(OtherError(other)) => {
                return other.downcast_ref().map_or("the certificate is not valid".to_owned(), Distrust::to_string);
            }
            _ => "the certificate is not valid",
        },
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied,
        ) => "the receiver asks for a client certificate that it trusts",
        rustls::Error::AlertReceived(AlertDescription::UnrecognisedName) => {
            "the receiver has no certificate for this name"
        }
        rustls::Error::PeerIncompatible(_)
        | rustls::Error::AlertReceived(
            AlertDescription::HandshakeFailure
            | AlertDescription::ProtocolVersion
            | AlertDescription::InsufficientSecurity,
        ) => "no version or cipher of TLS in common with the receiver, which must speak 1.2 or 1.3",
        rustls::Error::InvalidMessage(_) => "the receiver does not speak TLS at this port",
        _ => "TLS failed",
    };
    text.to_owned()
}
