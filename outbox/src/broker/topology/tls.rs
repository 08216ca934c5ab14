//! Whom the services trust to be RabbitMQ, and who they say they are.

use std::sync::Arc;

use clap::Args;
use lapin::tcp::RustlsConnector;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};

use super::address::Address;
use crate::service::pem::{self, ClientCertificate, ClientKey, Identity, Roots};

/// How RabbitMQ is spoken to where `RABBITMQ_URL` says amqps. Of no concern to receivers of webhooks.
#[derive(Args, Clone, Debug)]
#[allow(clippy::struct_field_names, reason = "named as their variables")]
pub(super) struct TlsConfig {
    /// File of certificates (PEM) of the authorities that RabbitMQ is trusted by, in place of the system's.
    #[arg(long, env, value_parser = Roots::read)]
    rabbitmq_ca_file: Option<Roots>,
    /// File of the certificate (PEM, its intermediates after it) that RabbitMQ gets to see if it asks for one.
    #[arg(long, env, requires = "rabbitmq_client_key_file", value_parser = ClientCertificate::read)]
    rabbitmq_client_cert_file: Option<ClientCertificate>,
    /// File of that certificate's private key (PEM, not encrypted).
    #[arg(long, env, requires = "rabbitmq_client_cert_file", value_parser = ClientKey::read)]
    rabbitmq_client_key_file: Option<ClientKey>,
}

/// What is wrong with options that are right by themselves.
#[derive(Debug, thiserror::Error)]
pub enum BrokerConfigError {
    /// The client certificate and the key do not belong together.
    #[error(
        "RABBITMQ_CLIENT_KEY_FILE cannot be used: it is not the key of the certificate in RABBITMQ_CLIENT_CERT_FILE"
    )]
    KeyMismatch,
    /// There are certificates, and no TLS.
    #[error("RABBITMQ_CA_FILE and RABBITMQ_CLIENT_CERT_FILE cannot be used: RABBITMQ_URL does not say amqps")]
    NoTls,
}

impl TlsConfig {
    /// Checks what can only be said of several options together.
    pub(super) fn check(&self, address: &Address) -> Result<(), BrokerConfigError> {
        let identity = self.identity();
        if !address.is_tls() && (self.rabbitmq_ca_file.is_some() || identity.is_some()) {
            return Err(BrokerConfigError::NoTls);
        }
        if identity.is_none_or(pem::is_a_pair) { Ok(()) } else { Err(BrokerConfigError::KeyMismatch) }
    }

    fn identity(&self) -> Option<Identity> {
        pem::identity(self.rabbitmq_client_cert_file.as_ref(), self.rabbitmq_client_key_file.as_ref())
    }

    /// What makes a connection one with TLS.
    pub(super) fn connector(&self) -> Result<RustlsConnector, rustls::Error> {
        Ok(self.client_config()?.into())
    }

    /// How to speak TLS to RabbitMQ, by whichever protocol.
    pub(super) fn client_config(&self) -> Result<ClientConfig, rustls::Error> {
        let mut roots = RootCertStore::empty();
        match &self.rabbitmq_ca_file {
            Some(file) => roots.add_parsable_certificates(file.certificates().iter().cloned()),
            None => roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
        };
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(&provider)).build();
        let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = builder.with_webpki_verifier(verifier);
        match self.identity() {
            Some((certificates, key)) => builder.with_client_auth_cert(certificates, key),
            None => Ok(builder.with_no_client_auth()),
        }
    }
}
