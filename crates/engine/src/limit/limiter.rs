//! Which buckets a request takes its tokens from: those of its descriptors, and the default one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;

use super::bucket::{BucketPlan, TokenBucket};
use super::descriptor::Descriptor;
use crate::moment::Moment;

/// What buckets there are. A filter has one set of them, or each connection has.
#[derive(Debug, Clone)]
pub struct LimiterPlan {
    /// The bucket of requests without a descriptor that is known here.
    pub default: DefaultBucket,
    /// Buckets by descriptor, in order.
    pub descriptors: Vec<DescriptorLimit>,
    /// Requests with a known descriptor need a token of the default bucket too. Default true.
    pub always_default: bool,
    /// Buckets that a descriptor with open values has at once; the one that was asked for longest ago goes. Default 20.
    pub most_dynamic: u32,
}

/// The bucket of all requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DefaultBucket {
    /// There is none: they pass.
    None,
    /// It never holds anything: they are refused.
    Empty,
    /// This one.
    Filled(BucketPlan),
}

/// The bucket of a descriptor (`envoy.extensions.common.ratelimit.v3.LocalRateLimitDescriptor`).
#[derive(Debug, Clone, PartialEq)]
pub struct DescriptorLimit {
    /// Keys and values in order. A value that is empty is open: each value that requests have gets a bucket of its own.
    pub entries: Vec<(Arc<str>, Arc<str>)>,
    /// The bucket.
    pub bucket: BucketPlan,
    /// Requests that it has no token for pass all the same, and are counted.
    pub shadow: bool,
}

impl DescriptorLimit {
    /// Whether a value is left open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.entries.iter().any(|(_, value)| value.is_empty())
    }

    fn takes(&self, descriptor: &Descriptor<'_>) -> bool {
        let pairs = || self.entries.iter().zip(&descriptor.entries);
        self.entries.len() == descriptor.entries.len()
            && pairs().all(|(own, other)| *own.0 == *other.0 && (own.1.is_empty() || *own.1 == *other.1))
    }
}

/// The buckets themselves.
#[derive(Debug)]
pub struct Limiter {
    plan: Arc<LimiterPlan>,
    default: Option<Arc<TokenBucket>>,
    /// Those without an open value, by [`name`].
    closed: HashMap<Box<str>, (usize, Arc<TokenBucket>)>,
    /// Those with one, in order.
    open: Vec<(usize, Mutex<Recent>)>,
}

/// The buckets of one descriptor with open values.
#[derive(Debug, Default)]
struct Recent {
    buckets: HashMap<Arc<str>, (Arc<TokenBucket>, u64)>,
    /// The same by when they were last asked for.
    order: BTreeMap<u64, Arc<str>>,
    count: u64,
}

/// What the buckets say of a request.
#[derive(Debug)]
pub struct Word {
    /// There was a token in each bucket.
    pub allowed: bool,
    /// The bucket to tell of: the one that had none, else the slowest of the descriptors', else the default one.
    pub bucket: Option<Arc<TokenBucket>>,
    /// That bucket only counts.
    pub shadow: bool,
    /// What the descriptor says of headers that tell of the bucket.
    pub told: Option<bool>,
}

impl LimiterPlan {
    /// The buckets, all full.
    #[must_use]
    pub fn open(self: &Arc<Self>) -> Limiter {
        let numbered = || self.descriptors.iter().enumerate();
        let closed = numbered().filter(|(_, limit)| !limit.is_open()).map(|(at, limit)| {
            let pairs = limit.entries.iter().map(|(key, value)| (&**key, &**value));
            (name(pairs).into_boxed_str(), (at, limit.bucket.open()))
        });
        let open = numbered().filter(|(_, limit)| limit.is_open()).map(|(at, _)| (at, Mutex::default()));
        Limiter {
            default: match &self.default {
                DefaultBucket::Filled(bucket) => Some(bucket.open()),
                DefaultBucket::None | DefaultBucket::Empty => None,
            },
            closed: closed.collect(),
            open: open.collect(),
            plan: self.clone(),
        }
    }
}

struct Match<'d> {
    bucket: Arc<TokenBucket>,
    shadow: bool,
    descriptor: &'d Descriptor<'d>,
}

impl Limiter {
    /// Takes a request's tokens. The slowest bucket is asked first; the first that has too few ends it, and what was taken
    /// before stays taken.
    #[must_use]
    pub fn judge(&self, descriptors: &[Descriptor<'_>], now: Moment) -> Word {
        let mut matches: Vec<Match<'_>> = descriptors.iter().filter_map(|descriptor| self.find(descriptor)).collect();
        matches.sort_by(|a, b| a.bucket.rate().total_cmp(&b.bucket.rate()));
        for found in &matches {
            if !found.draw(now) {
                return found.word(false);
            }
        }
        if matches.is_empty() || self.plan.always_default {
            let word = |allowed, bucket| Word { allowed, bucket, shadow: false, told: None };
            match &self.default {
                None if self.plan.default == DefaultBucket::Empty => return word(false, None),
                Some(bucket) if !bucket.take(1, now) => return word(false, Some(bucket.clone())),
                default if matches.is_empty() => return word(true, default.clone()),
                _ => {}
            }
        }
        matches
            .first()
            .map_or(Word { allowed: true, bucket: None, shadow: false, told: None }, |found| found.word(true))
    }

    fn find<'d>(&self, descriptor: &'d Descriptor<'d>) -> Option<Match<'d>> {
        if descriptor.entries.is_empty() {
            return None;
        }
        let name = name(descriptor.entries.iter().map(|(key, value)| (*key, &**value)));
        let found = |at: usize, bucket| {
            let shadow = self.plan.descriptors.get(at).is_some_and(|limit| limit.shadow);
            Some(Match { bucket, shadow, descriptor })
        };
        if let Some((at, bucket)) = self.closed.get(name.as_str()) {
            return found(*at, bucket.clone());
        }
        let limit = |at: usize| self.plan.descriptors.get(at).filter(|limit| limit.takes(descriptor));
        let (at, limit, recent) = self.open.iter().find_map(|(at, recent)| Some((*at, limit(*at)?, recent)))?;
        let mut recent = recent.lock().unwrap_or_else(PoisonError::into_inner);
        found(at, recent.bucket(&name, &limit.bucket, self.plan.most_dynamic))
    }
}

impl Match<'_> {
    fn draw(&self, now: Moment) -> bool {
        match self.descriptor.hits {
            Some(hits) if self.descriptor.gives_back => {
                self.bucket.give_back(hits, now);
                true
            }
            hits => self.bucket.take(hits.unwrap_or(1), now),
        }
    }

    fn word(&self, allowed: bool) -> Word {
        Word { allowed, bucket: Some(self.bucket.clone()), shadow: self.shadow, told: self.descriptor.told }
    }
}

impl Recent {
    fn bucket(&mut self, name: &str, plan: &BucketPlan, most: u32) -> Arc<TokenBucket> {
        self.count += 1;
        let now = self.count;
        if let Some((bucket, last)) = self.buckets.get_mut(name) {
            if let Some(name) = self.order.remove(last) {
                self.order.insert(now, name);
            }
            *last = now;
            return bucket.clone();
        }
        let (bucket, name) = (plan.open(), Arc::<str>::from(name));
        self.buckets.insert(name.clone(), (bucket.clone(), now));
        self.order.insert(now, name);
        if self.order.len() > most as usize
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.buckets.remove(&oldest);
        }
        bucket
    }
}

/// One text for all entries, which no other entries have: each part stands behind its length.
fn name<'e>(entries: impl Iterator<Item = (&'e str, &'e str)>) -> String {
    let mut name = String::new();
    for part in entries.flat_map(|(key, value)| [key, value]) {
        crate::format::push_number(&mut name, part.len());
        name.push(':');
        name.push_str(part);
    }
    name
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::time::Duration;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn bucket(max_tokens: u32) -> BucketPlan {
        BucketPlan { max_tokens, tokens_per_fill: 1, fill_interval: HOUR }
    }

    fn limit(entries: &[(&str, &str)], max_tokens: u32) -> DescriptorLimit {
        let entries = entries.iter().map(|(key, value)| (Arc::from(*key), Arc::from(*value))).collect();
        DescriptorLimit { entries, bucket: bucket(max_tokens), shadow: false }
    }

    fn plan(default: DefaultBucket, descriptors: Vec<DescriptorLimit>) -> LimiterPlan {
        LimiterPlan { default, descriptors, always_default: true, most_dynamic: 2 }
    }

    fn of<'d>(entries: &[(&'d str, &'d str)]) -> Descriptor<'d> {
        let entries = entries.iter().map(|(key, value)| (*key, Cow::Borrowed(*value))).collect();
        Descriptor { entries, ..Descriptor::default() }
    }

    fn allowed(limiter: &Limiter, descriptors: &[Descriptor<'_>]) -> bool {
        limiter.judge(descriptors, Moment::START).allowed
    }

    #[test]
    fn the_default_bucket() {
        let none = Arc::new(plan(DefaultBucket::None, Vec::new())).open();
        assert!(allowed(&none, &[]) && none.judge(&[], Moment::START).bucket.is_none());
        let empty = Arc::new(plan(DefaultBucket::Empty, Vec::new())).open();
        assert!(!allowed(&empty, &[]));
        let one = Arc::new(plan(DefaultBucket::Filled(bucket(1)), Vec::new())).open();
        assert!(allowed(&one, &[]) && !allowed(&one, &[]));
    }

    #[test]
    fn descriptors_and_the_default_bucket() {
        let limits = vec![limit(&[("k", "v")], 3)];
        let both = Arc::new(plan(DefaultBucket::Filled(bucket(2)), limits.clone())).open();
        let word = both.judge(&[of(&[("k", "v")])], Moment::START);
        assert_eq!((word.allowed, word.bucket.unwrap().max_tokens()), (true, 3), "it tells of the descriptor's");
        assert!(allowed(&both, &[of(&[("k", "v")])]));
        let word = both.judge(&[of(&[("k", "v")])], Moment::START);
        assert_eq!((word.allowed, word.bucket.unwrap().max_tokens()), (false, 2), "the default one is empty");
        let own = LimiterPlan { always_default: false, ..plan(DefaultBucket::Filled(bucket(1)), limits) };
        let own = Arc::new(own).open();
        assert!((0..3).all(|_| allowed(&own, &[of(&[("k", "v")])])) && !allowed(&own, &[of(&[("k", "v")])]));
        assert!(allowed(&own, &[of(&[("k", "other")])]), "that one is not known");
        assert!(!allowed(&own, &[of(&[("k", "v"), ("l", "w")])]), "nor is that, and the default bucket is empty");
    }

    #[test]
    fn the_slowest_first() {
        let mut slow = limit(&[("u", "x")], 1);
        slow.bucket.fill_interval = 2 * HOUR;
        let limiter = Arc::new(plan(DefaultBucket::None, vec![limit(&[("k", "v")], 9), slow])).open();
        let both = [of(&[("k", "v")]), of(&[("u", "x")])];
        let word = limiter.judge(&both, Moment::START);
        assert_eq!((word.allowed, word.bucket.unwrap().max_tokens()), (true, 1));
        assert!(!allowed(&limiter, &both));
        let word = limiter.judge(&both[..1], Moment::START);
        assert_eq!(word.bucket.unwrap().left(Moment::START).0, 7, "the refused request took nothing of the faster one");
    }

    #[test]
    fn open_values() {
        let limits = vec![limit(&[("u", "")], 1), limit(&[("u", "gold")], 2)];
        let limiter = Arc::new(plan(DefaultBucket::None, limits)).open();
        let ask = |user: &str| allowed(&limiter, &[of(&[("u", user)])]);
        assert!(ask("a") && !ask("a"), "one each");
        assert!(ask("b") && !ask("a"), "two are kept");
        assert!(ask("c") && ask("b"), "b was asked for longest ago, and begins anew");
        assert!(ask("gold") && ask("gold") && !ask("gold"), "a value of its own comes first");
        assert!(allowed(&limiter, &[of(&[])]), "no descriptor at all");
    }

    #[test]
    fn shadows_and_hits() {
        let shadow = DescriptorLimit { shadow: true, ..limit(&[("k", "v")], 4) };
        let limiter = Arc::new(plan(DefaultBucket::None, vec![shadow])).open();
        let hits = |hits, gives_back| Descriptor { hits: Some(hits), gives_back, ..of(&[("k", "v")]) };
        assert!(allowed(&limiter, &[hits(3, false)]));
        let word = limiter.judge(&[hits(2, false)], Moment::START);
        assert!(!word.allowed && word.shadow);
        assert!(allowed(&limiter, &[hits(2, true)]) && allowed(&limiter, &[hits(3, false)]));
        assert!(!allowed(&limiter, &[hits(0, false)]), "as Envoy does");
    }

    #[test]
    fn names_are_unlike() {
        let of = |entries: &[(&str, &str)]| name(entries.iter().copied());
        assert_ne!(of(&[("a", "b:c")]), of(&[("a:b", "c")]));
        assert_ne!(of(&[("a", "b1:c")]), of(&[("a", "b"), ("c", "")]));
    }
}
