//! The HTTP connection manager and the TCP proxy, as sidecars run them.

use std::time::Duration;

use model::mesh::PathNormalization;
use proto::envoy::config::core::v3::{Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions};
use proto::envoy::config::listener::v3::Filter;
use proto::envoy::config::route::v3::RouteConfiguration;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds,
    http_connection_manager::{
        ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier, ServerHeaderTransformation,
        SetCurrentClientCertDetails, UpgradeConfig,
    },
};
use proto::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use proto::envoy::r#type::v3::{HashPolicy, hash_policy};

use super::cluster::{self, IDLE_TIMEOUT, MAX_STREAMS};
use super::{Delivery, Encoder, filters, log, wire};

/// A request's headers must be complete within this time.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(60);
/// A request or response on which nothing moves for this long is given up. (Envoy: 5 minutes; Istio: never.)
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// Which side of the mesh a manager serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Calls of the own program.
    Outbound,
    /// Calls of peers: over mesh mTLS or in plaintext.
    Inbound { mtls: bool },
}

impl Encoder<'_> {
    /// The manager as a network filter. Its routes travel apart over ADS and inside otherwise.
    pub(super) fn http_manager(
        &mut self,
        side: Side,
        stat_prefix: &str,
        routes: RouteConfiguration,
        http_filters: Vec<HttpFilter>,
    ) -> Filter {
        let outbound = side == Side::Outbound;
        let specifier = if outbound && self.options.delivery == Delivery::Ads {
            let name = routes.name.clone();
            self.routes.insert(name.clone(), routes);
            RouteSpecifier::Rds(Rds { config_source: Some(cluster::ads()), route_config_name: name })
        } else {
            RouteSpecifier::RouteConfig(routes)
        };
        let mut manager = HttpConnectionManager {
            stat_prefix: stat_prefix.to_owned(),
            http_filters,
            route_specifier: Some(specifier),
            access_log: log::access_logs(&self.mesh.config().access_log),
            ..limits()
        };
        identify(&mut manager, side);
        normalize(&mut manager, self.mesh.config().path_normalization);
        filters::network("envoy.filters.network.http_connection_manager", wire::any(&manager, &wire::MANAGER))
    }

    /// Forwards a connection to one cluster or several by weight.
    pub(super) fn tcp_proxy(
        &self,
        stat_prefix: &str,
        target: tcp_proxy::ClusterSpecifier,
        settings: Connections,
    ) -> Filter {
        let by_source =
            HashPolicy { policy_specifier: Some(hash_policy::PolicySpecifier::SourceIp(hash_policy::SourceIp {})) };
        let proxy = TcpProxy {
            stat_prefix: stat_prefix.to_owned(),
            cluster_specifier: Some(target),
            idle_timeout: wire::duration(settings.idle_timeout.unwrap_or(IDLE_TIMEOUT)),
            hash_policy: settings.by_source.then_some(by_source).into_iter().collect(),
            access_log: log::access_logs(&self.mesh.config().access_log),
            ..TcpProxy::default()
        };
        filters::network("envoy.filters.network.tcp_proxy", wire::any(&proxy, &wire::FLAT))
    }
}

/// How connections of bytes are treated.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Connections {
    /// How long one may lie idle; `None`: an hour.
    pub(super) idle_timeout: Option<Duration>,
    /// Connections of the same caller go to the same endpoint.
    pub(super) by_source: bool,
}

/// The limits, all written out.
fn limits() -> HttpConnectionManager {
    HttpConnectionManager {
        request_headers_timeout: wire::duration(HEADERS_TIMEOUT),
        stream_idle_timeout: wire::duration(STREAM_IDLE_TIMEOUT),
        // A request may be a stream that lives as long as its idle time allows.
        request_timeout: wire::seconds(0),
        delayed_close_timeout: wire::seconds(1),
        drain_timeout: wire::seconds(5),
        max_request_headers_kb: wire::uint32(60),
        common_http_protocol_options: Some(HttpProtocolOptions {
            idle_timeout: wire::duration(IDLE_TIMEOUT),
            max_headers_count: wire::uint32(100),
            ..HttpProtocolOptions::default()
        }),
        http_protocol_options: Some(Http1ProtocolOptions { accept_http_10: true, ..Http1ProtocolOptions::default() }),
        http2_protocol_options: Some(Http2ProtocolOptions {
            max_concurrent_streams: wire::uint32(MAX_STREAMS),
            ..Http2ProtocolOptions::default()
        }),
        upgrade_configs: vec![UpgradeConfig { upgrade_type: "websocket".to_owned(), ..UpgradeConfig::default() }],
        ..HttpConnectionManager::default()
    }
}

/// Who is believed: the peer's certificate is told to the program only where there was one, and never what a
/// peer claims about others.
fn identify(manager: &mut HttpConnectionManager, side: Side) {
    manager.use_remote_address = wire::boolean(false);
    manager.generate_request_id = wire::boolean(true);
    manager.server_name = "tulle".to_owned();
    // The program's own `server` header stays as it is.
    manager.server_header_transformation = ServerHeaderTransformation::PassThrough.into();
    let details = match side {
        Side::Inbound { mtls: true } => ForwardClientCertDetails::SanitizeSet,
        Side::Inbound { mtls: false } | Side::Outbound => ForwardClientCertDetails::Sanitize,
    };
    manager.forward_client_cert_details = details.into();
    if details == ForwardClientCertDetails::SanitizeSet {
        manager.set_current_client_cert_details = Some(SetCurrentClientCertDetails {
            subject: wire::boolean(true),
            dns: true,
            uri: true,
            ..SetCurrentClientCertDetails::default()
        });
    }
}

fn normalize(manager: &mut HttpConnectionManager, wanted: PathNormalization) {
    manager.normalize_path = wire::boolean(wanted != PathNormalization::None);
    manager.merge_slashes =
        matches!(wanted, PathNormalization::MergeSlashes | PathNormalization::DecodeAndMergeSlashes);
    let escaped = match wanted {
        PathNormalization::DecodeAndMergeSlashes => PathWithEscapedSlashesAction::UnescapeAndForward,
        _ => PathWithEscapedSlashesAction::KeepUnchanged,
    };
    manager.path_with_escaped_slashes_action = escaped.into();
}
