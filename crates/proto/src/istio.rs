//! Istio's public messages that Envoy's own set does not have.

/// The certificate signing API (`istio.v1.auth`), client and server.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated from the interface")]
pub mod auth {
    tonic::include_proto!("istio.v1.auth");
}

/// The metrics filter's configuration (`stats.PluginConfig`).
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated from the interface")]
pub mod stats {
    tonic::include_proto!("stats");
}

/// The filter that exchanges peers' names over HTTP headers (`io.istio.http.peer_metadata.Config`).
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated from the interface")]
pub mod peer_metadata {
    tonic::include_proto!("io.istio.http.peer_metadata");
}

/// The filter that chooses upstream ALPN by downstream protocol.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated from the interface")]
pub mod alpn {
    tonic::include_proto!("istio.envoy.config.filter.http.alpn.v2alpha1");
}

/// The network filter that exchanges peers' names over TCP.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated from the interface")]
pub mod metadata_exchange {
    tonic::include_proto!("envoy.tcp.metadataexchange.config");
}

/// `xds.type.v3.TypedStruct`: a message as a Struct with its type's name.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated from the interface")]
pub mod typed_struct {
    tonic::include_proto!("xds.r#type.v3");
}
