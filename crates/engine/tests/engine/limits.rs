//! Limits of requests and connections: which bucket outlives what, and what is refused.

use std::sync::Arc;

use engine::limit::LimitSaid;
use engine::{Dice, Moment, NetworkFilter, Outcome, Plan, Store, Update, decide};
use proto::type_url::LISTENER;

use crate::world::{Ask, World, cluster, listener, update};

const HOSTS: &str = "- {name: all, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: a}}]}";
const TYPE: &str = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";

fn filter(fields: &str) -> String {
    let always = "{default_value: {numerator: 100}}";
    format!(
        "- {{name: limit, typed_config: {{'@type': {TYPE}, stat_prefix: l, filter_enabled: {always}, \
         filter_enforced: {always}, {fields}}}}}"
    )
}

fn inbound(text: &str) -> Update {
    update::<proto::envoy::config::listener::v3::Listener>(LISTENER, "in", text)
}

fn status(plan: &Plan, ask: &Ask) -> u16 {
    let listener = plan.listener("in").expect("listener");
    let manager = listener.chains.iter().next().and_then(|chain| chain.http()).expect("manager");
    match decide(plan, manager, &ask.facts(), Moment::START, &mut Dice::new(1)).outcome {
        Outcome::Forward(_) => 200,
        Outcome::Reply(reply) => reply.status.as_u16(),
    }
}

#[test]
fn a_bucket_outlives_the_same_configuration() {
    let text = listener(HOSTS, &filter("token_bucket: {max_tokens: 1, fill_interval: 3600s}"), "");
    let mut store = Store::new();
    let mut apply = |updates: &[Update]| {
        store.apply(updates).into_iter().for_each(|outcome| outcome.expect("good"));
        store.plan()
    };
    let ask = Ask::new("GET shop/");
    let plan = apply(&[cluster("a", ""), inbound(&text)]);
    assert_eq!((status(&plan, &ask), status(&plan, &ask)), (200, 429));
    let plan = apply(&[inbound(&text), cluster("a", ""), cluster("b", "")]);
    assert_eq!(status(&plan, &ask), 429, "the same listener again, and clusters that changed");
    let plan = apply(&[inbound(&text.replacen("name: in", "name: in\nper_connection_buffer_limit_bytes: 9000", 1))]);
    assert_eq!(status(&plan, &ask), 429, "the same chain in a listener that changed");
    let plan = apply(&[inbound(&text.replace("max_tokens: 1", "max_tokens: 2"))]);
    assert_eq!(status(&plan, &ask), 200, "another bucket");
}

#[test]
fn a_connection_has_its_own() {
    let fields =
        "token_bucket: {max_tokens: 1, fill_interval: 3600s}, local_rate_limit_per_downstream_connection: true";
    let world = World::new(HOSTS, &filter(fields));
    let (one, other) = (Ask::new("GET shop/"), Ask::new("GET shop/"));
    assert_eq!((status(&world.plan, &one), status(&world.plan, &one)), (200, 429));
    assert_eq!(status(&world.plan, &other), 200);
}

#[test]
fn it_says_what_it_did() {
    let world = World::new(
        HOSTS,
        &filter("token_bucket: {max_tokens: 1, fill_interval: 3600s}, enable_x_ratelimit_headers: 1"),
    );
    let ask = Ask::new("GET shop/");
    for said in [LimitSaid::Ok, LimitSaid::Refused] {
        let (decision, _) = world.decide(&ask, &mut Dice::new(1));
        let asked = decision.asked.expect("it was asked");
        assert_eq!(asked.limits[0].said, said);
        let names: Vec<_> = asked.external.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"]);
    }
}

#[test]
fn what_is_refused() {
    let good = "token_bucket: {max_tokens: 1, fill_interval: 1s}";
    let key = "descriptors: [{entries: [{key: k}], token_bucket: {max_tokens: 1, fill_interval: 1s}}]";
    for (fields, reason) in [
        (
            "token_bucket: {max_tokens: 1, fill_interval: 0.049s}".to_owned(),
            "token_bucket.fill_interval: must be at least",
        ),
        ("token_bucket: {max_tokens: 0}".to_owned(), "fill_interval: must be at least"),
        ("token_bucket: {max_tokens: 1, fill_interval: 1s, tokens_per_fill: 0}".to_owned(), "tokens_per_fill: must be"),
        (format!("{good}, stage: 11"), "stage: must be at most 10"),
        (format!("{good}, status: {{code: 0}}"), "status.code: is no status"),
        (format!("{good}, max_dynamic_descriptors: 0"), "max_dynamic_descriptors: must be at least 1"),
        (format!("{good}, local_cluster_rate_limit: {{}}"), "local_cluster_rate_limit"),
        (
            format!("{good}, descriptors: [{{entries: [], token_bucket: {{max_tokens: 1, fill_interval: 1s}}}}]"),
            "entries: at least",
        ),
        (format!("{key}, rate_limits: [{{actions: []}}]"), "rate_limits[0].actions: at least one"),
        (
            format!("{key}, rate_limits: [{{actions: [{{remote_address: {{}}}}], stage: 0}}]"),
            "are for the rules of routes",
        ),
        (
            format!("{key}, rate_limits: [{{actions: [{{remote_address: {{}}}}], hits_addend: {{}}}}]"),
            "hits_addend: either",
        ),
        (
            format!(
                "{key}, rate_limits: [{{actions: [{{remote_address: {{}}}}], hits_addend: {{format: '%BYTES_RECEIVED%'}}}}]"
            ),
            "hits_addend.format: only",
        ),
        (
            format!("{key}, rate_limits: [{{actions: [{{masked_remote_address: {{v4_prefix_mask_len: 33}}}}]}}]"),
            "v4_prefix_mask_len: must be at most 32",
        ),
        (
            format!(
                "{key}, rate_limits: [{{actions: [{{metadata: {{descriptor_key: m, source: 2, metadata_key: {{key: a, path: [{{key: b}}]}}}}}}]}}]"
            ),
            "metadata.source: only",
        ),
    ] {
        let text = listener(HOSTS, &filter(&fields), "");
        let refused = Store::new().apply(&[inbound(&text)]).remove(0).expect_err(&fields).to_string();
        assert!(refused.contains(reason), "{fields}: {refused}");
    }
    let twice = key.replace("}}]", "}}, {entries: [{key: k}], token_bucket: {max_tokens: 2, fill_interval: 1s}}]");
    let refused = Store::new().apply(&[inbound(&listener(HOSTS, &filter(&twice), ""))]).remove(0);
    assert!(refused.expect_err("twice").to_string().contains("descriptors[1]: stands twice"));
}

#[test]
fn routes_need_a_bucket() {
    let hosts = format!(
        "- {{name: all, domains: ['*'], typed_per_filter_config: {{limit: {{'@type': {TYPE}, stat_prefix: r}}}}, \
         routes: [{{match: {{prefix: /}}, route: {{cluster: a}}}}]}}"
    );
    let refused = Store::new().apply(&[inbound(&listener(&hosts, &filter("stage: 0"), ""))]).remove(0);
    let refused = refused.expect_err("no bucket").to_string();
    assert!(refused.contains("token_bucket: is required where it is set for a route"), "{refused}");
}

#[test]
fn connections_share_a_bucket_by_key() {
    let network = |key: &str, tokens: u32| {
        let kind = "type.googleapis.com/envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit";
        let filter = format!(
            "  - filters:\n      - {{name: limit, typed_config: {{'@type': {kind}, stat_prefix: net, share_key: '{key}', \
             token_bucket: {{max_tokens: {tokens}, fill_interval: 3600s}}}}}}\n"
        );
        listener(HOSTS, "", "").replace("  - filters:\n", &filter)
    };
    let mut store = Store::new();
    let mut updates = vec![cluster("a", "")];
    for (name, key, tokens) in [("one", "k", 1), ("two", "k", 1), ("three", "k", 2), ("four", "", 1), ("five", "", 1)] {
        let text = network(key, tokens).replace("name: in\n", &format!("name: {name}\n"));
        updates.push(update::<proto::envoy::config::listener::v3::Listener>(LISTENER, name, &text));
    }
    store.apply(&updates).into_iter().for_each(|outcome| outcome.expect("good"));
    let plan = store.plan();
    let limit = |name: &str| {
        let chain = plan.listener(name).and_then(|listener| listener.chains.iter().next()).expect("chain");
        match chain.filters.first() {
            Some(NetworkFilter::RateLimit(limit)) => Arc::clone(limit),
            other => panic!("{other:?}"),
        }
    };
    assert!(limit("one").admits(Moment::START) && !limit("two").admits(Moment::START));
    assert!(limit("three").admits(Moment::START), "another bucket under the same key");
    assert!(limit("four").admits(Moment::START) && limit("five").admits(Moment::START), "no key, nothing shared");
}
