//! The type URLs by which xDS names its resources.

use prost::Name;

/// What every type URL starts with.
pub const PREFIX: &str = "type.googleapis.com/";

/// Listeners (LDS).
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Clusters (CDS).
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Route configurations (RDS).
pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// Endpoints of a cluster (EDS).
pub const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// Certificates, keys and validation contexts (SDS).
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// Configurations of filters that listeners only name (ECDS).
pub const EXTENSION: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
/// The bootstrap file; never sent over xDS.
pub const BOOTSTRAP: &str = "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap";

/// The type URL of a message type: `type.googleapis.com/PACKAGE.NAME`.
pub fn of<M: Name>() -> String {
    format!("{PREFIX}{}", M::full_name())
}

/// The message's full name in a type URL: what follows the last `/`.
pub fn message_name(type_url: &str) -> &str {
    type_url.rsplit_once('/').map_or(type_url, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::config::{bootstrap, cluster, core, endpoint, listener, route};
    use crate::envoy::extensions::transport_sockets::tls;

    #[test]
    fn the_constants_are_what_the_messages_say() {
        assert_eq!(LISTENER, of::<listener::v3::Listener>());
        assert_eq!(CLUSTER, of::<cluster::v3::Cluster>());
        assert_eq!(ROUTE, of::<route::v3::RouteConfiguration>());
        assert_eq!(ENDPOINTS, of::<endpoint::v3::ClusterLoadAssignment>());
        assert_eq!(SECRET, of::<tls::v3::Secret>());
        assert_eq!(EXTENSION, of::<core::v3::TypedExtensionConfig>());
        assert_eq!(BOOTSTRAP, of::<bootstrap::v3::Bootstrap>());
    }

    #[test]
    fn a_name_without_prefix_is_itself() {
        assert_eq!(message_name("a.B"), "a.B");
        assert_eq!(message_name(LISTENER), "envoy.config.listener.v3.Listener");
    }
}
