//! How requests leave: whom they trust, who they say they are, and by way of which proxy.
//!
//! Variables like `HTTP_PROXY` are no part of this: they are ignored.

use outbox::service::pem::{self, ClientCertificate, ClientKey, Identity, Roots};
use reqwest::{ClientBuilder, Proxy};
use rustls::ClientConfig;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::tls::{self, TlsSetupError};

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
        if self.identity().is_none_or(pem::is_a_pair) { Ok(()) } else { Err(KeyMismatch) }
    }

    fn identity(&self) -> Option<Identity> {
        pem::identity(self.egress_client_cert_file.as_ref(), self.egress_client_key_file.as_ref())
    }

    /// How receivers are spoken to.
    pub(crate) fn tls(&self, http2: bool) -> Result<ClientConfig, TlsSetupError> {
        let roots = self.egress_ca_file.as_ref().map_or(&[][..], Roots::certificates);
        tls::client_config(roots, self.identity(), http2)
    }

    /// Makes a client leave by the proxy, if there is one.
    pub(crate) fn apply(&self, builder: ClientBuilder) -> Result<ClientBuilder, reqwest::Error> {
        match &self.egress_proxy {
            Some(proxy) => Ok(builder.proxy(Proxy::all(proxy.expose_secret())?)),
            None => Ok(builder),
        }
    }

    /// Whether the other end of every connection is the proxy.
    pub(crate) const fn has_proxy(&self) -> bool {
        self.egress_proxy.is_some()
    }
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
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

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
            egress_client_key_file: Some(PrivateKeyDer::from(PrivatePkcs8KeyDer::from(b"hunter2".to_vec())).into()),
            egress_proxy: Some("http://user:hunter2@proxy:3128".into()),
            ..EgressConfig::default()
        };
        let shown = format!("{config:?}");
        assert!(!shown.contains("hunter2") && !shown.contains(&format!("{:?}", b"hunter2")), "{shown}");
    }
}
