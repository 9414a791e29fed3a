//! The settings of the HTTP client.

use std::sync::Arc;
use std::time::Duration;

use ureq::Agent;
use ureq::http::Uri;
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use crate::proxy::proxy;

/// The longest time until a connection is established, until a server begins to answer, and of a short answer.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// The most connections that are kept for the next request: of all the threads that read parts of one file.
const MAX_CONNECTIONS: usize = 16;

/// The most redirections that are followed.
const MAX_REDIRECTS: u32 = 10;

/// Returns a client for a file whose first address is `uri`, for addresses by HTTPS alone if that is one. Certificates are verified by the certificate
/// authorities that the system trusts; the proxy is that of the environment for `uri`. A redirection
/// from HTTPS to HTTP is not followed, and a password is not sent to another host; without `follows` no redirection
/// is followed, and it is the response.
pub(crate) fn client(uri: &Uri, follows: bool) -> Agent {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(provider)
        .build();
    let config = Agent::config_builder()
        .https_only(uri.scheme_str() == Some("https"))
        .proxy(proxy(uri))
        .http_status_as_error(false)
        .max_redirects(if follows { MAX_REDIRECTS } else { 0 })
        .max_redirects_will_error(follows)
        .max_idle_connections(MAX_CONNECTIONS)
        .max_idle_connections_per_host(MAX_CONNECTIONS)
        .timeout_resolve(Some(TIMEOUT))
        .timeout_connect(Some(TIMEOUT))
        .timeout_recv_response(Some(TIMEOUT))
        .user_agent(concat!("storagetm/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls)
        .build();
    Agent::new_with_config(config)
}
