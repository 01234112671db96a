//! Limits of requests: descriptors are made, tokens taken, and what came of it told.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::{Decision, Matched, Ran};
use crate::dice::Dice;
use crate::facts::Facts;
use crate::format::RequestValues;
use crate::limit::{
    Descriptor, HostRules, LimitReport, LimitSaid, LocalRateLimit, RateLimit, Request, TokenBucket, Word,
};
use crate::moment::Moment;
use crate::reply::{Flags, LocalReply};
use crate::routes::HeaderAddition;
use crate::shape;

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
/// gRPC's RESOURCE_EXHAUSTED.
const RESOURCE_EXHAUSTED: u16 = 8;

/// Runs a filter that limits requests.
pub(super) fn run(
    decision: &mut Decision,
    filter: &LocalRateLimit,
    facts: &Facts<'_>,
    now: Moment,
    dice: &mut Dice,
) -> Ran {
    if !dice.hits(filter.enabled) {
        return Ran::Next;
    }
    let word = filter.judge(facts, decision.matched.as_ref(), now);
    if let Some(bucket) = word.bucket.as_deref().filter(|_| word.told.unwrap_or(filter.told)) {
        decision.asked().external.extend(told(bucket, now));
    }
    let said = match () {
        () if word.allowed => LimitSaid::Ok,
        () if word.shadow => LimitSaid::Shadowed,
        () if dice.hits(filter.enforced) => LimitSaid::Refused,
        () => LimitSaid::Limited,
    };
    decision.asked().limits.push(LimitReport { stat_prefix: filter.stat_prefix.clone(), said });
    match said {
        LimitSaid::Limited if !filter.request_headers.is_empty() => {
            let mut headers = facts.headers.clone();
            add(&filter.request_headers, facts, decision.matched.as_ref(), &mut headers);
            Ran::Headers(Box::new(headers))
        }
        LimitSaid::Ok | LimitSaid::Shadowed | LimitSaid::Limited => Ran::Next,
        LimitSaid::Refused => {
            decision.shapes_response = true;
            Ran::Reply(filter.refusal(facts, decision.matched.as_ref(), word.bucket.as_deref(), now))
        }
    }
}

impl LocalRateLimit {
    fn judge(&self, facts: &Facts<'_>, matched: Option<&Matched>, now: Moment) -> Word {
        let descriptors = self.descriptors(Request { facts, matched });
        let limiter = if self.per_connection { facts.connection.buckets.get(&self.plan) } else { &self.limiter };
        limiter.judge(&descriptors, now)
    }

    fn descriptors<'a>(&'a self, request: Request<'a>) -> Vec<Descriptor<'a>> {
        if self.plan.descriptors.is_empty() {
            return Vec::new();
        }
        if !self.rules.is_empty() {
            return self.rules.iter().filter_map(|rule| rule.descriptor(request, true)).collect();
        }
        let Some((matched, action)) = request.matched.and_then(|matched| Some((matched, matched.forward()?))) else {
            return Vec::new();
        };
        let own = action.limits.as_ref().map_or(&[][..], |limits| &limits.rules);
        let host = match self.host_rules {
            _ if action.limits.as_ref().is_some_and(|limits| limits.with_host) => &matched.host.limits[..],
            HostRules::Include => &matched.host.limits[..],
            HostRules::Fallback if own.is_empty() => &matched.host.limits[..],
            HostRules::Fallback | HostRules::Ignore => &[],
        };
        let counts = |rule: &&RateLimit| rule.stage == self.stage && !rule.off;
        own.iter().chain(host).filter(counts).filter_map(|rule| rule.descriptor(request, false)).collect()
    }

    fn refusal(
        &self,
        facts: &Facts<'_>,
        matched: Option<&Matched>,
        bucket: Option<&TokenBucket>,
        now: Moment,
    ) -> LocalReply {
        let mut headers = HeaderMap::new();
        add(&self.response_headers, facts, matched, &mut headers);
        let tells = self.retry_after && self.status == StatusCode::TOO_MANY_REQUESTS;
        if let Some(bucket) = bucket.filter(|_| tells && !headers.contains_key(header::RETRY_AFTER)) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(bucket.left(now).1.max(1)));
        }
        let reply = LocalReply::error(self.status, "local_rate_limited", "local_rate_limited", Flags::RATE_LIMITED);
        let reply = LocalReply {
            headers: headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            grpc_status: self.resource_exhausted.then_some(RESOURCE_EXHAUSTED),
            ..reply
        };
        match matched {
            Some(matched) => reply.from_origin(&matched.route.metadata),
            None => reply,
        }
    }
}

/// What a client is told of a bucket.
fn told(bucket: &TokenBucket, now: Moment) -> [(HeaderName, HeaderValue); 3] {
    let (remaining, reset) = bucket.left(now);
    [(LIMIT, bucket.max_tokens()), (REMAINING, remaining), (RESET, reset)]
        .map(|(name, number)| (name, HeaderValue::from(number)))
}

fn add(additions: &[HeaderAddition], facts: &Facts<'_>, matched: Option<&Matched>, headers: &mut HeaderMap) {
    let values = RequestValues::of(facts, matched);
    for addition in additions {
        shape::add(addition, &values, headers);
    }
}
