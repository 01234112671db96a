//! CUSTOM policies: for each authorizer a filter that finds the requests it is asked about, and one that asks.

use model::matching::StringMatch;
use model::security::{Authorizer, AuthorizerBody, HttpAuthorizer, PolicyAction};
use proto::envoy::config::core::v3::{GrpcService, HeaderValue, HttpUri, grpc_service, http_uri};
use proto::envoy::config::listener::v3::Filter;
use proto::envoy::config::rbac::v3::Rbac;
use proto::envoy::extensions::filters::http::ext_authz::v3::{
    AuthorizationRequest, AuthorizationResponse, BufferSettings, ExtAuthz, HttpService, ext_authz::Services,
};
use proto::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use proto::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use proto::envoy::r#type::matcher::v3::{
    ListStringMatcher, MetadataMatcher, StringMatcher, ValueMatcher,
    metadata_matcher::{PathSegment, path_segment::Segment},
    string_matcher, value_matcher,
};
use proto::envoy::r#type::v3::HttpStatus;

use super::rbac::{Builder, Guarded};
use super::{Encoder, Target, filters, route_match, wire};

/// How Istio's shadow rules for authorizers are named.
const SHADOW_PREFIX: &str = "istio_ext_authz_";
/// What Istio puts behind the name of a rule whose authorizer is not known.
pub(super) const BAD_SUFFIX: &str = "-deny-due-to-bad-CUSTOM-action";

impl Encoder<'_> {
    /// The filters for a workload's HTTP port. Who cannot be asked allows nothing.
    pub(super) fn external_filters(&mut self, port: Option<(u16, u16)>) -> Vec<HttpFilter> {
        let mut all = Vec::new();
        for (name, rules) in self.asked(Guarded { http: true, port }) {
            match self.authorizer(&name) {
                Some(ask) => {
                    let find = HttpRbac {
                        shadow_rules: Some(rules),
                        shadow_rules_stat_prefix: SHADOW_PREFIX.to_owned(),
                        ..HttpRbac::default()
                    };
                    all.push(filters::http("envoy.filters.http.rbac", wire::any(&find, &wire::RBAC_FILTER)));
                    all.push(filters::http("envoy.filters.http.ext_authz", wire::any(&ask, &wire::FLAT)));
                }
                None => {
                    let deny = HttpRbac { rules: Some(bad(rules)), ..HttpRbac::default() };
                    all.push(filters::http("envoy.filters.http.rbac", wire::any(&deny, &wire::RBAC_FILTER)));
                }
            }
        }
        all
    }

    /// The filters for a port without HTTP: authorizers are asked about requests, so what their rules match is refused.
    pub(super) fn external_network_filters(&self, port: Option<(u16, u16)>) -> Vec<Filter> {
        let refuse = |(_, rules): (String, Rbac)| {
            let message =
                NetworkRbac { rules: Some(bad(rules)), stat_prefix: "tcp.".to_owned(), ..NetworkRbac::default() };
            filters::network("envoy.filters.network.rbac", wire::any(&message, &wire::RBAC_FILTER))
        };
        self.asked(Guarded { http: false, port }).into_iter().map(refuse).collect()
    }

    /// The authorizers that the workload's policies name, in order of their names, and the rules that lead to each.
    fn asked(&self, guarded: Guarded) -> Vec<(String, Rbac)> {
        let policies: Vec<_> = self
            .mesh
            .authorizations(self.workload, PolicyAction::Custom)
            .into_iter()
            .filter(|policy| !policy.dry_run)
            .collect();
        let mut names: Vec<&str> = policies.iter().filter_map(|policy| policy.provider.as_deref()).collect();
        names.sort_unstable();
        names.dedup();
        let builder = Builder { mesh: self.mesh, guarded };
        let of_name = |name: &str| {
            let own: Vec<_> =
                policies.iter().copied().filter(|policy| policy.provider.as_deref() == Some(name)).collect();
            builder.rules(&own, PolicyAction::Custom).map(|rules| (name.to_owned(), rules))
        };
        names.into_iter().filter_map(of_name).collect()
    }

    fn authorizer(&mut self, name: &str) -> Option<ExtAuthz> {
        let mesh = self.mesh;
        let authorizer = mesh.authorizer(name)?;
        let service = mesh.authorizer_service(authorizer, &self.workload.namespace)?;
        let hostname = service.hostname.clone();
        let cluster = self.want(Target { hostname: hostname.clone(), port: authorizer.port, subset: None });
        let services = match &authorizer.http {
            Some(http) => Services::HttpService(http_service(authorizer, http, &hostname, cluster)),
            None => Services::GrpcService(grpc_service(authorizer, cluster)),
        };
        let shown = !authorizer.request_headers.is_empty();
        Some(ExtAuthz {
            transport_api_version: 2,
            failure_mode_allow: authorizer.fail_open,
            clear_route_cache: authorizer.clear_route_cache,
            status_on_error: authorizer.status_on_error.map(|code| HttpStatus { code: i32::from(code) }),
            with_request_body: authorizer.body.map(buffer),
            filter_enabled_metadata: Some(asked_for(name)),
            allowed_headers: shown.then(|| any_of(&authorizer.request_headers)),
            services: Some(services),
            ..ExtAuthz::default()
        })
    }
}

fn http_service(authorizer: &Authorizer, http: &HttpAuthorizer, hostname: &str, cluster: String) -> HttpService {
    let header = |(key, value): &(String, String)| HeaderValue {
        key: key.clone(),
        value: value.clone(),
        ..HeaderValue::default()
    };
    let answers =
        [&http.upstream_on_allow, &http.downstream_on_deny, &http.downstream_on_allow].iter().any(|l| !l.is_empty());
    let list = |names: &[StringMatch]| (!names.is_empty()).then(|| any_of(names));
    HttpService {
        server_uri: Some(HttpUri {
            uri: format!("http://{hostname}"),
            timeout: wire::duration(authorizer.timeout),
            http_upstream_type: Some(http_uri::HttpUpstreamType::Cluster(cluster)),
        }),
        path_prefix: http.path_prefix.clone(),
        authorization_request: (!http.additional_headers.is_empty()).then(|| AuthorizationRequest {
            headers_to_add: http.additional_headers.iter().map(header).collect(),
            ..AuthorizationRequest::default()
        }),
        authorization_response: answers.then(|| AuthorizationResponse {
            allowed_upstream_headers: list(&http.upstream_on_allow),
            allowed_client_headers: list(&http.downstream_on_deny),
            allowed_client_headers_on_success: list(&http.downstream_on_allow),
            ..AuthorizationResponse::default()
        }),
        ..HttpService::default()
    }
}

fn grpc_service(authorizer: &Authorizer, cluster: String) -> GrpcService {
    // A cluster's name has characters that no authority may have.
    let authority = cluster.replace('|', "_.");
    GrpcService {
        timeout: wire::duration(authorizer.timeout),
        target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(grpc_service::EnvoyGrpc {
            cluster_name: cluster,
            authority,
            ..grpc_service::EnvoyGrpc::default()
        })),
        ..GrpcService::default()
    }
}

fn buffer(body: AuthorizerBody) -> BufferSettings {
    BufferSettings {
        max_request_bytes: body.max_bytes,
        allow_partial_message: body.partial,
        pack_as_bytes: body.as_bytes,
    }
}

/// Requests that a rule of this authorizer matched.
fn asked_for(name: &str) -> MetadataMatcher {
    let prefix = string_matcher::MatchPattern::Prefix(format!("{}ns[", rule_prefix(name)));
    let matcher = StringMatcher { match_pattern: Some(prefix), ..StringMatcher::default() };
    MetadataMatcher {
        filter: "envoy.filters.http.rbac".to_owned(),
        path: vec![PathSegment { segment: Some(Segment::Key(format!("{SHADOW_PREFIX}shadow_effective_policy_id"))) }],
        value: Some(ValueMatcher { match_pattern: Some(value_matcher::MatchPattern::StringMatch(matcher)) }),
        ..MetadataMatcher::default()
    }
}

/// What Istio puts before the names of rules that lead to an authorizer.
pub(super) fn rule_prefix(provider: &str) -> String {
    format!("istio-ext-authz-{provider}-")
}

fn bad(mut rules: Rbac) -> Rbac {
    rules.policies = rules.policies.into_iter().map(|(name, rule)| (format!("{name}{BAD_SUFFIX}"), rule)).collect();
    rules
}

fn any_of(names: &[StringMatch]) -> ListStringMatcher {
    ListStringMatcher { patterns: names.iter().map(route_match::string).collect() }
}
