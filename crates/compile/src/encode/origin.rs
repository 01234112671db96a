//! The origin of a piece of configuration, as metadata that rides along to the proxy.

use std::collections::HashMap;

use model::{Origin, Service};
use proto::envoy::config::core::v3::Metadata;
use proto::google::protobuf::{Struct, Value, value::Kind};

use super::wire;

/// Under which name Tulle's metadata stands.
pub(crate) const KEY: &str = "tulle";

/// `tulle: {origin: "VirtualService shop/reviews http[0] (catalog.yaml:14)"}`.
pub(crate) fn metadata(origin: &Origin) -> Option<Metadata> {
    named([("origin", origin.to_string())])
}

/// `tulle: {NAME: TEXT, ...}`; nothing for no entries.
pub(crate) fn named<K: Into<String>>(entries: impl IntoIterator<Item = (K, String)>) -> Option<Metadata> {
    let entries = wire::object(entries);
    (!entries.fields.is_empty()).then(|| of([(KEY, entries)]))
}

/// Metadata of several filters.
pub(crate) fn of<const N: usize>(filters: [(&str, Struct); N]) -> Metadata {
    let filter_metadata: HashMap<String, Struct> =
        filters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Metadata { filter_metadata, ..Metadata::default() }
}

/// What Istio's telemetry reads on clusters: `istio: {services: [{host, name, namespace}]}`.
pub(crate) fn of_service(origin: &Origin, service: Option<&Service>) -> Option<Metadata> {
    let mut metadata = metadata(origin)?;
    let Some(service) = service else { return Some(metadata) };
    let names = [("host", &service.hostname), ("name", &service.name), ("namespace", &service.namespace)];
    let one = Value { kind: Some(Kind::StructValue(wire::object(names.map(|(name, value)| (name, value.clone()))))) };
    let services = wire::tree([("services", wire::list([one]))]);
    metadata.filter_metadata.insert("istio".to_owned(), services);
    Some(metadata)
}

/// Says of a cluster that no filter changes what its TLS offers by ALPN: an endpoint outside the mesh would not know the names.
pub(crate) fn keep_alpn(metadata: &mut Option<Metadata>) {
    let metadata = metadata.get_or_insert_default();
    let istio = metadata.filter_metadata.entry("istio".to_owned()).or_default();
    istio.fields.insert("alpn_override".to_owned(), wire::text("false"));
}
