//! Connecting somewhere else than the name says: a private endpoint, or a test. The name stays in the request and in the
//! check of the certificate.

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// Resolves every name to one `host:port`.
#[derive(Debug)]
pub struct FixedEndpoint {
    address: Uri,
    names: DefaultResolver,
}

impl FixedEndpoint {
    /// The endpoint `host:port`; `None` when it is none.
    pub fn new(endpoint: &str) -> Option<FixedEndpoint> {
        let address: Uri = format!("https://{endpoint}/").parse().ok()?;
        address.port_u16()?;
        Some(FixedEndpoint {
            address,
            names: DefaultResolver::default(),
        })
    }
}

impl Resolver for FixedEndpoint {
    fn resolve(&self, _: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        self.names.resolve(&self.address, config, timeout)
    }
}
