//! Spread, priorities, panic, and the equality with Envoy.

use std::sync::atomic::Ordering;
use std::time::Duration;

use hashbrown::HashMap;
use proptest::prelude::*;

use super::*;
use crate::endpoint::{EndpointGroup, HealthStatus, Locality};
use crate::listener::Address;

/// A cluster of one group for each priority; an endpoint is (last byte of its address, weight, health).
fn cluster(lb: &str, groups: &[&[(u8, u32, HealthStatus)]]) -> Balancer {
    let text = format!("name: c\nconnect_timeout: 1s\n{lb}");
    let message: proto::envoy::config::cluster::v3::Cluster =
        proto::json::parse(&text, proto::json::Format::Yaml).expect("cluster");
    let mut strings = crate::build::Strings::default();
    let mut cx = crate::build::Context::new(&mut strings, 1);
    let built = crate::build::cluster(&mut cx, &prost::Message::encode_to_vec(&message));
    let (config, _) = cx.finish(built).expect("cluster");
    Balancer::new(&Arc::new(config), &Arc::new(set(groups)), None)
}

fn set(groups: &[&[(u8, u32, HealthStatus)]]) -> EndpointSet {
    let group = |(priority, members): (usize, &&[(u8, u32, HealthStatus)])| EndpointGroup {
        locality: Arc::new(Locality::default()),
        weight: None,
        priority: priority as u32,
        endpoints: members.iter().map(|(n, weight, health)| endpoint(*n, *weight, *health, priority as u32)).collect(),
    };
    EndpointSet {
        groups: groups.iter().enumerate().map(group).collect(),
        overprovisioning: 140,
        ..EndpointSet::default()
    }
}

fn endpoint(n: u8, weight: u32, health: HealthStatus, priority: u32) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        address: Address::Socket(([10, 0, 0, n], 80).into()),
        hostname: "".into(),
        weight,
        health,
        metadata: Arc::default(),
        locality: Arc::default(),
        priority,
        check: None,
        state: Arc::default(),
    })
}

const UP: HealthStatus = HealthStatus::Healthy;
const DOWN: HealthStatus = HealthStatus::Unhealthy;

fn last_byte(endpoint: &Endpoint) -> u8 {
    match endpoint.address.socket().map(|address| address.ip()) {
        Some(std::net::IpAddr::V4(ip)) => ip.octets()[3],
        other => panic!("{other:?}"),
    }
}

fn spread(balancer: &Balancer, picks: u32) -> HashMap<u8, f64> {
    let mut dice = Dice::new(5);
    let mut counts: HashMap<u8, f64> = HashMap::new();
    for _ in 0..picks {
        let picked = balancer.pick(Request::default(), Moment::START, &mut dice).expect("an endpoint");
        *counts.entry(last_byte(&picked)).or_default() += 1.0 / f64::from(picks);
    }
    counts
}

fn near(value: Option<&f64>, wanted: f64, tolerance: f64) -> bool {
    (value.copied().unwrap_or(0.0) - wanted).abs() <= tolerance + 1e-9
}

#[test]
fn weights_are_kept_by_every_policy() {
    for lb in ["", "lb_policy: LEAST_REQUEST", "lb_policy: RANDOM", "lb_policy: RING_HASH", "lb_policy: MAGLEV"] {
        let spread = spread(&cluster(lb, &[&[(1, 3, UP), (2, 1, UP)]]), 20_000);
        assert!(near(spread.get(&1), 0.75, 0.03), "{lb}: {spread:?}");
        let spread = super::tests::spread(&cluster(lb, &[&[(1, 1, UP), (2, 1, UP), (3, 1, UP)]]), 30_000);
        assert!((1..=3).all(|n| near(spread.get(&n), 0.3333, 0.04)), "{lb}: {spread:?}");
    }
}

#[test]
fn round_robin_takes_turns() {
    let balancer = cluster("", &[&[(1, 1, UP), (2, 1, UP), (3, 1, UP)]]);
    let mut dice = Dice::new(1);
    let picks: Vec<u8> =
        (0..6).map(|_| last_byte(&balancer.pick(Request::default(), Moment::START, &mut dice).unwrap())).collect();
    assert_eq!(picks[..3], picks[3..]);
    assert_eq!(picks[..3].iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
}

#[test]
fn unhealthy_endpoints_are_left_out_until_panic() {
    let one_down = spread(&cluster("", &[&[(1, 1, UP), (2, 1, UP), (3, 1, DOWN)]]), 1000);
    assert_eq!(one_down.get(&3), None);
    let panic = spread(&cluster("", &[&[(1, 1, UP), (2, 1, DOWN), (3, 1, DOWN)]]), 3000);
    assert!((1..=3).all(|n| near(panic.get(&n), 0.3333, 0.01)), "{panic:?}");
    let never = "common_lb_config: {healthy_panic_threshold: {value: 0}}";
    assert!(near(spread(&cluster(never, &[&[(1, 1, UP), (2, 1, DOWN), (3, 1, DOWN)]]), 100).get(&1), 1.0, 0.0));
    let none = cluster(never, &[&[(1, 1, DOWN)]]);
    assert!(none.pick(Request::default(), Moment::START, &mut Dice::new(1)).is_none());
    assert!(cluster("", &[]).pick(Request::default(), Moment::START, &mut Dice::new(1)).is_none());
}

#[test]
fn priorities_spill_over_with_the_factor() {
    // Half of the first priority is healthy: 1.4 x 50 % = 70 % of the load stays there.
    let half = spread(&cluster("", &[&[(1, 1, UP), (2, 1, DOWN)], &[(9, 1, UP)]]), 20_000);
    assert!(near(half.get(&1), 0.7, 0.02) && near(half.get(&9), 0.3, 0.02), "{half:?}");
    let whole = spread(&cluster("", &[&[(1, 1, UP), (2, 1, UP), (3, 1, UP), (4, 1, DOWN)], &[(9, 1, UP)]]), 2000);
    assert_eq!(whole.get(&9), None);
    let degraded = spread(&cluster("", &[&[(1, 1, DOWN), (2, 1, HealthStatus::Degraded)], &[(9, 1, DOWN)]]), 1000);
    assert!(near(degraded.get(&2), 1.0, 0.0), "{degraded:?}");
}

#[test]
fn least_request_avoids_the_busy() {
    let balancer = cluster("lb_policy: LEAST_REQUEST", &[&[(1, 1, UP), (2, 1, UP), (3, 1, UP)]]);
    let busy: Vec<_> = balancer
        .endpoints
        .iter()
        .filter(|e| last_byte(e) == 3)
        .flat_map(|e| (0..9).map(|_| InFlight::begin(e)))
        .collect();
    let spread = spread(&balancer, 9000);
    assert!(near(spread.get(&3), 1.0 / 9.0, 0.02), "{spread:?}");
    drop(busy);
    assert!(balancer.endpoints.iter().all(|endpoint| endpoint.state.active.load(Ordering::Relaxed) == 0));
}

#[test]
fn least_request_may_look_at_every_endpoint() {
    let typed = |more: &str| {
        let policy = "type.googleapis.com/envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest";
        let config = format!("{{name: l, typed_config: {{'@type': {policy}, {more}}}}}");
        format!("load_balancing_policy: {{policies: [{{typed_extension_config: {config}}}]}}")
    };
    let balancer = cluster(&typed("selection_method: FULL_SCAN"), &[&[(1, 1, UP), (2, 1, UP), (3, 1, UP), (4, 1, UP)]]);
    let busy: Vec<_> = balancer.endpoints.iter().filter(|e| last_byte(e) > 2).map(InFlight::begin).collect();
    let idle = spread(&balancer, 9000);
    assert!(near(idle.get(&1), 0.5, 0.03) && near(idle.get(&2), 0.5, 0.03), "{idle:?}");
    drop(busy);
    let all = spread(&balancer, 9000);
    assert!((1..=4).all(|n| near(all.get(&n), 0.25, 0.03)), "{all:?}");
    // Where weights differ they count, whatever the method.
    let weighted = spread(&cluster(&typed("selection_method: FULL_SCAN"), &[&[(1, 3, UP), (2, 1, UP)]]), 20_000);
    assert!(near(weighted.get(&1), 0.75, 0.03), "{weighted:?}");
}

#[test]
fn tried_endpoints_are_avoided() {
    let balancer = cluster("lb_policy: RANDOM", &[&[(1, 1, UP), (2, 1, UP)]]);
    let tried: Vec<_> = balancer.endpoints.iter().filter(|e| last_byte(e) == 1).cloned().collect();
    let request = Request { hash: None, tried: &tried, avoid_attempts: 30, priorities_every: 0 };
    let mut dice = Dice::new(3);
    assert!((0..200).all(|_| last_byte(&balancer.pick(request, Moment::START, &mut dice).unwrap()) == 2));
    let alone = cluster("", &[&[(1, 1, UP)]]);
    assert!(alone.pick(request, Moment::START, &mut dice).is_some());
}

#[test]
fn slow_start_grows() {
    let lb = "round_robin_lb_config: {slow_start_config: {slow_start_window: 100s}}";
    let balancer = cluster(lb, &[&[(1, 1, UP), (2, 1, UP)]]);
    let old = balancer.endpoints.iter().find(|e| last_byte(e) == 1).unwrap();
    old.state.since.store(1, Ordering::Relaxed);
    let at = |seconds: u64| {
        let now = Moment::at(Duration::from_secs(seconds));
        let mut dice = Dice::new(2);
        let hits = (0..4000).filter(|_| last_byte(&balancer.pick(Request::default(), now, &mut dice).unwrap()) == 2);
        hits.count() as f64 / 4000.0
    };
    assert!((at(1000) - 0.1 / 1.1).abs() < 0.01);
    assert!((at(1050) - 0.5 / 1.5).abs() < 0.01);
    assert!((at(1100) - 0.5).abs() < 0.01);
}

/// Endpoints by zone: the name of the zone and how many it has.
fn zones(counts: &[(&str, u8)], first: u8) -> EndpointSet {
    let mut next = first;
    let groups = counts.iter().map(|(zone, count)| {
        let place = Arc::new(Locality { zone: (*zone).into(), ..Locality::default() });
        let members = (0..*count).map(|_| {
            let mut one = Arc::into_inner(endpoint(next, 1, UP, 0)).unwrap();
            one.locality = place.clone();
            next += 1;
            Arc::new(one)
        });
        EndpointGroup { endpoints: members.collect(), locality: place.clone(), weight: None, priority: 0 }
    });
    EndpointSet { groups: groups.collect(), overprovisioning: 140, ..EndpointSet::default() }
}

#[test]
fn zones_keep_what_they_can_carry() {
    let home = Arc::new(Home::new(Locality { zone: "a".into(), ..Locality::default() }, "proxies".into()));
    home.proxies_are(&Arc::new(zones(&[("a", 1), ("b", 1)], 100)));
    let config = cluster("", &[]).config.clone();
    let at = |counts: &[(&str, u8)]| {
        let balancer = Balancer::new(&config, &Arc::new(zones(counts, 1)), Some(&home));
        let spread = spread(&balancer, 20_000);
        let own = counts.iter().take_while(|(zone, _)| *zone != "a").map(|(_, count)| *count).sum::<u8>();
        let here = counts.iter().find(|(zone, _)| *zone == "a").map_or(0, |(_, count)| *count);
        (own + 1..=own + here).map(|n| spread.get(&n).copied().unwrap_or(0.0)).sum::<f64>()
    };
    // Half of the proxies are here: with half of the endpoints all load stays, with less only that much.
    assert!(near(Some(&at(&[("a", 3), ("b", 3)])), 1.0, 0.0));
    assert!(near(Some(&at(&[("b", 6), ("a", 2)])), 0.5, 0.02));
    assert!(near(Some(&at(&[("a", 2), ("b", 2)])), 0.5, 0.02), "too few for zones to count");
    home.proxies_are(&Arc::new(zones(&[("b", 2)], 100)));
    assert!(near(Some(&at(&[("b", 6), ("a", 2)])), 0.25, 0.02), "nobody is here");
}

#[test]
fn a_retry_leaves_tried_priorities() {
    let balancer = cluster("", &[&[(1, 1, UP)], &[(2, 1, UP)], &[(3, 1, UP)]]);
    let by_priority = |n: u8| balancer.endpoints.iter().find(|e| last_byte(e) == n).cloned().unwrap();
    let mut dice = Dice::new(4);
    let mut after = |tried: &[u8], every| {
        let tried: Vec<_> = tried.iter().map(|n| by_priority(*n)).collect();
        let request = Request { hash: None, tried: &tried, avoid_attempts: 0, priorities_every: every };
        last_byte(&balancer.pick(request, Moment::START, &mut dice).unwrap())
    };
    assert_eq!(after(&[], 1), 1);
    assert_eq!(after(&[1], 1), 2);
    assert_eq!(after(&[1, 2], 1), 3);
    assert_eq!(after(&[1, 2, 3], 1), 1, "all were tried");
    assert_eq!(after(&[1], 2), 1, "too early");
    assert_eq!(after(&[1, 1], 2), 2);
    assert_eq!(after(&[1], 0), 1, "not asked for");
}

#[test]
fn checks_put_endpoints_out_and_in() {
    let lb = "common_lb_config: {healthy_panic_threshold: {value: 0}}";
    let balancer = cluster(lb, &[&[(1, 1, UP), (2, 1, UP)]]);
    let first = balancer.endpoints.iter().next().unwrap().clone();
    first.state.health.begin();
    balancer.refresh(Moment::START);
    assert_eq!(spread(&balancer, 100).get(&1), None);
    first.state.health.end();
    balancer.refresh(Moment::START);
    assert!(near(spread(&balancer, 100).get(&1), 0.5, 0.01));
}

/// Where Envoy 1.40 sent keys `key-0` to `key-59`, for endpoints 127.0.0.1:21001 to 21005: the positions of the endpoints.
/// The last two with weights 1, 1, 1, 2, 3, a ring of at least 64 and a table of 251.
const ENVOY: [(&str, [u32; 5], &str); 4] = [
    ("lb_policy: RING_HASH", [1; 5], "004403112021204403412412301131442210401243321411324233011024"),
    ("lb_policy: MAGLEV", [1; 5], "403231214040102201301331312044120144031334414313021324143204"),
    (
        "lb_policy: RING_HASH\nring_hash_lb_config: {minimum_ring_size: 64}",
        [1, 1, 1, 2, 3],
        "343333133213024413303344333114304404231330302120343031021123",
    ),
    (
        "lb_policy: MAGLEV\nmaglev_lb_config: {table_size: 251}",
        [1, 1, 1, 2, 3],
        "101004314144304202132234231143144444144244240424042324144433",
    ),
];

#[test]
fn hashing_agrees_with_envoy() {
    for (lb, weights, wanted) in ENVOY {
        let mut set = set(&[&[
            (1, weights[0], UP),
            (2, weights[1], UP),
            (3, weights[2], UP),
            (4, weights[3], UP),
            (5, weights[4], UP),
        ]]);
        for (at, host) in set.groups[0].endpoints.iter_mut().enumerate() {
            Arc::get_mut(host).unwrap().address = Address::Socket(([127, 0, 0, 1], 21_001 + at as u16).into());
        }
        let balancer = Balancer::new(&cluster(lb, &[]).config, &Arc::new(set), None);
        let place = |key: u32| {
            let hash = xxhash_rust::xxh64::xxh64(format!("key-{key}").as_bytes(), 0);
            let request = Request { hash: Some(hash), ..Request::default() };
            let picked = balancer.pick(request, Moment::START, &mut Dice::new(1)).unwrap();
            picked.address.socket().unwrap().port() - 21_001
        };
        assert_eq!((0..60).map(|key| place(key).to_string()).collect::<String>(), wanted, "{lb}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn consistent_hashing_moves_little(seed in any::<u64>(), gone in 1u8..=10) {
        let mut dice = Dice::new(seed);
        let keys: Vec<u64> = (0..200).map(|_| dice.roll()).collect();
        for lb in ["lb_policy: RING_HASH", "lb_policy: MAGLEV\nmaglev_lb_config: {table_size: 5003}"] {
            let all: Vec<_> = (1..=10).map(|n| (n, 1, UP)).collect();
            let fewer: Vec<_> = all.iter().copied().filter(|(n, _, _)| *n != gone).collect();
            let (before, after) = (cluster(lb, &[&all]), cluster(lb, &[&fewer]));
            let at = |balancer: &Balancer, key: u64| {
                let request = Request { hash: Some(key), ..Request::default() };
                last_byte(&balancer.pick(request, Moment::START, &mut Dice::new(1)).unwrap())
            };
            let moved = keys.iter().filter(|key| at(&before, **key) != gone && at(&before, **key) != at(&after, **key));
            prop_assert!(moved.count() <= 30, "{}", lb);
            prop_assert!(keys.iter().all(|key| at(&before, *key) == at(&before, *key)));
        }
    }
}
