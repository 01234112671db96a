//! The protocol's messages with resources left as bytes: what is encoded once is shared by all streams.

use bytes::Bytes;
use prost::Message;
use proto::google::protobuf::Any;

/// `envoy.service.discovery.v3.Resource`, wrapped around a resource in state-of-the-world for a TTL.
pub(crate) const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// `envoy.service.discovery.v3.DeltaDiscoveryResponse`: a nested message and its bytes are the same on the wire.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeltaResponse {
    #[prost(string, tag = "1")]
    pub(crate) system_version_info: String,
    /// Each an encoded `Resource`.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(crate) resources: Vec<Bytes>,
    #[prost(string, tag = "4")]
    pub(crate) type_url: String,
    #[prost(string, tag = "5")]
    pub(crate) nonce: String,
    #[prost(string, repeated, tag = "6")]
    pub(crate) removed_resources: Vec<String>,
}

/// `envoy.service.discovery.v3.DiscoveryResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SotwResponse {
    #[prost(string, tag = "1")]
    pub(crate) version_info: String,
    /// Each an encoded `Any`.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(crate) resources: Vec<Bytes>,
    #[prost(string, tag = "4")]
    pub(crate) type_url: String,
    #[prost(string, tag = "5")]
    pub(crate) nonce: String,
}

/// The first field of a message, which is the name in every resource type of xDS (listener, cluster, route
/// configuration, load assignment, secret, extension configuration).
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

/// The resource's own name; `None` when its bytes are no message or it has none.
pub(crate) fn name_of(any: &Any) -> Option<String> {
    let named = Named::decode(&*any.value).ok()?;
    (!named.name.is_empty()).then_some(named.name)
}
