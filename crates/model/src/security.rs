//! Who may speak, and how: PeerAuthentication, RequestAuthentication and AuthorizationPolicy.

use std::time::Duration;

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

/// Tokens that requests may carry (one RequestAuthentication).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RequestAuthentication {
    /// Namespace; the root namespace means the whole mesh.
    pub namespace: String,
    /// Workloads it is for; empty means all of the namespace.
    pub selector: Labels,
    /// Issuers.
    pub rules: Vec<JwtRule>,
    /// Where it was declared.
    pub origin: Origin,
}

/// One issuer of tokens (`jwtRules[N]`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JwtRule {
    /// `iss` of its tokens.
    pub issuer: String,
    /// Audiences of which a token must have one; none: any.
    pub audiences: Vec<String>,
    /// Its keys.
    pub keys: JwtKeys,
    /// Headers that hold tokens, and what stands before the token there.
    pub from_headers: Vec<(String, String)>,
    /// Query parameters that hold tokens.
    pub from_params: Vec<String>,
    /// Cookies that hold tokens.
    pub from_cookies: Vec<String>,
    /// Header for the payload.
    pub payload_header: Option<String>,
    /// Headers for single claims: header, claim.
    pub claim_headers: Vec<(String, String)>,
    /// Leave the token in the request. Default false.
    pub forward: bool,
    /// Limit for fetching keys. Default 5 s.
    pub timeout: Duration,
    /// Claims that are lists of words; `scope` and `permission` always are.
    pub spaced_claims: Vec<String>,
    /// The rule's own place.
    pub origin: Origin,
}

/// Keys of an issuer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum JwtKeys {
    /// A key set (JSON).
    Inline(String),
    /// Where the key set is fetched.
    Remote(KeysUri),
    /// None is known: no token of the issuer is good.
    Unknown,
}

/// Where a key set is fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeysUri {
    /// The whole URI.
    pub uri: String,
    /// Over TLS.
    pub tls: bool,
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// An external authorizer (MeshConfig `extensionProviders` with `envoyExtAuthzHttp` or `envoyExtAuthzGrpc`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Authorizer {
    /// The name by which policies ask it.
    pub name: String,
    /// Namespace of its service, where given.
    pub namespace: Option<String>,
    /// Host of its service.
    pub host: String,
    /// Port of its service.
    pub port: u16,
    /// Limit for an answer. Default 600 s as in Istio.
    pub timeout: Duration,
    /// Let pass what could not be asked. Default false.
    pub fail_open: bool,
    /// Choose the route anew after its answer. Default false.
    pub clear_route_cache: bool,
    /// Status for what could not be asked; default 403.
    pub status_on_error: Option<u16>,
    /// How much of the body it is shown.
    pub body: Option<AuthorizerBody>,
    /// Request headers it is shown; gRPC: all.
    pub request_headers: Vec<StringMatch>,
    /// HTTP's own settings; `None`: gRPC.
    pub http: Option<HttpAuthorizer>,
}

/// How an authorizer is shown the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AuthorizerBody {
    /// So many bytes; longer ones are refused, unless `partial`.
    pub max_bytes: u32,
    /// Show the first bytes of longer ones.
    pub partial: bool,
    /// As bytes instead of text (gRPC only).
    pub as_bytes: bool,
}

/// How an authorizer is asked by HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct HttpAuthorizer {
    /// Stands before the request's path.
    pub path_prefix: String,
    /// Headers added to the question.
    pub additional_headers: Vec<(String, String)>,
    /// Its headers that an allowed request gets.
    pub upstream_on_allow: Vec<StringMatch>,
    /// Its headers that a refused client gets.
    pub downstream_on_deny: Vec<StringMatch>,
    /// Its headers that the answer of an allowed request gets.
    pub downstream_on_allow: Vec<StringMatch>,
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
    /// For [`PolicyAction::Custom`]: the name of the authorizer that is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
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
    /// Ask an external authorizer; before everything else.
    Custom,
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
