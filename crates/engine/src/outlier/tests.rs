//! Ejections on a clock that the tests own.

use hashbrown::HashSet;

use super::*;
use crate::balance::Request;
use crate::store::{Store, Update};

/// A cluster with endpoints 10.0.0.1 and so on.
fn cluster(endpoints: u8, outlier: &str) -> Arc<Cluster> {
    let members: String = (1..=endpoints)
        .map(|n| {
            format!("      - endpoint: {{address: {{socket_address: {{address: 10.0.0.{n}, port_value: 80}}}}}}\n")
        })
        .collect();
    let text = format!(
        "name: c\ntype: STATIC\noutlier_detection: {outlier}\nload_assignment:\n  cluster_name: c\n  endpoints:\n    - lb_endpoints:\n{members}"
    );
    let message: proto::envoy::config::cluster::v3::Cluster =
        proto::json::parse(&text, proto::json::Format::Yaml).expect("cluster");
    let mut store = Store::new();
    let body = prost::Message::encode_to_vec(&message).into();
    let update = Update { type_url: proto::type_url::CLUSTER.into(), name: "c".into(), body: Some(body) };
    for outcome in store.apply(&[update]) {
        outcome.expect("cluster");
    }
    store.plan().cluster("c").expect("cluster").clone()
}

fn endpoint(cluster: &Cluster, at: usize) -> Arc<Endpoint> {
    cluster.endpoints.iter().nth(at).expect("endpoint").clone()
}

fn at(seconds: u64) -> Moment {
    Moment::at(Duration::from_secs(seconds))
}

fn record(cluster: &Cluster, which: usize, report: Report, seconds: u64) -> Option<EventKind> {
    let endpoint = endpoint(cluster, which);
    cluster
        .state
        .monitor
        .record(cluster, &endpoint, report, at(seconds), &mut Dice::new(1))
        .into_iter()
        .map(|event| event.kind)
        .next()
}

fn sweep(cluster: &Cluster, seconds: u64) -> Vec<EventKind> {
    cluster.state.monitor.sweep(cluster, at(seconds), &mut Dice::new(1)).into_iter().map(|event| event.kind).collect()
}

fn served(cluster: &Cluster) -> usize {
    let mut dice = Dice::new(9);
    let picks = (0..200).filter_map(|_| cluster.balancer.pick(Request::default(), at(0), &mut dice));
    picks.map(|endpoint| endpoint.address.to_string()).collect::<HashSet<_>>().len()
}

#[test]
fn failures_in_a_row_eject_at_once() {
    let cluster = cluster(3, "{consecutive_5xx: 3, max_ejection_percent: 100, base_ejection_time: 10s}");
    assert_eq!(record(&cluster, 0, Report::Status(500), 1), None);
    assert_eq!(record(&cluster, 0, Report::Status(500), 1), None);
    assert_eq!(record(&cluster, 0, Report::Status(200), 1), None);
    assert_eq!(record(&cluster, 0, Report::ConnectFailure, 1), None);
    assert_eq!(record(&cluster, 0, Report::Timeout, 1), None);
    let ejected = EventKind::Ejected { cause: Cause::Consecutive5xx, enforced: true };
    assert_eq!(record(&cluster, 0, Report::Status(503), 1), Some(ejected));
    assert_eq!(served(&cluster), 2);
    assert!(sweep(&cluster, 10).is_empty());
    assert_eq!(sweep(&cluster, 11), [EventKind::Returned]);
    assert_eq!(served(&cluster), 3);
}

#[test]
fn ejection_time_grows_and_shrinks() {
    let cluster =
        cluster(2, "{consecutive_5xx: 1, max_ejection_percent: 100, base_ejection_time: 10s, max_ejection_time: 25s}");
    let out_for = |from: u64| {
        assert!(record(&cluster, 0, Report::Status(500), from).is_some());
        (from..).find(|now| !sweep(&cluster, *now).is_empty()).expect("returns") - from
    };
    assert_eq!(out_for(100), 10);
    assert_eq!(out_for(200), 20);
    assert_eq!(out_for(300), 25);
    for healthy in 0..4 {
        assert!(sweep(&cluster, 400 + healthy).is_empty());
    }
    assert_eq!(out_for(500), 10);
    assert_eq!(endpoint(&cluster, 0).state.outlier.ejections(), 4);
}

#[test]
fn who_comes_back_soon_is_chosen_a_little_later() {
    let cluster = cluster(3, "{consecutive_5xx: 1, max_ejection_percent: 100, base_ejection_time: 0.4s}");
    let now = |millis| Moment::at(Duration::from_millis(millis));
    let (monitor, bad) = (&cluster.state.monitor, endpoint(&cluster, 0));
    assert!(monitor.record(&cluster, &bad, Report::Status(500), now(5000), &mut Dice::new(1)).len() == 1);
    assert_eq!(served(&cluster), 2, "an ejection counts at once");
    assert_eq!(monitor.sweep(&cluster, now(5600), &mut Dice::new(1)).len(), 1);
    for (millis, chosen) in [(5700, 2), (6599, 2), (6600, 3)] {
        monitor.catch_up(&cluster, now(millis));
        assert_eq!(served(&cluster), chosen, "at {millis} ms");
    }
    assert!(monitor.record(&cluster, &bad, Report::Status(500), now(7000), &mut Dice::new(1)).len() == 1);
    assert_eq!(served(&cluster), 2);
    assert_eq!(monitor.sweep(&cluster, now(9000), &mut Dice::new(1)).len(), 1);
    assert_eq!(served(&cluster), 3, "long after the last change");
}

#[test]
fn of_few_endpoints_a_small_share_is_none() {
    let few = cluster(3, "{consecutive_5xx: 1}");
    let overflow = EventKind::Overflow { cause: Cause::Consecutive5xx };
    assert_eq!(record(&few, 0, Report::Status(500), 1), Some(overflow));
    let one = cluster(3, "{consecutive_5xx: 1, always_eject_one_host: true}");
    let ejected = EventKind::Ejected { cause: Cause::Consecutive5xx, enforced: true };
    assert_eq!(record(&one, 0, Report::Status(500), 1), Some(ejected));
    assert_eq!(record(&one, 1, Report::Status(500), 1), Some(overflow));
}

#[test]
fn only_so_many_may_be_out() {
    let cluster = cluster(4, "{consecutive_5xx: 1, max_ejection_percent: 50}");
    let kinds: Vec<_> = (0..4).filter_map(|n| record(&cluster, n, Report::Status(500), 1)).collect();
    let ejected = EventKind::Ejected { cause: Cause::Consecutive5xx, enforced: true };
    let overflow = EventKind::Overflow { cause: Cause::Consecutive5xx };
    assert_eq!(kinds, [ejected, ejected, overflow, overflow]);
}

#[test]
fn gateway_failures_and_enforcing_shares() {
    let gateway = "{max_ejection_percent: 100, consecutive_5xx: 100, consecutive_gateway_failure: 2, enforcing_consecutive_gateway_failure: 100}";
    let strict = cluster(3, gateway);
    assert_eq!(record(&strict, 0, Report::Status(502), 1), None);
    assert_eq!(record(&strict, 0, Report::Status(500), 1), None);
    assert_eq!(record(&strict, 0, Report::Status(504), 1), None);
    let ejected = EventKind::Ejected { cause: Cause::ConsecutiveGateway, enforced: true };
    assert_eq!(record(&strict, 0, Report::Reset, 1), Some(ejected));
    let lenient = cluster(3, "{max_ejection_percent: 100, consecutive_5xx: 100, consecutive_gateway_failure: 1}");
    let noted = EventKind::Ejected { cause: Cause::ConsecutiveGateway, enforced: false };
    assert_eq!(record(&lenient, 0, Report::Status(502), 1), Some(noted));
    assert_eq!(served(&lenient), 3);
}

#[test]
fn own_failures_apart() {
    let split = "{max_ejection_percent: 100, consecutive_5xx: 100, split_external_local_origin_errors: true, consecutive_local_origin_failure: 2}";
    let cluster = cluster(3, split);
    assert_eq!(record(&cluster, 0, Report::ConnectFailure, 1), None);
    assert_eq!(record(&cluster, 0, Report::Connected, 1), None);
    assert_eq!(record(&cluster, 0, Report::ConnectFailure, 1), None);
    let ejected = EventKind::Ejected { cause: Cause::ConsecutiveLocalOrigin, enforced: true };
    assert_eq!(record(&cluster, 0, Report::Timeout, 1), Some(ejected));
}

#[test]
fn rates_below_the_rest() {
    let cluster = cluster(6, "{consecutive_5xx: 1000, consecutive_gateway_failure: 1000, max_ejection_percent: 50}");
    for round in 0..100 {
        for n in 0..6 {
            let bad = n == 2 && round % 2 == 0;
            record(&cluster, n, Report::Status(if bad { 500 } else { 200 }), 1);
        }
    }
    assert_eq!(sweep(&cluster, 10), [EventKind::Ejected { cause: Cause::SuccessRate, enforced: true }]);
    assert!(endpoint(&cluster, 2).state.outlier.is_ejected());
    assert!(sweep(&cluster, 11).is_empty(), "a new interval has no requests");
}

#[test]
fn share_of_failures() {
    let cluster = cluster(
        5,
        "{max_ejection_percent: 100, consecutive_5xx: 1000, consecutive_gateway_failure: 1000, enforcing_success_rate: 0, enforcing_failure_percentage: 100, failure_percentage_threshold: 40, success_rate_minimum_hosts: 100}",
    );
    for round in 0..60 {
        for n in 0..5 {
            record(&cluster, n, Report::Status(if n == 4 && round % 2 == 0 { 503 } else { 200 }), 1);
        }
    }
    assert_eq!(sweep(&cluster, 10), [EventKind::Ejected { cause: Cause::FailurePercentage, enforced: true }]);
}

#[test]
fn each_detector_that_fires_is_told_of() {
    let cluster = cluster(
        1,
        "{consecutive_5xx: 1, consecutive_gateway_failure: 1, enforcing_consecutive_gateway_failure: 0, max_ejection_percent: 100}",
    );
    let bad = endpoint(&cluster, 0);
    let events = cluster.state.monitor.record(&cluster, &bad, Report::Status(503), at(1), &mut Dice::new(1));
    let told: Vec<_> = events.iter().map(|event| (event.kind, event.ejections, event.since)).collect();
    let ejected = |cause, enforced| EventKind::Ejected { cause, enforced };
    assert_eq!(
        told,
        [(ejected(Cause::ConsecutiveGateway, false), 0, None), (ejected(Cause::Consecutive5xx, true), 1, None)]
    );
}
