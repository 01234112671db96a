//! Holds many answers against shares, maxima and the endpoints that keys must keep.

use std::collections::{BTreeMap, BTreeSet};

use testkit::recorder::{Log, Record};
use testkit::table::Expect;
use testkit::topology::Topology;

use super::ask::Answer;
use super::health::Seen;

/// Everything about the sum of the answers that is not as it must be.
pub(super) fn check(expect: &Expect, answers: &[Answer], records: &[Record], log: &Log, wrong: &mut Vec<String>) {
    let all: Vec<&Answer> = answers.iter().collect();
    let (last, first): (Vec<&Answer>, Vec<&Answer>) = match expect.after_distribution {
        Some(_) => all.iter().partition(|answer| Some(answer.round) == answers.last().map(|last| last.round)),
        None => (Vec::new(), all),
    };
    shares("share", expect.distribution.as_ref(), &first, expect.tolerance, wrong);
    shares("later share", expect.after_distribution.as_ref(), &last, expect.tolerance, wrong);
    phases(expect, answers, wrong);
    let by_backend = by_backend(&first);
    let total = first.len().max(1);
    let share = |name: &str| ratio(by_backend.get(name).copied().unwrap_or(0), total);
    for (name, most) in expect.distribution_max.iter().flatten().filter(|(name, most)| share(name) > **most) {
        wrong.push(format!("share of {name} {:.3}, at most {most}", share(name)));
    }
    for (name, least) in expect.distribution_min.iter().flatten().filter(|(name, least)| share(name) < **least) {
        wrong.push(format!("share of {name} {:.3}, at least {least}", share(name)));
    }
    let seen = count(records.iter().map(|record| record.backend.clone()));
    let seen = |name: &str| seen.get(name).copied().unwrap_or(0);
    for (name, most) in expect.endpoint_requests_max.iter().flatten().filter(|(name, most)| seen(name) > **most) {
        wrong.push(format!("{} requests reached {name}, at most {most}", seen(name)));
    }
    for (name, least) in expect.endpoint_requests_min.iter().flatten().filter(|(name, least)| seen(name) < **least) {
        wrong.push(format!("{} requests reached {name}, at least {least}", seen(name)));
    }
    statuses(expect, answers, wrong);
    hashing(expect, answers, wrong);
    let connections = count(records.iter().map(|record| record.connection.to_string())).len();
    if expect.upstream_connections.is_some_and(|wanted| connections != wanted)
        || expect.upstream_connections_min.is_some_and(|least| connections < least)
    {
        wrong.push(format!("{connections} connections reached the backends"));
    }
    if let Some(most) = expect.backend_concurrency_max {
        let seen = records.iter().map(|record| log.most_at_once(&record.backend)).max().unwrap_or(0);
        if seen > most {
            wrong.push(format!("{seen} requests at once at a backend, at most {most}"));
        }
    }
}

fn shares(
    what: &str,
    wanted: Option<&BTreeMap<String, f64>>,
    answers: &[&Answer],
    tolerance: Option<f64>,
    wrong: &mut Vec<String>,
) {
    let seen = by_backend(answers);
    for (name, wanted) in wanted.into_iter().flatten() {
        let share = ratio(seen.get(name).copied().unwrap_or(0), answers.len().max(1));
        if (share - wanted).abs() > tolerance.unwrap_or(0.0) + 1e-9 {
            wrong.push(format!("{what} of {name} {share:.3}, must be {wanted} +- {tolerance:?}"));
        }
    }
}

fn phases(expect: &Expect, answers: &[Answer], wrong: &mut Vec<String>) {
    for (number, most) in expect.phase_endpoint_requests_max.iter().flatten().enumerate() {
        let phase: Vec<&Answer> = answers.iter().filter(|answer| answer.round == number).collect();
        let seen = by_backend(&phase);
        for (name, most) in most {
            let got = seen.get(name).copied().unwrap_or(0);
            if got > *most {
                wrong.push(format!("{name} answered {got} times in phase {number}, at most {most}"));
            }
        }
    }
}

fn by_backend(answers: &[&Answer]) -> BTreeMap<String, usize> {
    count(answers.iter().filter_map(|answer| {
        let reply = answer.reply.as_ref()?;
        Some((*reply.header("x-backend").first()?).to_owned())
    }))
}

/// What is wrong with the endpoints that were put out.
pub(super) fn ejections(expect: &Expect, seen: &Seen, topology: &Topology) -> Vec<String> {
    let mut wrong = Vec::new();
    let names = seen.names(topology);
    if let Some(wanted) = &expect.ejected
        && wanted.iter().cloned().collect::<BTreeSet<_>>() != names
    {
        wrong.push(format!("{names:?} were put out, must be {wanted:?}"));
    }
    if let Some(most) = expect.ejected_max
        && seen.most > most
    {
        wrong.push(format!("{} endpoints were out at one time ({names:?}), at most {most}", seen.most));
    }
    wrong
}

fn statuses(expect: &Expect, answers: &[Answer], wrong: &mut Vec<String>) {
    let statuses = count(answers.iter().map(|a| a.reply.as_ref().map_or(0, |reply| reply.status).to_string()));
    let seen = |status: &str| statuses.get(status).copied().unwrap_or(0);
    for (status, most) in expect.status_max.iter().flatten().filter(|(status, most)| seen(status) > **most) {
        wrong.push(format!("status {status} came {} times, at most {most}", seen(status)));
    }
    for (status, least) in expect.status_min.iter().flatten().filter(|(status, least)| seen(status) < **least) {
        wrong.push(format!("status {status} came {} times, at least {least}", seen(status)));
    }
    for (status, wanted) in expect.status_distribution.iter().flatten() {
        let share = ratio(seen(status), answers.len().max(1));
        if (share - wanted).abs() > expect.tolerance.unwrap_or(0.0) + 1e-9 {
            wrong.push(format!("share of status {status} {share:.3}, must be {wanted} +- {:?}", expect.tolerance));
        }
    }
    if let Some(only) = &expect.status_only
        && statuses.keys().any(|status| !only.iter().any(|allowed| allowed.to_string() == *status))
    {
        wrong.push(format!("statuses {statuses:?}, only {only:?} may come"));
    }
}

fn hashing(expect: &Expect, answers: &[Answer], wrong: &mut Vec<String>) {
    let mut chosen: BTreeMap<(usize, usize), Vec<String>> = BTreeMap::new();
    for answer in answers {
        let Some(key) = answer.key else { continue };
        let backend = answer.reply.as_ref().and_then(|r| r.header("x-backend").first().map(|b| (*b).to_owned()));
        chosen.entry((answer.round, key)).or_default().push(backend.unwrap_or_default());
    }
    if expect.one_endpoint_per_key == Some(true) {
        let torn = chosen.values().filter(|all| all.windows(2).any(|pair| matches!(pair, [a, b] if a != b))).count();
        if torn > 0 {
            wrong.push(format!("{torn} keys went to more than one endpoint"));
        }
    }
    if let Some(most) = expect.moved_max {
        let first = |round, key| chosen.get(&(round, key)).and_then(|all| all.first());
        let keys: Vec<usize> = chosen.keys().filter(|(round, _)| *round == 0).map(|(_, key)| *key).collect();
        let moved = keys.iter().filter(|key| first(0, **key) != first(1, **key)).count();
        if ratio(moved, keys.len().max(1)) > most {
            wrong.push(format!("{moved} of {} keys moved, at most a share of {most}", keys.len()));
        }
    }
    if expect.same_endpoint_from_both == Some(true) {
        let differ = chosen
            .iter()
            .filter(|((round, key), all)| {
                *round == 0 && chosen.get(&(1, *key)).is_none_or(|other| other.first() != all.first())
            })
            .count();
        if differ > 0 {
            wrong.push(format!("{differ} keys went elsewhere from the second client"));
        }
    }
    if let Some(most) = expect.max_share_any {
        let by = count(chosen.values().filter_map(|all| all.first().cloned()));
        for (name, number) in by {
            if ratio(number, chosen.len().max(1)) > most {
                wrong.push(format!("{name} got {number} of {} keys, at most a share of {most}", chosen.len()));
            }
        }
    }
}

fn count(items: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for item in items {
        *counts.entry(item).or_default() += 1;
    }
    counts
}

#[allow(clippy::cast_precision_loss, reason = "counts of a test are small")]
pub(super) fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}
