//! Holds what came against what must come.

use testkit::recorder::{Log, Record};
use testkit::table::{Ask, Expect, Status, Upstream};

use super::ask::Answer;
use super::statistics::{self, ratio};

/// Everything that is not as it must be.
pub(super) fn check(expect: &Expect, request: Option<&Ask>, answers: &[Answer], log: &Log) -> Vec<String> {
    let records = log.records();
    let mut wrong = Vec::new();
    single(expect, request, answers, &records, &mut wrong);
    statistics::check(expect, answers, &records, log, &mut wrong);
    mirrors(expect, answers, &records, &mut wrong);
    unsupported(expect, &mut wrong);
    wrong
}

fn unsupported(expect: &Expect, wrong: &mut Vec<String>) {
    for (field, given) in [("conditions", expect.conditions.is_some())] {
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
    for (name, texts) in &upstream.headers_with {
        let seen = record.header(name).join(",");
        for text in texts.iter().filter(|text| !seen.contains(text.as_str())) {
            wrong.push(format!("the backend got {name}: {seen:?}, must have {text:?}"));
        }
    }
    for name in &upstream.headers_absent {
        if !record.header(name).is_empty() {
            wrong.push(format!("the backend must not get {name}"));
        }
    }
}

/// Requests that broke off before their end count as not arrived.
fn framing(expect: &Expect, answers: &[Answer], records: &[Record], wrong: &mut Vec<String>) {
    let whole = records.iter().filter(|record| record.complete).cloned();
    let records: &[Record] = &whole.collect::<Vec<_>>();
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
