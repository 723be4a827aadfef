//! Connecting somewhere else than the name says: a private endpoint, or a test. The name stays in the request and in the
//! check of the certificate.

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// Resolves one name to a `host:port` of its own; others (token endpoints) as ever.
#[derive(Debug)]
pub struct FixedEndpoint {
    host: String,
    address: Uri,
    names: DefaultResolver,
}

impl FixedEndpoint {
    /// The endpoint `host:port` of `host`; `None` when it is none.
    pub fn new(host: &str, endpoint: &str) -> Option<FixedEndpoint> {
        let address: Uri = format!("https://{endpoint}/").parse().ok()?;
        address.port_u16()?;
        Some(FixedEndpoint {
            host: host.to_ascii_lowercase(),
            address,
            names: DefaultResolver::default(),
        })
    }
}

impl Resolver for FixedEndpoint {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let is_it = uri
            .host()
            .is_some_and(|host| host.eq_ignore_ascii_case(&self.host));
        let address = if is_it { &self.address } else { uri };
        self.names.resolve(address, config, timeout)
    }
}
