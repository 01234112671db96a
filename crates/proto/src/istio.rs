//! Istio's public messages that Envoy's own set does not have.

/// The certificate signing API (`istio.v1.auth`), client and server.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod auth {
    tonic::include_proto!("istio.v1.auth");
}
