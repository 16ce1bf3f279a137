//! The HTTP client below the AWS client: its proxy and its certificates, by the environment.
//!
//! A proxy is for what leaves the node: metadata and the agents that hand out credentials are spoken to directly, as
//! they speak plain HTTP and the proxy that is asked for is the one for HTTPS.

use std::time::Duration;

use anyhow::Context;
use aws_sdk_ec2::config::SharedHttpClient;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};

/// A connection that nobody has used for longer is not used again. Servers close idle ones at times of their own
/// choosing, and a request that meets that end looks like one whose reply was lost.
const IDLE: Duration = Duration::from_secs(3);

/// What the environment says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HttpSettings {
    /// `HTTPS_PROXY`, else `ALL_PROXY`, in either case.
    pub(crate) proxy: Option<String>,
    /// `NO_PROXY`, in either case.
    pub(crate) no_proxy: Option<String>,
    /// `AWS_CA_BUNDLE`: a file of certificates to trust, beside the system's (`SSL_CERT_FILE`, `SSL_CERT_DIR`).
    pub(crate) ca_bundle: Option<String>,
}

impl HttpSettings {
    /// Reads the environment. An empty variable is one that is not set.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&str]| {
            let values = names.iter().filter_map(|name| variable(name));
            values.map(|v| v.trim().to_owned()).find(|v| !v.is_empty())
        };
        Self {
            proxy: first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]),
            no_proxy: first(&["NO_PROXY", "no_proxy"]),
            ca_bundle: first(&["AWS_CA_BUNDLE"]),
        }
    }
}

/// A client. Connects to nothing yet.
///
/// # Errors
/// When the proxy's address or the certificates cannot be used: named by their variable.
pub(crate) fn client(settings: &HttpSettings) -> anyhow::Result<SharedHttpClient> {
    let proxy = match &settings.proxy {
        None => ProxyConfig::disabled(),
        Some(url) => {
            let proxy = ProxyConfig::https(url.as_str()).with_context(|| {
                format!("HTTPS_PROXY={url:?}: want a URL (http://proxy.example.com:3128)")
            })?;
            proxy.no_proxy(settings.no_proxy.as_deref().unwrap_or_default())
        }
    };
    let mut trust = TrustStore::default();
    if let Some(path) = &settings.ca_bundle {
        let pem = std::fs::read(path).with_context(|| format!("AWS_CA_BUNDLE={path:?}"))?;
        trust = trust.with_pem_certificate(pem);
    }
    let tls = TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .context("certificates")?;
    Ok(
        Builder::new().build_with_connector_fn(move |settings, components| {
            let mut connector = Connector::builder().pool_idle_timeout(IDLE);
            connector.set_connector_settings(settings.cloned());
            connector.set_sleep_impl(components.and_then(|c| c.sleep_impl()));
            connector
                .proxy_config(proxy.clone())
                .tls_provider(Provider::Rustls(CryptoMode::Ring))
                .tls_context(tls.clone())
                .build()
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> HttpSettings {
        HttpSettings::read(|name| {
            let found = variables.iter().find(|(n, _)| *n == name)?;
            Some(found.1.to_owned())
        })
    }

    #[test]
    fn a_proxy_for_https_is_taken_and_one_for_http_is_not() {
        assert_eq!(settings(&[]), HttpSettings::default());
        let found = settings(&[("HTTP_PROXY", "http://a:1")]);
        assert_eq!(found.proxy, None, "metadata speaks plain HTTP");
        let found = settings(&[("HTTPS_PROXY", " "), ("all_proxy", "http://b:2")]);
        assert_eq!(found.proxy.as_deref(), Some("http://b:2"));
        let found = settings(&[("https_proxy", "http://c:3"), ("no_proxy", ".internal")]);
        assert_eq!(found.proxy.as_deref(), Some("http://c:3"));
        assert_eq!(found.no_proxy.as_deref(), Some(".internal"));
    }

    #[test]
    fn what_cannot_be_used_is_named_by_its_variable() {
        let said = |settings: HttpSettings| format!("{:#}", client(&settings).unwrap_err());
        let words = said(settings(&[("HTTPS_PROXY", "not a url")]));
        assert!(words.contains("HTTPS_PROXY=\"not a url\""), "{words}");
        let words = said(settings(&[("AWS_CA_BUNDLE", "/nowhere/ca.pem")]));
        assert!(
            words.contains("AWS_CA_BUNDLE=\"/nowhere/ca.pem\""),
            "{words}"
        );
    }
}
