//! RequestAuthentications as the token filter.

use std::time::Duration;

use model::destination::{ClientTls, TlsMode};
use model::security::{JwtKeys, JwtRule, KeysUri};
use proto::envoy::config::cluster::v3::{
    Cluster,
    cluster::{ClusterDiscoveryType, DiscoveryType, DnsLookupFamily},
};
use proto::envoy::config::core::v3::{DataSource, HttpUri, RetryPolicy, data_source, http_uri};
use proto::envoy::config::route::v3::{RouteMatch, route_match::PathSpecifier};
use proto::envoy::extensions::filters::http::jwt_authn::v3::{
    JwksAsyncFetch, JwtAuthentication, JwtClaimToHeader, JwtHeader, JwtProvider, JwtRequirement, JwtRequirementAndList,
    JwtRequirementOrList, RemoteJwks, RequirementRule, jwt_provider, jwt_requirement::RequiresType,
    requirement_rule::RequirementType,
};
use proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use proto::google::protobuf::Empty;

use super::cluster::BLACK_HOLE;
use super::{Encoder, Target, endpoints, filters, origin, tls, wire};
use crate::destination::Effective;

/// How long fetched keys count, as Istio has it.
const CACHE: Duration = Duration::from_secs(300);
/// Claims that are lists of words (RFC 8693 section 4.2), as Istio takes them.
const SPACED_CLAIMS: [&str; 2] = ["permission", "scope"];

impl Encoder<'_> {
    /// The token filter of the workload, where it has issuers.
    pub(super) fn token_filter(&mut self) -> Option<HttpFilter> {
        let rules = self.mesh.issuers(self.workload);
        if rules.is_empty() {
            return None;
        }
        let named: Vec<_> =
            rules.into_iter().enumerate().map(|(number, rule)| (format!("origins-{number}"), rule)).collect();
        let message = JwtAuthentication {
            rules: vec![RequirementRule {
                r#match: Some(RouteMatch {
                    path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
                    ..RouteMatch::default()
                }),
                requirement_type: Some(RequirementType::Requires(requirement(&named))),
            }],
            providers: named.iter().map(|(name, rule)| (name.clone(), self.provider(rule))).collect(),
            bypass_cors_preflight: true,
            ..JwtAuthentication::default()
        };
        Some(filters::http("envoy.filters.http.jwt_authn", wire::any(&message, &wire::TOKEN_FILTER)))
    }

    fn provider(&mut self, rule: &JwtRule) -> JwtProvider {
        let mut spaced: Vec<String> = SPACED_CLAIMS.iter().map(|claim| (*claim).to_owned()).collect();
        spaced.extend(rule.spaced_claims.iter().cloned());
        spaced.sort();
        spaced.dedup();
        JwtProvider {
            issuer: rule.issuer.clone(),
            audiences: rule.audiences.clone(),
            forward: rule.forward,
            forward_payload_header: rule.payload_header.clone().unwrap_or_default(),
            payload_in_metadata: "payload".to_owned(),
            normalize_payload_in_metadata: Some(jwt_provider::NormalizePayload { space_delimited_claims: spaced }),
            claim_to_headers: rule.claim_headers.iter().map(claim_to_header).collect(),
            from_headers: rule.from_headers.iter().map(from_header).collect(),
            from_params: rule.from_params.clone(),
            from_cookies: rule.from_cookies.clone(),
            jwks_source_specifier: Some(self.keys(rule)),
            ..JwtProvider::default()
        }
    }

    fn keys(&mut self, rule: &JwtRule) -> jwt_provider::JwksSourceSpecifier {
        let (uri, cluster) = match &rule.keys {
            JwtKeys::Inline(text) => {
                return jwt_provider::JwksSourceSpecifier::LocalJwks(DataSource {
                    specifier: Some(data_source::Specifier::InlineString(text.clone())),
                    ..DataSource::default()
                });
            }
            // Keys that cannot be had: never ones that somebody else could know.
            JwtKeys::Unknown => ("http://keys.invalid/".to_owned(), BLACK_HOLE.to_owned()),
            JwtKeys::Remote(uri) => (uri.uri.clone(), self.keys_cluster(uri, rule)),
        };
        jwt_provider::JwksSourceSpecifier::RemoteJwks(RemoteJwks {
            http_uri: Some(HttpUri {
                uri,
                timeout: wire::duration(rule.timeout),
                http_upstream_type: Some(http_uri::HttpUpstreamType::Cluster(cluster)),
            }),
            cache_duration: wire::duration(CACHE),
            async_fetch: Some(JwksAsyncFetch { fast_listener: true, ..JwksAsyncFetch::default() }),
            retry_policy: Some(RetryPolicy { num_retries: wire::uint32(1), ..RetryPolicy::default() }),
        })
    }

    /// The cluster that serves a key set: a service's, where one is known by that name, or one of its own.
    fn keys_cluster(&mut self, uri: &KeysUri, rule: &JwtRule) -> String {
        let hostname = self.mesh.resolve_host(&uri.host, &self.workload.namespace);
        let serves = |service: &&model::Service| service.ports.iter().any(|port| port.number == uri.port);
        let known = [hostname.as_str(), uri.host.as_str()]
            .into_iter()
            .find_map(|host| self.service(host).filter(serves))
            .map(|service| service.hostname.clone());
        if let Some(hostname) = known.filter(|hostname| self.speaks(hostname, uri)) {
            return self.want(Target { hostname, port: uri.port, subset: None });
        }
        let name = format!("keys|{}||{}", uri.port, uri.host);
        let mut cluster = self.policy_cluster(&name, &Effective::default(), model::service::Protocol::Http);
        let kind = DiscoveryType::StrictDns;
        cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind.into()));
        cluster.dns_lookup_family = DnsLookupFamily::All.into();
        cluster.load_assignment = Some(endpoints::single(&name, endpoints::socket(&uri.host, uri.port)));
        cluster.transport_socket = uri.tls.then(|| tls::own_client(&server_tls(), &uri.host, Vec::new()));
        cluster.metadata = origin::metadata(&rule.origin);
        self.clusters.insert(name.clone(), Cluster { name: name.clone(), ..cluster });
        name
    }

    /// Whether a service's own cluster speaks what the URI asks for: plain HTTP inside the mesh, or TLS by a
    /// DestinationRule.
    fn speaks(&self, hostname: &str, uri: &KeysUri) -> bool {
        if !uri.tls {
            return true;
        }
        let Some(service) = self.service(hostname) else { return false };
        let effective = self.mesh.effective(self.caller(), service, uri.port, None);
        effective
            .and_then(|effective| effective.tls)
            .is_some_and(|tls| matches!(tls.mode, TlsMode::Simple | TlsMode::Mutual))
    }
}

/// TLS to a public server.
fn server_tls() -> ClientTls {
    ClientTls {
        mode: TlsMode::Simple,
        certificate: None,
        private_key: None,
        ca: None,
        subject_alt_names: Vec::new(),
        sni: None,
        insecure: false,
    }
}

/// Each issuer's tokens must be good where there are some. With several issuers one whose token is good is enough:
/// they may share a place, where the others would find a token that is not theirs.
fn requirement(named: &[(String, &JwtRule)]) -> JwtRequirement {
    let provider = |name: &String| needs(RequiresType::ProviderName(name.clone()));
    let optional = |name: &String| any(vec![provider(name), needs(RequiresType::AllowMissing(Empty {}))]);
    if let [(name, _)] = named {
        return optional(name);
    }
    let each = named.iter().map(|(name, _)| optional(name)).collect();
    let mut all: Vec<JwtRequirement> = named.iter().map(|(name, _)| provider(name)).collect();
    all.push(needs(RequiresType::RequiresAll(JwtRequirementAndList { requirements: each })));
    any(all)
}

fn any(requirements: Vec<JwtRequirement>) -> JwtRequirement {
    needs(RequiresType::RequiresAny(JwtRequirementOrList { requirements }))
}

fn needs(kind: RequiresType) -> JwtRequirement {
    JwtRequirement { requires_type: Some(kind) }
}

fn claim_to_header((header, claim): &(String, String)) -> JwtClaimToHeader {
    JwtClaimToHeader { header_name: header.clone(), claim_name: claim.clone(), ..JwtClaimToHeader::default() }
}

fn from_header((name, prefix): &(String, String)) -> JwtHeader {
    JwtHeader { name: name.clone(), value_prefix: prefix.clone() }
}
