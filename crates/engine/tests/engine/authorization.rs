//! Who may do what.

use engine::rbac::{Action, Subject};
use engine::{Dice, NetworkFilter};
use proptest::prelude::*;

use crate::world::{Ask, World, connection, update};

const ALL: &str = "- {name: all, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: a}}]}";
const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";

fn world(rules: &str) -> World {
    World::new(ALL, &format!("- name: rbac\n  typed_config:\n    '@type': {RBAC}\n{rules}"))
}

const ALLOW: &str = r#"
    rules:
      action: ALLOW
      policies:
        "ns[shop]-policy[readers]-rule[0]":
          permissions:
            - and_rules:
                rules:
                  - or_rules: {rules: [{url_path: {path: {exact: /a}}}, {url_path: {path: {prefix: /pub/}}}]}
                  - {header: {name: ":method", string_match: {exact: GET}}}
          principals:
            - and_ids:
                ids:
                  - {authenticated: {principal_name: {exact: "spiffe://td/ns/shop/sa/cart"}}}
                  - {not_id: {remote_ip: {address_prefix: 192.0.2.9, prefix_len: 32}}}
        "ns[shop]-policy[ports]-rule[0]":
          permissions: [{destination_port: 9090}]
          principals: [{any: true}]
"#;

fn line(world: &World, ask: &Ask) -> String {
    world.decide(ask, &mut Dice::new(1)).1
}

#[test]
fn allow_names_who_and_what() {
    let world = world(ALLOW);
    let cart = "spiffe://td/ns/shop/sa/cart";
    let denied = "403 rbac_access_denied_matched_policy[none]";
    assert_eq!(line(&world, &Ask::new("GET x/a?q=1").by(cart)), "a");
    assert_eq!(line(&world, &Ask::new("GET x/pub/x").by(cart)), "a");
    assert_eq!(line(&world, &Ask::new("POST x/a").by(cart)), denied);
    assert_eq!(line(&world, &Ask::new("GET x/ab").by(cart)), denied);
    assert_eq!(line(&world, &Ask::new("GET x/a").by("spiffe://td/ns/shop/sa/cart2")), denied);
    assert_eq!(line(&world, &Ask::new("GET x/a")), denied);
    assert_eq!(line(&world, &Ask::new("GET x/a").by(cart).from("192.0.2.9:1")), denied);
    assert_eq!(line(&world, &Ask::new("DELETE x/z").to("10.0.0.1:9090")), "a");
}

#[test]
fn deny_names_the_policy() {
    let world = world(
        r#"
    rules:
      action: DENY
      policies:
        "ns[shop] policy": {permissions: [{header: {name: x-bad, present_match: true}}], principals: [{any: true}]}
    shadow_rules:
      action: ALLOW
      policies: {}
    shadow_rules_stat_prefix: dry_
"#,
    );
    let (decision, line) = world.decide(&Ask::new("GET x/ x-bad=1"), &mut Dice::new(1));
    assert_eq!(line, "403 rbac_access_denied_matched_policy[ns[shop]_policy]");
    assert_eq!(decision.rbac[0].enforced.as_ref().unwrap().policy.as_deref(), Some("ns[shop] policy"));
    let (decision, line) = world.decide(&Ask::new("GET x/"), &mut Dice::new(1));
    assert_eq!(line, "a");
    let shadow = decision.rbac[0].shadow.as_ref().expect("shadow");
    assert!(!shadow.allowed, "an ALLOW set without policies refuses everything");
    assert_eq!(decision.rbac[0].shadow_stat_prefix.as_deref(), Some("dry_"));
}

#[test]
fn explain_says_what_failed_first() {
    let world = world(ALLOW);
    let manager = world.manager();
    let engine::http_manager::HttpFilterKind::Rbac(rbac) = &manager.filters[0].kind else { panic!("rbac") };
    let rules = rbac.rules.as_ref().expect("rules");
    let ask = Ask::new("POST x/a").by("spiffe://td/ns/shop/sa/pay");
    let facts = ask.facts();
    let trace = rules.explain(&Subject::request(&facts));
    assert_eq!(trace.action, Action::Allow);
    assert_eq!(trace.verdict, rules.judge(&Subject::request(&facts)));
    assert_eq!(&*trace.policies[1].name, "ns[shop]-policy[readers]-rule[0]");
    assert_eq!(
        trace.policies[1].permissions[0].failed.as_deref(),
        Some(r#"header :method exact "GET", but it is "POST""#)
    );
    assert_eq!(
        trace.policies[1].principals[0].failed.as_deref(),
        Some(r#"client exact "spiffe://td/ns/shop/sa/cart", but the client is spiffe://td/ns/shop/sa/pay"#)
    );
    assert_eq!(trace.policies[0].permissions[0].failed.as_deref(), Some("destination port 9090, but it is 80"));
    assert_eq!(trace.policies[0].principals[0].failed, None);
}

#[test]
fn connections_are_judged_without_a_request() {
    let text = r#"
name: in
address: {socket_address: {address: 127.0.0.1, port_value: 0}}
filter_chains:
  - filters:
      - name: rbac
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC
          stat_prefix: tcp.
          rules:
            action: DENY
            policies:
              headers: {permissions: [{header: {name: x-a, present_match: true}}], principals: [{any: true}]}
              source: {permissions: [{any: true}], principals: [{direct_remote_ip: {address_prefix: 192.0.2.0, prefix_len: 28}}]}
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: tcp
          cluster: a
"#;
    let mut store = engine::Store::new();
    let update = update::<proto::envoy::config::listener::v3::Listener>(proto::type_url::LISTENER, "in", text);
    store.apply(&[update]).remove(0).expect("listener");
    let plan = store.plan();
    let chain = plan.listener("in").expect("listener").chains.pick(&connection()).expect("chain").clone();
    let NetworkFilter::Rbac(rbac) = &chain.filters[0] else { panic!("rbac first") };
    let denied = rbac.judge(&connection());
    assert_eq!(denied.details.as_deref(), Some("rbac_access_denied_matched_policy[source]"));
    let mut other = connection();
    other.direct_remote = "192.0.3.1:1".parse().expect("address");
    assert!(rbac.judge(&other).allowed);
    assert!(chain.tcp().is_some());
}

#[test]
fn routes_override_rules() {
    let per_route = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
    let filter = "type.googleapis.com/envoy.config.route.v3.FilterConfig";
    let hosts = format!(
        "
- name: v
  domains: ['*']
  routes:
    - match: {{prefix: /free}}
      route: {{cluster: a}}
      typed_per_filter_config: {{rbac: {{'@type': {per_route}}}}}
    - match: {{prefix: /off}}
      route: {{cluster: a}}
      typed_per_filter_config: {{rbac: {{'@type': {filter}, disabled: true}}}}
    - {{match: {{prefix: /}}, route: {{cluster: a}}}}
"
    );
    let nobody = format!("- name: rbac\n  typed_config: {{'@type': {RBAC}, rules: {{action: ALLOW}}}}");
    World::new(&hosts, &nobody).check(
        "
        GET x/free -> a
        GET x/off -> a
        GET x/ -> 403 rbac_access_denied_matched_policy[none]
        ",
    );
}

#[test]
fn clients_are_known_by_any_of_their_names() {
    let rules = |matcher: &str| {
        world(&format!(
            "    rules: {{action: ALLOW, policies: {{p: {{permissions: [{{any: true}}], principals: [{{authenticated: {matcher}}}]}}}}}}"
        ))
    };
    let two_names = || {
        let mut ask = Ask::new("GET x/").by("spiffe://td/a");
        ask.rename(|peer| {
            peer.dns_sans = vec!["d.test".into()];
            peer.subject = "CN=subj".into();
        });
        ask
    };
    let anonymous = || {
        let mut ask = Ask::new("GET x/").by("spiffe://td/a");
        ask.anonymous();
        ask
    };
    let passes = |matcher: &str, ask: &Ask| line(&rules(matcher), ask) == "a";
    // As Envoy 1.40 answers for such certificates.
    for matcher in [
        "{}",
        "{principal_name: {exact: 'spiffe://td/a'}}",
        "{principal_name: {exact: d.test}}",
        "{principal_name: {contains: 'CN=subj'}}",
    ] {
        assert!(passes(matcher, &two_names()), "{matcher}");
    }
    assert!(!passes("{principal_name: {exact: ''}}", &two_names()));
    assert!(passes("{}", &anonymous()), "TLS without a client certificate, where the listener takes it");
    assert!(!passes("{principal_name: {safe_regex: {regex: '.+'}}}", &anonymous()));
    assert!(!passes("{}", &Ask::new("GET x/")), "plain text");
}

/// Permissions and principals of all shapes over few names and paths, so that many overlap.
fn policy() -> impl Strategy<Value = String> {
    let permission = prop_oneof![
        Just("{any: true}".to_owned()),
        "/[ab]{1,2}".prop_map(|path| format!("{{url_path: {{path: {{exact: {path:?}}}}}}}")),
        "/[ab]".prop_map(|path| format!("{{url_path: {{path: {{prefix: {path:?}}}}}}}")),
        "/[ab]".prop_map(|path| format!(
            "{{and_rules: {{rules: [{{any: true}}, {{url_path: {{path: {{exact: {path:?}}}}}}}]}}}}"
        )),
        "/[ab]".prop_map(|path| format!("{{not_rule: {{url_path: {{path: {{exact: {path:?}}}}}}}}}")),
    ];
    let principal = prop_oneof![
        Just("{any: true}".to_owned()),
        Just("{authenticated: {principal_name: {exact: ''}}}".to_owned()),
        "[ab]{1,2}".prop_map(|name| format!("{{authenticated: {{principal_name: {{exact: {name:?}}}}}}}")),
        "[ab]".prop_map(|name| format!("{{or_ids: {{ids: [{{authenticated: {{principal_name: {{exact: {name:?}}}}}}}, {{authenticated: {{principal_name: {{exact: ab}}}}}}]}}}}")),
        "[ab]".prop_map(|name| format!("{{authenticated: {{principal_name: {{exact: {name:?}, ignore_case: true}}}}}}")),
        "[ab]".prop_map(|name| format!(
            "{{authenticated: {{principal_name: {{safe_regex: {{regex: 'spiffe://[^/]+/ns/{name}/sa/.+'}}}}}}}}"
        )),
        "[ab]".prop_map(|name| format!("{{not_id: {{authenticated: {{principal_name: {{exact: {name:?}}}}}}}}}")),
    ];
    (permission, principal)
        .prop_map(|(permission, principal)| format!("{{permissions: [{permission}], principals: [{principal}]}}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_index_finds_the_policy_that_trying_all_finds(policies in proptest::collection::vec(policy(), 9..30)) {
        let named: Vec<String> = policies.iter().enumerate().map(|(at, policy)| format!("p{at:02}: {policy}")).collect();
        let world = world(&format!("    rules: {{action: ALLOW, policies: {{{}}}}}", named.join(", ")));
        let manager = world.manager();
        let engine::http_manager::HttpFilterKind::Rbac(rbac) = &manager.filters[0].kind else { panic!("rbac") };
        let rules = rbac.rules.as_ref().unwrap();
        for path in ["/a", "/b", "/ab", "/c"] {
            let asks = [Some("a"), Some("b"), Some("ab"), Some("A"), Some("spiffe://td/ns/a/sa/x"), None];
            for ask in asks.map(|name| name.map_or_else(|| Ask::new(&format!("GET x{path}")), |name| Ask::new(&format!("GET x{path}")).by(name))) {
                let facts = ask.facts();
                let subject = Subject::request(&facts);
                let all = rules.policies().iter().find(|policy| policy.matches(&subject)).map(|policy| policy.name.clone());
                prop_assert_eq!(rules.judge(&subject).policy, all);
            }
        }
    }
}

/// Who gets through to what, where these policies deny and these allow; no list of allowing policies allows everything.
fn passing(deny: &[String], allow: Option<&[String]>) -> Vec<bool> {
    let filter = |action: &str, policies: &[String]| {
        let named: Vec<String> = policies.iter().enumerate().map(|(at, policy)| format!("p{at}: {policy}")).collect();
        format!(
            "- name: {action}\n  typed_config:\n    '@type': {RBAC}\n    rules: {{action: {action}, policies: {{{}}}}}\n",
            named.join(", ")
        )
    };
    let allow = allow.map(|policies| filter("ALLOW", policies)).unwrap_or_default();
    let world = World::new(ALL, &format!("{}{allow}", filter("DENY", deny)));
    let asks = ["/a", "/b", "/ab", "/c"].into_iter().flat_map(|path| {
        let plain = move || Ask::new(&format!("GET x{path}"));
        [plain(), plain().by("a"), plain().by("ab"), plain().by("spiffe://td/ns/a/sa/x")]
    });
    asks.map(|ask| line(&world, &ask) == "a").collect()
}

/// Whoever passes on the left passes on the right.
fn within(left: &[bool], right: &[bool]) -> bool {
    left.iter().zip(right).all(|(left, right)| !left || *right)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn more_rules_change_what_passes_in_one_direction(
        deny in proptest::collection::vec(policy(), 1..4),
        allow in proptest::collection::vec(policy(), 1..4),
        more in policy(),
    ) {
        let both = passing(&deny, Some(&allow));
        prop_assert!(within(&both, &passing(&deny, None)), "an allowing policy opens what is denied");
        let wider = [allow.as_slice(), std::slice::from_ref(&more)].concat();
        prop_assert!(within(&both, &passing(&deny, Some(&wider))), "one more allowing policy closes something");
        let stricter = [deny.as_slice(), std::slice::from_ref(&more)].concat();
        prop_assert!(within(&passing(&stricter, Some(&allow)), &both), "one more denying policy opens something");
    }
}

#[test]
fn each_value_of_a_header_is_looked_at_alone() {
    let rules = |action: &str, rule: &str| {
        let rbac = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
        let filter = format!(
            "- name: rbac\n  typed_config:\n    '@type': {rbac}\n    rules: {{action: {action}, policies: {{p: {{permissions: [{{header: {{name: x-a, {rule}}}}}], \
             principals: [{{any: true}}]}}}}}}"
        );
        World::new("- {name: v, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: a}}]}", &filter)
    };
    let exact = "string_match: {exact: evil}";
    let denied = "403 rbac_access_denied_matched_policy[p]";
    let deny = rules("DENY", exact);
    assert_eq!(deny.ask("GET x/ x-a=evil x-a=good"), denied);
    assert_eq!(deny.ask("GET x/ x-a=good x-a=evil"), denied);
    assert_eq!(deny.ask("GET x/ x-a=good"), "a");
    let joined = rules("ALLOW", "string_match: {exact: \"a,b\"}");
    assert_eq!(joined.ask("GET x/ x-a=a,b"), "a");
    assert_eq!(joined.ask("GET x/ x-a=a x-a=b"), "403 rbac_access_denied_matched_policy[none]");
    let other = rules("ALLOW", &format!("{exact}, invert_match: true"));
    assert_eq!(other.ask("GET x/ x-a=good x-a=evil"), "403 rbac_access_denied_matched_policy[none]");
    assert_eq!(other.ask("GET x/ x-a=good x-a=better"), "a");
}
