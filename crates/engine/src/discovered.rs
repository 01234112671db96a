//! HTTP filters that a manager only names; what they do comes apart from the listener (ECDS).
//!
//! The plan of the moment has the newest configuration of each name, so that an update takes hold with the next request and
//! touches no connection.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use crate::http_manager::{HttpFilter, HttpFilterKind, HttpManager};
use crate::plan::Plan;
use crate::reply::{Flags, LocalReply};

/// A filter with `config_discovery` (`envoy.config.core.v3.ExtensionConfigSource`).
#[derive(Debug)]
pub struct DiscoveredFilter {
    /// The resource's name, which is the filter's own.
    pub name: Arc<str>,
    /// Full names of the messages that may configure it (`type_urls`).
    pub types: Vec<Arc<str>>,
    /// In force while nothing else is (`default_config`).
    pub default: Option<HttpFilterKind>,
    /// The listener waits for the configuration: the opposite of `apply_default_config_without_warming`. Default true.
    pub warms: bool,
    /// How long it waits (`initial_fetch_timeout`); `None`: as long as it takes. Default 15 s.
    pub patience: Option<Duration>,
    /// What comes may hand the client's certificate on.
    pub may_tell_certificate: bool,
}

/// What came for a filter by its name (`envoy.config.core.v3.TypedExtensionConfig`).
#[derive(Debug, Clone)]
pub struct FilterConfig {
    /// The resource's name.
    pub name: Arc<str>,
    /// Full name of the message in it.
    pub type_name: Arc<str>,
    /// What it does.
    pub kind: HttpFilterKind,
    /// Hash of the message.
    pub version: u64,
}

impl DiscoveredFilter {
    /// Whether a message of this type may configure it.
    #[must_use]
    pub fn takes(&self, type_name: &str) -> bool {
        self.types.iter().any(|known| **known == *type_name)
    }
}

impl HttpManager {
    /// The filters that it only names.
    pub fn discovered(&self) -> impl Iterator<Item = &Arc<DiscoveredFilter>> {
        self.filters.iter().filter_map(|filter| match &filter.kind {
            HttpFilterKind::Discovered(filter) => Some(filter),
            _ => None,
        })
    }
}

impl Plan {
    /// What a filter does at this moment.
    #[must_use]
    pub fn kind_of<'a>(&'a self, filter: &'a HttpFilter) -> &'a HttpFilterKind {
        match &filter.kind {
            HttpFilterKind::Discovered(filter) => self.discovered_kind(filter),
            kind => kind,
        }
    }

    /// What came, if this filter takes it, else its default.
    fn discovered_kind<'a>(&'a self, filter: &'a DiscoveredFilter) -> &'a HttpFilterKind {
        let came = self.filters.get(&filter.name).filter(|config| filter.takes(&config.type_name));
        came.map(|config| &config.kind).or(filter.default.as_ref()).unwrap_or(&HttpFilterKind::Missing)
    }
}

/// The answer to requests that reach a filter without any configuration.
pub(crate) fn missing() -> LocalReply {
    LocalReply::error(StatusCode::INTERNAL_SERVER_ERROR, "", "", Flags::NO_FILTER_CONFIG)
}
