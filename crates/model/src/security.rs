//! Who may speak, and how: PeerAuthentication and AuthorizationPolicy.

use ipnet::IpNet;
use serde::Serialize;

use crate::matching::StringMatch;
use crate::name::Labels;
use crate::origin::Origin;

/// mTLS of inbound connections (one PeerAuthentication).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerAuthentication {
    /// Namespace; the root namespace without selector means the whole mesh.
    pub namespace: String,
    /// Workloads it is for; empty means the whole namespace.
    pub selector: Labels,
    /// Mode; `None` = UNSET (inherited).
    pub mode: Option<MtlsMode>,
    /// By workload port.
    pub ports: Vec<(u16, Option<MtlsMode>)>,
    /// `metadata.creationTimestamp` as given; the oldest wins among equals.
    pub created: String,
    /// Where it was declared.
    pub origin: Origin,
}

/// mTLS modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// Plaintext only.
    Disable,
    /// Both.
    Permissive,
    /// mTLS only.
    Strict,
}

/// One AuthorizationPolicy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuthorizationPolicy {
    /// Namespace; the root namespace means the whole mesh.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Workloads it is for; empty means all of the namespace.
    pub selector: Labels,
    /// What a match means.
    pub action: PolicyAction,
    /// Rules; any may match. `None` and empty both match nothing.
    pub rules: Vec<PolicyRule>,
    /// Evaluated and reported, not enforced (annotation `istio.io/dry-run: "true"`).
    pub dry_run: bool,
    /// Where it was declared.
    pub origin: Origin,
}

/// What a matching rule means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PolicyAction {
    /// Let pass; if any ALLOW policy selects a workload, what none matches is denied.
    Allow,
    /// Refuse; stronger than ALLOW.
    Deny,
    /// Only report.
    Audit,
}

/// from AND to AND when. An empty list matches all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyRule {
    /// Any of them.
    pub from: Vec<Source>,
    /// Any of them.
    pub to: Vec<Operation>,
    /// All of them.
    pub when: Vec<Condition>,
    /// The rule's own place (`rules[N]`).
    pub origin: Origin,
}

/// A caller: all given fields must hold, each by any of its values; the `not_` ones by none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Source {
    /// Identities without scheme.
    pub principals: Vec<StringMatch>,
    /// None of these.
    pub not_principals: Vec<StringMatch>,
    /// JWT principals `ISS/SUB`.
    pub request_principals: Vec<StringMatch>,
    /// None of these.
    pub not_request_principals: Vec<StringMatch>,
    /// Namespaces.
    pub namespaces: Vec<StringMatch>,
    /// None of these.
    pub not_namespaces: Vec<StringMatch>,
    /// Service accounts, `NAMESPACE/NAME` (a bare name is in the policy's namespace).
    pub service_accounts: Vec<String>,
    /// None of these.
    pub not_service_accounts: Vec<String>,
    /// Addresses of the peer connection.
    pub ip_blocks: Vec<IpNet>,
    /// None of these.
    pub not_ip_blocks: Vec<IpNet>,
    /// Addresses by X-Forwarded-For or PROXY protocol.
    pub remote_ip_blocks: Vec<IpNet>,
    /// None of these.
    pub not_remote_ip_blocks: Vec<IpNet>,
}

/// A request: as [`Source`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Operation {
    /// Authorities, without case.
    pub hosts: Vec<StringMatch>,
    /// None of these.
    pub not_hosts: Vec<StringMatch>,
    /// Workload ports.
    pub ports: Vec<u16>,
    /// None of these.
    pub not_ports: Vec<u16>,
    /// Methods.
    pub methods: Vec<StringMatch>,
    /// None of these.
    pub not_methods: Vec<StringMatch>,
    /// Paths, without query.
    pub paths: Vec<PathMatch>,
    /// None of these.
    pub not_paths: Vec<PathMatch>,
}

/// A path: a text match or an Envoy URI template (`/v1/{*}/x/{**}`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub enum PathMatch {
    /// Text.
    Text(StringMatch),
    /// Template with `{*}` and `{**}`.
    Template(String),
}

/// A condition: the attribute has any of `values` and none of `not_values`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// Which attribute.
    pub key: Attribute,
    /// As written.
    pub values: Vec<String>,
    /// As written.
    pub not_values: Vec<String>,
}

/// Attributes of `when` (Istio "Authorization Policy Conditions").
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub enum Attribute {
    /// `request.headers[NAME]`.
    RequestHeader(String),
    /// `source.ip`.
    SourceIp,
    /// `remote.ip`.
    RemoteIp,
    /// `source.namespace`.
    SourceNamespace,
    /// `source.principal`.
    SourcePrincipal,
    /// `source.serviceAccount`.
    SourceServiceAccount,
    /// `request.auth.principal`.
    RequestPrincipal,
    /// `request.auth.audiences`.
    RequestAudiences,
    /// `request.auth.presenter`.
    RequestPresenter,
    /// `request.auth.claims[A][B]`.
    RequestClaims(Vec<String>),
    /// `destination.ip`.
    DestinationIp,
    /// `destination.port`.
    DestinationPort,
    /// `connection.sni`.
    ConnectionSni,
}
