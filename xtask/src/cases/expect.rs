//! Holds what came against what must come.

use std::collections::BTreeMap;

use testkit::recorder::{Log, Record};
use testkit::table::{Ask, Expect, Status, Upstream};

use super::ask::Answer;

/// Everything that is not as it must be.
pub(super) fn check(expect: &Expect, request: Option<&Ask>, answers: &[Answer], log: &Log) -> Vec<String> {
    let records = log.records();
    let mut wrong = Vec::new();
    single(expect, request, answers, &records, &mut wrong);
    statistics(expect, answers, &records, log, &mut wrong);
    mirrors(expect, answers, &records, &mut wrong);
    unsupported(expect, &mut wrong);
    wrong
}

fn unsupported(expect: &Expect, wrong: &mut Vec<String>) {
    for (field, given) in [
        ("ejected", expect.ejected.is_some()),
        ("ejected_max", expect.ejected_max.is_some()),
        ("moved_max", expect.moved_max.is_some()),
        ("after_distribution", expect.after_distribution.is_some()),
        ("phase_endpoint_requests_max", expect.phase_endpoint_requests_max.is_some()),
        ("conditions", expect.conditions.is_some()),
        ("status_distribution", expect.status_distribution.is_some()),
    ] {
        if given {
            wrong.push(format!("the runner cannot check `{field}` yet"));
        }
    }
}

fn single(expect: &Expect, request: Option<&Ask>, answers: &[Answer], records: &[Record], wrong: &mut Vec<String>) {
    let failed = answers.iter().map(|answer| one(expect, request, answer, records)).filter(|w| !w.is_empty());
    let failed: Vec<_> = failed.collect();
    if failed.len() > expect.max_failures.unwrap_or(0) {
        wrong.extend(failed.into_iter().next().unwrap_or_default());
    }
    if let Some(backend) = &expect.backend {
        let mirrored = |record: &&Record| expect.mirrored_to.as_ref().is_none_or(|m| !m.contains_key(&record.backend));
        let got: Vec<&Record> = records.iter().filter(mirrored).collect();
        match backend {
            None if !got.is_empty() => wrong.push(format!("reached {}, must reach no backend", names(&got))),
            Some(allowed) if got.is_empty() => wrong.push(format!("reached no backend, must reach {allowed:?}")),
            Some(allowed) if !got.iter().all(|record| allowed.allows(&record.backend)) => {
                wrong.push(format!("reached {}, must reach {allowed:?}", names(&got)));
            }
            _ => {}
        }
    }
    if let (Some(upstream), Some(record)) = (&expect.upstream, records.first()) {
        check_upstream(upstream, record, wrong);
    } else if expect.upstream.is_some() {
        wrong.push("nothing reached a backend".to_owned());
    }
    framing(expect, answers, records, wrong);
    attempts(expect, records, wrong);
}

fn names(records: &[&Record]) -> String {
    let mut names: Vec<_> = records.iter().map(|record| record.backend.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

fn one(expect: &Expect, request: Option<&Ask>, answer: &Answer, records: &[Record]) -> Vec<String> {
    let mut wrong = Vec::new();
    let tcp = request.is_some_and(|request| request.protocol == "tcp");
    if let Some(decision) = &expect.decision {
        let seen = decision_of(request, answer, records);
        if !decision.allows(&seen.to_owned()) {
            wrong.push(format!("decision {seen}, must be {decision:?} ({})", describe(answer)));
        }
    }
    if let Some(allowed) = &expect.status {
        let seen = match (&answer.reply, tcp) {
            (Some(reply), _) => Status::Code(reply.status),
            (None, true) if answer.bytes.as_ref().is_some_and(|b| !b.is_empty()) => Status::Code(200),
            (None, _) => Status::Word("connection-closed".to_owned()),
        };
        if !allowed.allows(&seen) {
            wrong.push(format!("status {seen:?}, must be {allowed:?} ({})", describe(answer)));
        }
    }
    if let Some(code) = expect.grpc_status {
        let seen = answer.reply.as_ref().and_then(testkit::head::Reply::grpc_status);
        if seen != Some(code) {
            wrong.push(format!("gRPC status {seen:?}, must be {code} ({})", describe(answer)));
        }
    }
    response(expect, answer, &mut wrong);
    let took = u64::try_from(answer.took.as_millis()).unwrap_or(u64::MAX);
    if expect.min_ms.is_some_and(|least| took < least) || expect.max_ms.is_some_and(|most| took > most) {
        wrong.push(format!("took {took} ms, must take {:?} to {:?}", expect.min_ms, expect.max_ms));
    }
    wrong
}

fn describe(answer: &Answer) -> String {
    match (&answer.reply, &answer.bytes) {
        (Some(reply), _) => {
            let body: String = String::from_utf8_lossy(&reply.body).chars().take(120).collect();
            format!("answer {} {body:?}", reply.status)
        }
        (None, Some(bytes)) => format!("{} bytes came back", bytes.len()),
        (None, None) => "the connection closed without an answer".to_owned(),
    }
}

/// Reads the decision from an answer; whatever fits none is described.
fn decision_of(request: Option<&Ask>, answer: &Answer, records: &[Record]) -> &'static str {
    let tcp = request.is_some_and(|request| request.protocol == "tcp");
    let plain = request.is_some_and(|request| request.from.as_deref() == Some("plain"));
    match &answer.reply {
        None if tcp && answer.bytes.as_ref().is_some_and(|bytes| !bytes.is_empty()) => "allow",
        None if !records.is_empty() => "reached the backend, no answer",
        None if plain => "connection-refused",
        None if tcp => "deny",
        None => "connection-closed",
        Some(reply) => match (reply.status, reply.grpc_status()) {
            (200, Some(7)) => "deny",
            (200, None | Some(0)) if !records.is_empty() => "allow",
            (200, _) => "an answer that is not the backend's",
            (403, _) if reply.body.starts_with(b"Audiences") => "forbidden-audience",
            (403, _) => "deny",
            (401, _) => "unauthenticated",
            (400, _) => "bad-request",
            _ => "other",
        },
    }
}

fn response(expect: &Expect, answer: &Answer, wrong: &mut Vec<String>) {
    let Some(reply) = &answer.reply else { return };
    for (name, value) in &expect.response_headers {
        let seen = reply.header(name);
        if !seen.contains(&value.as_str()) && seen.join(",") != *value {
            wrong.push(format!("response header {name}: {seen:?}, must be {value:?}"));
        }
    }
    for name in &expect.response_headers_absent {
        if !reply.header(name).is_empty() {
            wrong.push(format!("response header {name} must not be there"));
        }
    }
    if let Some(location) = &expect.location
        && reply.header("location") != [location.as_str()]
    {
        wrong.push(format!("location {:?}, must be {location:?}", reply.header("location")));
    }
    if let Some(body) = &expect.body
        && reply.body != body.as_bytes()
    {
        wrong.push(format!("body {:?}, must be {body:?}", String::from_utf8_lossy(&reply.body)));
    }
}

fn check_upstream(upstream: &Upstream, record: &Record, wrong: &mut Vec<String>) {
    if let Some(path) = &upstream.path
        && !path.allows(&record.path)
    {
        wrong.push(format!("the backend got path {:?}, must get {path:?}", record.path));
    }
    if let Some(authority) = &upstream.authority
        && record.authority != *authority
    {
        wrong.push(format!("the backend got authority {:?}, must get {authority:?}", record.authority));
    }
    for (name, values) in &upstream.headers {
        let values = match values {
            testkit::table::OneOf::Any(values) => values.clone(),
            testkit::table::OneOf::One(value) => vec![value.clone()],
        };
        let seen = record.header(name);
        if seen != values && seen != [values.join(",")] {
            wrong.push(format!("the backend got {name}: {seen:?}, must get {values:?}"));
        }
    }
    for name in &upstream.headers_absent {
        if !record.header(name).is_empty() {
            wrong.push(format!("the backend must not get {name}"));
        }
    }
}

fn framing(expect: &Expect, answers: &[Answer], records: &[Record], wrong: &mut Vec<String>) {
    if let Some(most) = expect.upstream_requests_max
        && records.len() > most
    {
        wrong.push(format!("{} requests reached the backend, at most {most} may", records.len()));
    }
    if let Some(paths) = &expect.upstream_paths {
        let seen: Vec<_> = records.iter().map(|record| record.path.clone()).collect();
        if seen != *paths {
            wrong.push(format!("paths {seen:?} reached the backend, must be {paths:?}"));
        }
    }
    for name in &expect.upstream_headers_absent {
        if records.iter().any(|record| !record.header(name).is_empty()) {
            wrong.push(format!("the backend must not get {name}"));
        }
    }
    let Some(outcome) = &expect.outcome else { return };
    let status = answers.first().and_then(|answer| answer.reply.as_ref()).map(|reply| reply.status);
    let rejected = records.is_empty() && status.is_none_or(|status| status >= 400);
    let accepted = !records.is_empty() && status.is_some_and(|status| status < 400);
    let fine = match outcome.as_str() {
        "accept" => accepted,
        "reject-or-repair" => rejected || accepted,
        _ => rejected,
    };
    if !fine {
        wrong.push(format!("outcome must be {outcome}: status {status:?}, {} requests reached it", records.len()));
    }
}

fn attempts(expect: &Expect, records: &[Record], wrong: &mut Vec<String>) {
    if let Some(attempts) = expect.attempts
        && records.len() != attempts
    {
        wrong.push(format!("{} attempts, must be {attempts}", records.len()));
    }
    let most = expect.attempts_max.into_iter().chain(expect.attempts_total_max).min();
    if most.is_some_and(|most| records.len() > most) {
        wrong.push(format!("{} attempts, at most {most:?}", records.len()));
    }
    if expect.upstream_body_every_attempt == Some(true)
        && records.windows(2).any(|pair| matches!(pair, [a, b] if a.body != b.body))
    {
        wrong.push("not every attempt carried the same body".to_owned());
    }
    if let Some(protocol) = &expect.upstream_protocol
        && records.iter().any(|record| record.protocol != protocol)
    {
        wrong.push(format!("the backend was not called by {protocol}"));
    }
}

fn statistics(expect: &Expect, answers: &[Answer], records: &[Record], log: &Log, wrong: &mut Vec<String>) {
    let by_backend = count(answers.iter().filter_map(|answer| {
        let reply = answer.reply.as_ref()?;
        Some((*reply.header("x-backend").first()?).to_owned())
    }));
    let total = answers.len().max(1);
    let share = |name: &str| ratio(by_backend.get(name).copied().unwrap_or(0), total);
    for (name, wanted) in expect.distribution.iter().flatten() {
        if (share(name) - wanted).abs() > expect.tolerance.unwrap_or(0.0) + 1e-9 {
            wrong.push(format!("share of {name} {:.3}, must be {wanted} +- {:?}", share(name), expect.tolerance));
        }
    }
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

fn statuses(expect: &Expect, answers: &[Answer], wrong: &mut Vec<String>) {
    let statuses = count(answers.iter().map(|a| a.reply.as_ref().map_or(0, |reply| reply.status).to_string()));
    let seen = |status: &str| statuses.get(status).copied().unwrap_or(0);
    for (status, most) in expect.status_max.iter().flatten().filter(|(status, most)| seen(status) > **most) {
        wrong.push(format!("status {status} came {} times, at most {most}", seen(status)));
    }
    for (status, least) in expect.status_min.iter().flatten().filter(|(status, least)| seen(status) < **least) {
        wrong.push(format!("status {status} came {} times, at least {least}", seen(status)));
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

fn mirrors(expect: &Expect, answers: &[Answer], records: &[Record], wrong: &mut Vec<String>) {
    for (name, wanted) in expect.mirrored_to.iter().flatten() {
        let got: Vec<&Record> = records.iter().filter(|record| record.backend == *name).collect();
        let share = ratio(got.len(), answers.len().max(1));
        if (share - wanted).abs() > expect.tolerance.unwrap_or(0.0) + 1e-9 {
            wrong.push(format!("{share:.3} of the requests were mirrored to {name}, must be {wanted}"));
        }
        if let Some(suffix) = &expect.mirror_authority_suffix
            && let Some(record) = got.iter().find(|record| !record.authority.ends_with(suffix.as_str()))
        {
            wrong.push(format!("the mirror got authority {:?}, must end with {suffix}", record.authority));
        }
        if let Some(body) = &expect.mirror_body
            && got.iter().any(|record| record.body != body.as_bytes())
        {
            wrong.push("the mirror got another body".to_owned());
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
fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}
