//! Configurations of any size, and one question to each: shared by the test of growth and by the program whose
//! instructions `cargo xtask growth` counts (which asks the program for this list).

use std::sync::Arc;

use engine::balance::Request;
use engine::{ConnectionFacts, Dice, Facts, HttpManager, Moment, Outcome, Peer, Plan, Store, Update, decide};
use http::HeaderMap;
use prost::{Message, Name};
use proto::envoy::config::cluster::v3::{Cluster, cluster};
use proto::envoy::config::core::v3::{Address, SocketAddress, address, socket_address::PortSpecifier};
use proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};
use proto::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use proto::envoy::config::rbac::v3 as rbac;
use proto::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
};
use proto::envoy::extensions::filters::http::{rbac::v3 as rbac_filter, router::v3::Router};
use proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager::RouteSpecifier, http_filter,
};
use proto::envoy::r#type::matcher::v3::{
    PathMatcher, RegexMatcher, StringMatcher, path_matcher, string_matcher::MatchPattern,
};
use proto::google::protobuf::{Any, BoolValue};

/// What grows, by the names that the program is asked by, and the size that counts as large.
pub(crate) const SUBJECTS: [(&str, u32); 11] = [
    ("routes", 10_000),
    ("exact-routes", 10_000),
    ("hosts", 10_000),
    ("rules", 1000),
    ("rules-by-namespace", 1000),
    ("rules-by-path", 1000),
    ("round-robin", 10_000),
    ("least-request", 10_000),
    ("random", 10_000),
    ("ring-hash", 10_000),
    ("maglev", 10_000),
];

/// One question to a configuration of `size`; the answer is checked once and then only taken.
pub(crate) fn question(subject: &str, size: u32) -> Box<dyn FnMut()> {
    match subject {
        "round-robin" => pick(cluster::LbPolicy::RoundRobin, size),
        "least-request" => pick(cluster::LbPolicy::LeastRequest, size),
        "random" => pick(cluster::LbPolicy::Random, size),
        "ring-hash" => pick(cluster::LbPolicy::RingHash, size),
        "maglev" => pick(cluster::LbPolicy::Maglev, size),
        _ => asked(subject, size),
    }
}

/// The last of `size` endpoints and the first are chosen alike.
fn pick(policy: cluster::LbPolicy, size: u32) -> Box<dyn FnMut()> {
    let mut store = Store::new();
    apply(&mut store, proto::type_url::CLUSTER, "up", &upstream(policy, size));
    let plan = store.plan();
    let cluster = plan.cluster("up").expect("cluster").clone();
    let mut dice = Dice::new(1);
    Box::new(move || {
        let request = Request { hash: Some(dice.roll()), ..Request::default() };
        assert!(cluster.balancer.pick(request, Moment::START, &mut dice).is_some());
    })
}

/// The question is about the one in the middle, so that a walk over all would show.
fn asked(subject: &str, size: u32) -> Box<dyn FnMut()> {
    let mut store = Store::new();
    apply(&mut store, proto::type_url::CLUSTER, "up", &upstream(cluster::LbPolicy::RoundRobin, 1));
    let hosts = match subject {
        "hosts" => (0..size).map(|n| host(format!("host-{n}.test"), vec![route_to(prefix("/"))])).collect(),
        "routes" => vec![host("*".into(), (0..size).map(|n| route_to(prefix(&format!("/part-{n}/")))).collect())],
        "exact-routes" => vec![host("*".into(), (0..size).map(|n| route_to(exact(&format!("/part-{n}/x")))).collect())],
        _ => vec![host("*".into(), vec![route_to(prefix("/"))])],
    };
    let rules = subject.starts_with("rules").then(|| rules(subject, size));
    apply(&mut store, proto::type_url::LISTENER, "in", &listener(hosts, rules));
    let plan = store.plan();
    let manager = plan.listener("in").and_then(|listener| listener.chains.iter().next()?.http().cloned());
    let asking = Asking { plan, manager: manager.expect("manager"), size, connection: connection(size) };
    assert!(asking.ask(), "{subject} of {size}");
    Box::new(move || assert!(asking.ask()))
}

struct Asking {
    plan: Arc<Plan>,
    manager: Arc<HttpManager>,
    size: u32,
    connection: ConnectionFacts,
}

impl Asking {
    fn ask(&self) -> bool {
        let middle = self.size / 2;
        let facts = Facts {
            connection: &self.connection,
            method: "GET",
            path: &format!("/part-{middle}/x"),
            authority: &format!("host-{middle}.test"),
            scheme: "http",
            headers: &HeaderMap::new(),
            protocol: engine::facts::Protocol::Http11,
            remote: self.connection.remote.ip(),
            started: std::time::SystemTime::UNIX_EPOCH,
            metadata: None,
        };
        let decision = decide(&self.plan, &self.manager, &facts, Moment::START, &mut Dice::new(1));
        matches!(decision.outcome, Outcome::Forward(_))
    }
}

fn connection(size: u32) -> ConnectionFacts {
    let name = identity(size / 2);
    let peer = Peer { uri_sans: vec![name.as_str().into()], validated: true, ..Peer::default() };
    let remote = ([192, 0, 2, 1], 4711).into();
    ConnectionFacts {
        tls: true,
        peer: Some(Arc::new(peer)),
        ..ConnectionFacts::between(remote, ([10, 0, 0, 1], 80).into(), 7)
    }
}

fn identity(number: u32) -> String {
    format!("spiffe://cluster.local/ns/team-{number}/sa/caller-{number}")
}

fn apply<M: Message>(store: &mut Store, type_url: &str, name: &str, message: &M) {
    let update = Update { type_url: type_url.into(), name: name.into(), body: Some(message.encode_to_vec().into()) };
    for outcome in store.apply(&[update]) {
        outcome.unwrap_or_else(|error| panic!("{error}"));
    }
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn upstream(policy: cluster::LbPolicy, size: u32) -> Cluster {
    let endpoint = |number: u32| {
        let [_, a, b, c] = number.to_be_bytes();
        let address = SocketAddress {
            address: format!("10.{a}.{b}.{c}"),
            port_specifier: Some(PortSpecifier::PortValue(80)),
            ..SocketAddress::default()
        };
        let address = Address { address: Some(address::Address::SocketAddress(address)) };
        LbEndpoint {
            host_identifier: Some(HostIdentifier::Endpoint(Endpoint { address: Some(address), ..Endpoint::default() })),
            ..LbEndpoint::default()
        }
    };
    let group =
        LocalityLbEndpoints { lb_endpoints: (1..=size).map(endpoint).collect(), ..LocalityLbEndpoints::default() };
    Cluster {
        name: "up".into(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(0)),
        lb_policy: policy.into(),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: "up".into(),
            endpoints: vec![group],
            ..ClusterLoadAssignment::default()
        }),
        ..Cluster::default()
    }
}

fn prefix(text: &str) -> route_match::PathSpecifier {
    route_match::PathSpecifier::Prefix(text.into())
}

fn exact(text: &str) -> route_match::PathSpecifier {
    route_match::PathSpecifier::Path(text.into())
}

fn route_to(path: route_match::PathSpecifier) -> Route {
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster("up".into())),
        ..RouteAction::default()
    };
    Route {
        r#match: Some(RouteMatch { path_specifier: Some(path), ..RouteMatch::default() }),
        action: Some(route::Action::Route(action)),
        ..Route::default()
    }
}

fn host(domain: String, routes: Vec<Route>) -> VirtualHost {
    VirtualHost { name: domain.clone(), domains: vec![domain], routes, ..VirtualHost::default() }
}

/// One policy for each of so many callers, namespaces or paths.
fn rules(subject: &str, size: u32) -> HttpFilter {
    let text = |pattern| Some(StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() });
    let regex = |regex| MatchPattern::SafeRegex(RegexMatcher { regex, ..RegexMatcher::default() });
    let authenticated = |name| {
        let caller = rbac::principal::Authenticated { principal_name: text(name) };
        rbac::principal::Identifier::Authenticated(caller)
    };
    let policy = |number: u32| {
        let (permission, principal) = match subject {
            "rules-by-path" => {
                let path = text(MatchPattern::Prefix(format!("/part-{number}/")));
                let path = PathMatcher { rule: path.map(path_matcher::Rule::Path) };
                (rbac::permission::Rule::UrlPath(path), rbac::principal::Identifier::Any(true))
            }
            "rules-by-namespace" => {
                let name = regex(format!(r"spiffe://[^/]+/ns/team\-{number}/sa/.+"));
                (rbac::permission::Rule::Any(true), authenticated(name))
            }
            _ => (rbac::permission::Rule::Any(true), authenticated(MatchPattern::Exact(identity(number)))),
        };
        let policy = rbac::Policy {
            permissions: vec![rbac::Permission { rule: Some(permission) }],
            principals: vec![rbac::Principal { identifier: Some(principal) }],
            ..rbac::Policy::default()
        };
        (format!("policy-{number}"), policy)
    };
    let rules = rbac::Rbac { policies: (0..size).map(policy).collect(), ..rbac::Rbac::default() };
    http_filter("rbac", any(&rbac_filter::Rbac { rules: Some(rules), ..rbac_filter::Rbac::default() }))
}

fn http_filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    }
}

fn listener(virtual_hosts: Vec<VirtualHost>, rules: Option<HttpFilter>) -> Listener {
    let table = RouteConfiguration {
        name: "all".into(),
        virtual_hosts,
        validate_clusters: Some(BoolValue { value: false }),
        ..RouteConfiguration::default()
    };
    let router = http_filter("router", any(&Router::default()));
    let manager = HttpConnectionManager {
        stat_prefix: "in".into(),
        http_filters: rules.into_iter().chain([router]).collect(),
        route_specifier: Some(RouteSpecifier::RouteConfig(table)),
        ..HttpConnectionManager::default()
    };
    let filter = Filter { name: "http".into(), config_type: Some(filter::ConfigType::TypedConfig(any(&manager))) };
    let address = SocketAddress {
        address: "127.0.0.1".into(),
        port_specifier: Some(PortSpecifier::PortValue(0)),
        ..SocketAddress::default()
    };
    Listener {
        name: "in".into(),
        address: Some(Address { address: Some(address::Address::SocketAddress(address)) }),
        filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
        ..Listener::default()
    }
}
