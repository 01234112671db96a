//! The request that is walked.

use std::path::PathBuf;

use http::{HeaderMap, HeaderName, HeaderValue};
use model::service::Protocol as Spoken;

/// A request as a program would send it.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    pub(crate) authority: String,
    pub(crate) headers: HeaderMap,
    /// Claims (JSON) that a good token is assumed to carry.
    pub(crate) claims: Option<String>,
}

/// The token of a walked request.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Token {
    /// A file with the caller's token (JWT); it is validated as the proxy would
    #[arg(long, value_name = "FILE")]
    jwt: Option<PathBuf>,
    /// Claims as JSON: judge as if a good token carried them
    #[arg(long, value_name = "JSON", conflicts_with = "jwt")]
    jwt_claims: Option<String>,
}

/// Whom a URL names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
    pub(crate) path: String,
    /// As the program would write it into the request.
    pub(crate) authority: String,
}

impl Target {
    /// Reads `http://catalog/items`, `catalog:80/items`, `tcp://ledger:9000`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
        let (authority, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') && !port.ends_with(']') => {
                let port = port.parse().map_err(|_| format!("`{port}` is no port"))?;
                (host, Some(port))
            }
            _ => (authority, None),
        };
        if host.is_empty() {
            return Err(format!("`{text}` names no host; write for example http://catalog/items"));
        }
        Ok(Self { host: host.to_owned(), port, path, authority: authority.to_owned() })
    }
}

impl Request {
    /// A request with headers given as `name=value` or `name: value`.
    pub(crate) fn new(method: &str, path: &str, authority: &str, headers: &[String]) -> Result<Self, String> {
        let mut map = HeaderMap::new();
        for header in headers {
            let (name, value) = header
                .split_once('=')
                .or_else(|| header.split_once(':'))
                .ok_or_else(|| format!("`{header}` is no header; write NAME=VALUE"))?;
            let name = HeaderName::try_from(name.trim()).map_err(|error| format!("`{header}`: {error}"))?;
            let value = HeaderValue::try_from(value.trim()).map_err(|error| format!("`{header}`: {error}"))?;
            map.append(name, value);
        }
        let (method, path, authority) = (method.to_owned(), path.to_owned(), authority.to_owned());
        Ok(Self { method, path, authority, headers: map, claims: None })
    }

    /// The request with a token.
    pub(crate) fn with(mut self, token: &Token) -> Result<Self, String> {
        if let Some(path) = &token.jwt {
            let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            let value = HeaderValue::try_from(format!("Bearer {}", text.trim()));
            let value = value.map_err(|_| format!("{} holds no token", path.display()))?;
            self.headers.insert(http::header::AUTHORIZATION, value);
        }
        self.claims.clone_from(&token.jwt_claims);
        Ok(self)
    }
}

/// The HTTP version that a program would speak on such a port.
pub(super) fn version(spoken: Spoken) -> engine::facts::Protocol {
    match spoken {
        Spoken::Http2 | Spoken::Grpc => engine::facts::Protocol::Http2,
        _ => engine::facts::Protocol::Http11,
    }
}

/// What a listener would find in a program's first bytes.
pub(super) fn detected(spoken: Spoken) -> &'static str {
    match spoken {
        Spoken::Http2 | Spoken::Grpc => "h2c",
        _ => "http/1.1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_as_people_write_them() {
        let target = |text: &str| Target::parse(text).unwrap();
        let full = target("http://catalog:8080/items?x=1");
        assert_eq!((full.host.as_str(), full.port, full.path.as_str()), ("catalog", Some(8080), "/items?x=1"));
        assert_eq!(target("catalog").path, "/");
        assert_eq!(target("tcp://ledger.bank:9000").port, Some(9000));
        assert_eq!(target("http://c?x").path, "/?x");
        assert!(Target::parse("http:///x").is_err());
        assert!(Target::parse("catalog:http").is_err());
    }
}
