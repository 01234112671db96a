//! Routes: a table's rules for one caller, in order.

use std::collections::HashMap;

use model::destination::BalancerKind;
use model::route::{Destination, HttpAction, HttpMatch, HttpRule, Mirror, Rewrite, WeightedDestination};
use model::{Origin, Service};
use proto::envoy::config::route::v3::{
    Route, RouteAction, RouteMatch, WeightedCluster,
    route::Action,
    route_action::{ClusterSpecifier, HashPolicy, HostRewriteSpecifier, RequestMirrorPolicy},
    weighted_cluster::{ClusterWeight, cluster_weight},
};
use proto::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use proto::google::protobuf::Any;

use super::route_action::{self, Headers};
use super::{Encoder, Target, origin, route_match, wire};
use crate::routes::Rule;

/// Names of the filters that routes configure.
const FAULT: &str = "envoy.filters.http.fault";
const CORS: &str = "envoy.filters.http.cors";

impl Encoder<'_> {
    /// The routes of rules, up to the first that leaves nothing over.
    pub(super) fn routes(&mut self, rules: &[Rule], port: u16) -> Vec<Route> {
        let mut routes = Vec::new();
        for Rule { rule, namespace } in rules {
            let matches: Vec<Option<&HttpMatch>> = match rule.matches.as_slice() {
                [] => vec![None],
                several => several.iter().map(Some).collect(),
            };
            for wanted in matches {
                let matched = route_match::route_match(wanted);
                let last = route_match::is_everything(&matched);
                routes.push(self.route(rule, wanted, matched, namespace, port));
                if last {
                    return routes;
                }
            }
        }
        routes
    }

    fn route(
        &mut self,
        rule: &HttpRule,
        wanted: Option<&HttpMatch>,
        matched: RouteMatch,
        namespace: &str,
        port: u16,
    ) -> Route {
        let mut changes = vec![&rule.headers];
        if let HttpAction::Route(destinations) = &rule.action
            && let [only] = destinations.as_slice()
        {
            changes.push(&only.headers);
        }
        let headers = Headers::of(changes);
        let action = match &rule.action {
            HttpAction::Route(destinations) => self.forward(rule, destinations, &headers, namespace, port),
            HttpAction::Redirect(redirect) => Action::Redirect(route_action::redirect(redirect, port)),
            HttpAction::DirectResponse { status, body } => {
                Action::DirectResponse(route_action::direct_response(*status, body.as_deref()))
            }
            // Delegates were put in their places; one that is left leads nowhere.
            HttpAction::Delegate { .. } => Action::DirectResponse(route_action::direct_response(404, None)),
        };
        Route {
            name: route_name(rule, wanted),
            r#match: Some(matched),
            metadata: origin::metadata(&rule.origin),
            typed_per_filter_config: per_filter(rule),
            request_headers_to_add: headers.request_add,
            request_headers_to_remove: headers.request_remove,
            response_headers_to_add: headers.response_add,
            response_headers_to_remove: headers.response_remove,
            action: Some(action),
            ..Route::default()
        }
    }

    fn forward(
        &mut self,
        rule: &HttpRule,
        destinations: &[WeightedDestination],
        headers: &Headers,
        namespace: &str,
        port: u16,
    ) -> Action {
        let Some(specifier) = self.clusters_of(destinations, namespace, port) else {
            return Action::DirectResponse(route_action::direct_response(500, None));
        };
        let mirrors = rule.mirrors.iter().map(|mirror| self.mirror(mirror, namespace, port)).collect();
        let mut action = RouteAction {
            cluster_specifier: Some(specifier),
            timeout: wire::duration(rule.timeout.unwrap_or_default()),
            retry_policy: route_action::retries(rule.retries.as_ref(), self.mesh.config().default_retry.as_ref()),
            request_mirror_policies: mirrors,
            hash_policy: self.hash_policies(destinations, namespace, port),
            ..RouteAction::default()
        };
        if let Some(authority) = &headers.authority {
            action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(authority.clone()));
        }
        if let Some(rewritten) = &rule.rewrite {
            rewrite(&mut action, rewritten);
        }
        Action::Route(action)
    }

    /// One cluster, or several by weight. `None` when all weights are zero.
    fn clusters_of(
        &mut self,
        destinations: &[WeightedDestination],
        namespace: &str,
        port: u16,
    ) -> Option<ClusterSpecifier> {
        if let [only] = destinations {
            return Some(ClusterSpecifier::Cluster(self.destination(&only.destination, namespace, port)));
        }
        let weighted: Vec<&WeightedDestination> = destinations.iter().filter(|share| share.weight > 0).collect();
        if weighted.is_empty() {
            return None;
        }
        let clusters = weighted.into_iter().map(|share| {
            let headers = Headers::of([&share.headers]);
            ClusterWeight {
                name: self.destination(&share.destination, namespace, port),
                weight: wire::uint32(share.weight),
                request_headers_to_add: headers.request_add,
                request_headers_to_remove: headers.request_remove,
                response_headers_to_add: headers.response_add,
                response_headers_to_remove: headers.response_remove,
                host_rewrite_specifier: headers.authority.map(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral),
                ..ClusterWeight::default()
            }
        });
        let clusters = clusters.collect();
        Some(ClusterSpecifier::WeightedClusters(WeightedCluster { clusters, ..WeightedCluster::default() }))
    }

    fn mirror(&mut self, mirror: &Mirror, namespace: &str, port: u16) -> RequestMirrorPolicy {
        RequestMirrorPolicy {
            cluster: self.destination(&mirror.destination, namespace, port),
            runtime_fraction: route_action::runtime_share(mirror.millionths),
            ..RequestMirrorPolicy::default()
        }
    }

    /// The cluster of a destination as written, noted as needed.
    pub(super) fn destination(&mut self, destination: &Destination, namespace: &str, listener_port: u16) -> String {
        let target = self.target(destination, namespace, listener_port);
        self.want(target)
    }

    pub(super) fn target(&self, destination: &Destination, namespace: &str, listener_port: u16) -> Target {
        let hostname = self.mesh.resolve_host(&destination.host, namespace);
        let only_port = self.service(&hostname).and_then(|service| match service.ports.as_slice() {
            [only] => Some(only.number),
            _ => None,
        });
        let port = destination.port.or(only_port).unwrap_or(listener_port);
        Target { hostname, port, subset: destination.subset.clone() }
    }

    /// The hashes that the destinations' balancers ask for, each once.
    fn hash_policies(&self, destinations: &[WeightedDestination], namespace: &str, port: u16) -> Vec<HashPolicy> {
        let mut policies = Vec::new();
        for share in destinations {
            let target = self.target(&share.destination, namespace, port);
            let Some(service) = self.service(&target.hostname) else { continue };
            let found = self.service_hash(service, target.port, target.subset.as_deref());
            policies.extend(found.filter(|policy| !policies.contains(policy)));
        }
        policies
    }

    fn service_hash(&self, service: &Service, port: u16, subset: Option<&str>) -> Option<HashPolicy> {
        let effective = self.mesh.effective(self.caller(), service, port, subset)?;
        match effective.balancer.map(|balancer| &balancer.kind) {
            Some(BalancerKind::ConsistentHash { on, .. }) => Some(route_action::hash_policy(on)),
            _ => None,
        }
    }

    /// The route of a service that nobody wrote rules for.
    pub(super) fn default_route(&mut self, service: &Service, port: u16) -> Route {
        let target = Target { hostname: service.hostname.clone(), port, subset: None };
        let hash_policy = self.service_hash(service, port, None).into_iter().collect();
        let cluster = self.want(target);
        let retry_policy = route_action::retries(None, self.mesh.config().default_retry.as_ref());
        let action = RouteAction { hash_policy, retry_policy, ..plain_action(cluster) };
        plain_route("default", Action::Route(action), Some(&service.origin))
    }

    /// Routes of an SMI split: all requests, by weight.
    pub(super) fn split_route(&mut self, split: &model::mesh::TrafficSplit, port: u16) -> Route {
        let destinations = split_destinations(split);
        let action = match self.clusters_of(&destinations, &split.namespace, port) {
            Some(specifier) => Action::Route(RouteAction {
                cluster_specifier: Some(specifier),
                timeout: wire::seconds(0),
                retry_policy: route_action::retries(None, self.mesh.config().default_retry.as_ref()),
                ..RouteAction::default()
            }),
            None => Action::DirectResponse(route_action::direct_response(500, None)),
        };
        plain_route("split", action, Some(&split.origin))
    }
}

/// The backends of an SMI split as weighted destinations.
pub(crate) fn split_destinations(split: &model::mesh::TrafficSplit) -> Vec<WeightedDestination> {
    let destination = |(host, weight): &(String, u64)| WeightedDestination {
        destination: Destination { host: host.clone(), subset: None, port: None },
        weight: u32::try_from(*weight).unwrap_or(u32::MAX / 64),
        headers: model::route::HeaderOps::default(),
    };
    split.backends.iter().map(destination).collect()
}

/// Forwards to one cluster without retries and time limit.
pub(crate) fn plain_action(cluster: String) -> RouteAction {
    RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
        timeout: wire::seconds(0),
        ..RouteAction::default()
    }
}

/// A route of all requests.
pub(crate) fn plain_route(name: &str, action: Action, from: Option<&Origin>) -> Route {
    Route {
        name: name.to_owned(),
        r#match: Some(route_match::everything()),
        metadata: from.and_then(origin::metadata),
        action: Some(action),
        ..Route::default()
    }
}

fn route_name(rule: &HttpRule, wanted: Option<&HttpMatch>) -> String {
    match wanted.map(|wanted| wanted.name.as_str()).filter(|name| !name.is_empty()) {
        Some(name) if rule.name.is_empty() => name.to_owned(),
        Some(name) => format!("{}.{name}", rule.name),
        None => rule.name.clone(),
    }
}

fn per_filter(rule: &HttpRule) -> HashMap<String, Any> {
    let fault = rule.fault.as_ref().map(|fault| (FAULT, wire::any(&route_action::fault(fault), &wire::FLAT)));
    let cors = rule.cors.as_ref().map(|cors| (CORS, wire::any(&route_action::cors(cors), &wire::FLAT)));
    fault.into_iter().chain(cors).map(|(name, config)| (name.to_owned(), config)).collect()
}

fn rewrite(action: &mut RouteAction, wanted: &Rewrite) {
    if let Some(authority) = &wanted.authority {
        action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(authority.clone()));
    }
    if let Some(uri) = &wanted.uri {
        action.prefix_rewrite.clone_from(uri);
    } else if let Some((pattern, substitution)) = &wanted.uri_regex {
        action.regex_rewrite = Some(RegexMatchAndSubstitute {
            pattern: Some(route_match::regex(pattern)),
            substitution: substitution.clone(),
        });
    }
}
