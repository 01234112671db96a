//! Who is at the other end: Istio's metadata exchange, endpoint metadata, and this proxy's own node.
//!
//! Peers put a protobuf `Struct`, serialised and in base64, into `x-envoy-peer-metadata` (Istio's form), and their
//! node's id into `x-envoy-peer-metadata-id`. What they say is believed only for labels, only over mutual TLS, and
//! their namespace is the one that their certificate proves.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::metadata::{Datum, Metadata};
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message;
use proto::envoy::config::core::v3::Node;
use proto::google::protobuf::{Struct, Value, value::Kind};
use telemetry::istio::{Party, ServiceName};

/// `x-envoy-peer-metadata-id`: the sender's node id.
pub const PEER_ID: HeaderName = HeaderName::from_static("x-envoy-peer-metadata-id");
/// `x-envoy-peer-metadata`: who the sender is.
pub const PEER_METADATA: HeaderName = HeaderName::from_static("x-envoy-peer-metadata");

/// Longest metadata that is looked at, in bytes of base64.
const LONGEST: usize = 16 * 1024;
/// Longest label value that a peer may set.
const LONGEST_LABEL: usize = 256;

/// The parts of a node's metadata that peers are told.
const TOLD: [&str; 10] = [
    "NAME",
    "NAMESPACE",
    "WORKLOAD_NAME",
    "OWNER",
    "LABELS",
    "CLUSTER_ID",
    "MESH_ID",
    "SERVICE_ACCOUNT",
    "INSTANCE_IPS",
    "PLATFORM_METADATA",
];

/// Who this proxy works for, and the headers that tell peers so.
#[derive(Debug, Clone, Default)]
pub struct Own {
    /// For the labels of its own side.
    pub party: Party,
    /// Instance name (`NAME` of the node's metadata).
    pub name: String,
    /// The node's cluster, as those who check the workload's health are told it.
    pub cluster: Option<HeaderValue>,
    /// Service account.
    pub service_account: String,
    /// `x-envoy-peer-metadata-id`; `None` when the node has no id that may stand in a header.
    pub id: Option<HeaderValue>,
    /// `x-envoy-peer-metadata`.
    pub metadata: Option<HeaderValue>,
}

impl Own {
    /// From the bootstrap's node.
    pub fn of(node: &Node) -> Self {
        let metadata = node.metadata.clone().unwrap_or_default();
        let told: BTreeMap<&str, &Value> =
            TOLD.iter().filter_map(|key| Some((*key, metadata.fields.get(*key)?))).collect();
        let fields = told.into_iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
        let blob = STANDARD.encode(Struct { fields }.encode_to_vec());
        let mut party = party(&metadata);
        let mut name = text(&metadata, "NAME").to_owned();
        // `sidecar~IP~NAME.NAMESPACE~DOMAIN` says the least of it even without metadata.
        if let (true, Some((id_name, id_namespace))) =
            (name.is_empty(), node.id.split('~').nth(2).and_then(|id| id.rsplit_once('.')))
        {
            id_name.clone_into(&mut name);
            let fill = |field: &mut String, value: &str| {
                if field.is_empty() {
                    value.clone_into(field);
                }
            };
            fill(&mut party.workload, id_name);
            fill(&mut party.canonical_service, id_name);
            fill(&mut party.namespace, id_namespace);
        }
        Self {
            party,
            name,
            cluster: HeaderValue::from_str(&node.cluster).ok(),
            service_account: text(&metadata, "SERVICE_ACCOUNT").to_owned(),
            id: HeaderValue::from_str(&node.id).ok().filter(|id| !id.is_empty()),
            metadata: HeaderValue::from_str(&blob).ok().filter(|blob| !blob.is_empty()),
        }
    }

    /// The headers that tell a mesh peer who this workload is.
    pub fn introduction(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let both = self.id.as_ref().zip(self.metadata.as_ref());
        both.into_iter().flat_map(|(id, metadata)| [(PEER_ID, id.clone()), (PEER_METADATA, metadata.clone())])
    }

    /// Puts the headers on a request or answer that goes to a mesh peer.
    pub fn introduce(&self, headers: &mut HeaderMap) {
        for (name, value) in self.introduction() {
            headers.insert(name, value);
        }
    }
}

/// Reads what a peer said of itself; `None` when it is not what Istio writes.
pub fn peer(blob: &str) -> Option<Party> {
    if blob.len() > LONGEST {
        return None;
    }
    let bytes = STANDARD.decode(blob).ok()?;
    Some(party(&Struct::decode(bytes.as_slice()).ok()?))
}

/// A peer's party with what its certificate proves: the identity, and the namespace in it.
pub fn proven(mut party: Party, identity: Option<&str>) -> Party {
    let Some(identity) = identity else { return Party::default() };
    identity.clone_into(&mut party.principal);
    if let Ok(id) = identity.parse::<model::SpiffeId>() {
        id.namespace().clone_into(&mut party.namespace);
    }
    party
}

/// From `filter_metadata.istio` of an endpoint: `WORKLOAD;NAMESPACE;CANONICAL-NAME;CANONICAL-REVISION;CLUSTER`.
pub fn of_endpoint(metadata: &Metadata) -> Option<Party> {
    let text = metadata.find("istio", ["workload"])?.text()?;
    let mut words = text.split(';').map(str::to_owned);
    let mut next = || words.next().unwrap_or_default();
    let (workload, namespace, canonical_service, canonical_revision, cluster) =
        (next(), next(), next(), next(), next());
    Some(Party {
        workload,
        namespace,
        principal: String::new(),
        app: canonical_service.clone(),
        version: canonical_revision.clone(),
        cluster,
        canonical_service,
        canonical_revision,
    })
}

/// From `filter_metadata.istio.services` of a cluster, else from a cluster's name in Istio's form
/// (`outbound|8080|v1|reviews.shop.svc.cluster.local`), else the name itself (`PassthroughCluster`).
pub fn service(name: &str, metadata: Option<&Metadata>) -> ServiceName {
    let listed = metadata.and_then(|metadata| metadata.find("istio", ["services"]));
    if let Some(Datum::List(services)) = listed
        && let Some(first) = services.first()
    {
        let text = |key: &str| first.key(key).and_then(Datum::text).unwrap_or_default().to_owned();
        return ServiceName { host: text("host"), name: text("name"), namespace: text("namespace") };
    }
    match name.split('|').collect::<Vec<_>>()[..] {
        ["outbound", _, _, host] => of_host(host),
        ["inbound", ..] => ServiceName::default(),
        _ => ServiceName { host: String::new(), name: name.to_owned(), namespace: String::new() },
    }
}

/// `reviews.shop.svc.cluster.local` is `reviews` in `shop`; any other host is its own name.
fn of_host(host: &str) -> ServiceName {
    let mut labels = host.split('.');
    let (name, namespace) = match (labels.next(), labels.next(), labels.next()) {
        (Some(name), Some(namespace), Some("svc")) => (name, namespace),
        _ => (host, ""),
    };
    ServiceName { host: host.to_owned(), name: name.to_owned(), namespace: namespace.to_owned() }
}

fn party(metadata: &Struct) -> Party {
    let labels = match metadata.fields.get("LABELS").and_then(|value| value.kind.as_ref()) {
        Some(Kind::StructValue(labels)) => labels.clone(),
        _ => Struct::default(),
    };
    let first = |names: &[&str]| {
        let found = names.iter().map(|name| text(&labels, name)).find(|value| !value.is_empty());
        short(found.unwrap_or_default())
    };
    let or = |value: String, other: &str| if value.is_empty() { other.to_owned() } else { value };
    let workload = or(short(text(metadata, "WORKLOAD_NAME")), &short(text(metadata, "NAME")));
    let app = first(&["app", "app.kubernetes.io/name"]);
    let version = first(&["version", "app.kubernetes.io/version"]);
    let canonical_service = first(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let canonical_revision = first(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    Party {
        canonical_service: or(canonical_service, &workload),
        canonical_revision: or(canonical_revision, "latest"),
        workload,
        namespace: short(text(metadata, "NAMESPACE")),
        principal: String::new(),
        app,
        version,
        cluster: short(text(metadata, "CLUSTER_ID")),
    }
}

fn text<'a>(fields: &'a Struct, key: &str) -> &'a str {
    match fields.fields.get(key).and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => text,
        _ => "",
    }
}

/// A label's value that is not longer than a label should be.
fn short(text: &str) -> String {
    text.chars().take(LONGEST_LABEL).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> Value {
        Value { kind: Some(Kind::StringValue(text.to_owned())) }
    }

    fn node() -> Node {
        let labels = [("app", "reviews"), ("version", "v2")].map(|(key, value)| (key.to_owned(), string(value)));
        let labels = Value { kind: Some(Kind::StructValue(Struct { fields: labels.into_iter().collect() })) };
        let mut fields: std::collections::HashMap<String, Value> = [
            ("NAME", "reviews-v2-7f9c"),
            ("NAMESPACE", "shop"),
            ("WORKLOAD_NAME", "reviews-v2"),
            ("CLUSTER_ID", "Kubernetes"),
            ("SERVICE_ACCOUNT", "reviews"),
            ("SECRET", "not for peers"),
        ]
        .map(|(key, value)| (key.to_owned(), string(value)))
        .into_iter()
        .collect();
        fields.insert("LABELS".to_owned(), labels);
        let id = "sidecar~10.0.0.7~reviews-v2-7f9c.shop~shop.svc.cluster.local".to_owned();
        Node { id, metadata: Some(Struct { fields }), ..Node::default() }
    }

    #[test]
    fn what_is_told_is_what_is_understood() {
        let own = Own::of(&node());
        let mut headers = HeaderMap::new();
        own.introduce(&mut headers);
        let blob = headers.get(PEER_METADATA).unwrap().to_str().unwrap();
        let told = peer(blob).unwrap();
        assert_eq!(told, own.party);
        assert_eq!(told.workload, "reviews-v2");
        assert_eq!(told.canonical_service, "reviews");
        assert_eq!(told.canonical_revision, "v2");
        let raw = STANDARD.decode(blob).unwrap();
        assert!(!String::from_utf8_lossy(&raw).contains("not for peers"));
    }

    #[test]
    fn an_id_alone_says_the_least() {
        let own = Own::of(&Node { id: node().id, ..Node::default() });
        assert_eq!((own.name.as_str(), own.party.namespace.as_str()), ("reviews-v2-7f9c", "shop"));
        assert_eq!(own.party.workload, "reviews-v2-7f9c");
    }

    /// A struct with `NAME: a` and `NAMESPACE: b`, as Istio's proxy serialises it.
    #[test]
    fn istios_bytes() {
        let party = peer("CgsKBE5BTUUSAxoBYQoQCglOQU1FU1BBQ0USAxoBYg==").unwrap();
        assert_eq!((party.workload.as_str(), party.namespace.as_str()), ("a", "b"));
        assert_eq!(party.canonical_revision, "latest");
    }

    #[test]
    fn garbage_is_nobody() {
        for blob in ["", "%%%", "AAAA", &"A".repeat(LONGEST + 4)] {
            let read = peer(blob);
            assert!(read.is_none_or(|party| party.workload.is_empty()), "{blob}");
        }
    }

    #[test]
    fn a_claim_does_not_beat_a_certificate() {
        let claimed = Party { workload: "web".to_owned(), namespace: "kube-system".to_owned(), ..Party::default() };
        let party = proven(claimed.clone(), Some("spiffe://cluster.local/ns/shop/sa/intruder"));
        assert_eq!(party.namespace, "shop");
        assert_eq!(party.principal, "spiffe://cluster.local/ns/shop/sa/intruder");
        assert_eq!(proven(claimed, None), Party::default(), "plaintext proves nothing");
    }

    #[test]
    fn services_of_clusters() {
        let host = service("outbound|8080|v1|reviews.shop.svc.cluster.local", None);
        assert_eq!((host.name.as_str(), host.namespace.as_str()), ("reviews", "shop"));
        let external = service("outbound|443||api.example.com", None);
        assert_eq!((external.host.as_str(), external.name.as_str()), ("api.example.com", "api.example.com"));
        assert_eq!(service("PassthroughCluster", None).name, "PassthroughCluster");
        assert_eq!(service("inbound|8080||", None), ServiceName::default());
    }
}
