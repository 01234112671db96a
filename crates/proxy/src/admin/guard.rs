//! Who may ask: over TCP only this machine by its own names, and no web page.

use std::net::IpAddr;

use http::{HeaderMap, Method, header};

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The `Host` is not this machine: a web page that resolves its own name to 127.0.0.1 looks like that.
    Host,
    /// A browser sends it for some page.
    Page,
}

impl Refusal {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Host => "the Host header must be localhost or a loopback address\n",
            Self::Page => "requests from web pages are refused\n",
        }
    }
}

/// What a listener of the proxy's own may lead scrapers to, as Istio's bootstrap does: they ask by the pod's address.
const SCRAPED: &str = "/stats/prometheus";

/// Judges a request that came over TCP.
pub(super) fn judge(method: &Method, path: &str, headers: &HeaderMap, authority: Option<&str>) -> Result<(), Refusal> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).or(authority);
    let scraped = *method == Method::GET && path == SCRAPED;
    if !scraped && !host.is_some_and(is_this_machine) {
        return Err(Refusal::Host);
    }
    let cross = headers.get("sec-fetch-site").is_some_and(|site| site != "none" && site != "same-origin");
    if cross || (*method != Method::GET && headers.contains_key(header::ORIGIN)) {
        return Err(Refusal::Page);
    }
    Ok(())
}

fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').filter(|(name, _)| !name.contains(':')).map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn this_machine_by_its_names() {
        for host in ["localhost:15000", "127.0.0.1:15000", "[::1]:15000", "127.1.2.3", "::1", "LOCALHOST"] {
            let headers: HeaderMap = [(header::HOST, HeaderValue::from_static(host))].into_iter().collect();
            assert_eq!(judge(&Method::POST, "/stats", &headers, None), Ok(()), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil:80", "10.0.0.1:15000", ""] {
            let headers: HeaderMap = [(header::HOST, HeaderValue::from_static(host))].into_iter().collect();
            assert_eq!(judge(&Method::GET, "/stats", &headers, None), Err(Refusal::Host), "{host}");
        }
        assert_eq!(judge(&Method::GET, "/stats", &HeaderMap::new(), None), Err(Refusal::Host));
        let scraper = headers(&[("host", "10.0.0.1:15090")]);
        assert_eq!(judge(&Method::GET, SCRAPED, &scraper, None), Ok(()));
        assert_eq!(judge(&Method::POST, SCRAPED, &scraper, None), Err(Refusal::Host));
    }

    #[test]
    fn pages_are_refused() {
        let post = headers(&[("host", "localhost"), ("origin", "http://evil.example")]);
        assert_eq!(judge(&Method::POST, "/stats", &post, None), Err(Refusal::Page));
        let get = headers(&[("host", "localhost"), ("sec-fetch-site", "cross-site")]);
        assert_eq!(judge(&Method::GET, SCRAPED, &get, None), Err(Refusal::Page));
    }
}
