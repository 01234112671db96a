//! Which requests are to be traced. The answer travels in a digit of `x-request-id`, so that every proxy on the way gives
//! the same one (Envoy's `UUIDRequestIDExtension` and `ConnectionManagerUtility::mutateTracingRequestHeader`).

use crate::dice::{Dice, Fraction};

/// Length of a UUID as text.
const LENGTH: usize = 36;
/// Where the digit stands: that of the UUID's version.
const PLACE: usize = 14;

/// Why a request is traced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TraceReason {
    /// It is not.
    #[default]
    NotTraceable,
    /// Chance took it.
    Sampled,
    /// The client gave it an `x-client-trace-id`.
    ClientForced,
    /// A service of the mesh asked for it by `x-envoy-force-trace`.
    ServiceForced,
}

/// Which shares of the requests are traced (`HttpConnectionManager.Tracing`).
#[derive(Debug, Clone, PartialEq)]
pub struct Tracing {
    /// Of those whose clients ask for it. Default: all.
    pub client: Fraction,
    /// Of those that nobody asks for. Default: all.
    pub random: Fraction,
    /// Of those that would be traced by the rules above. Default: all.
    pub overall: Fraction,
    /// The request id tells, and is what chance goes by (`use_request_id_for_trace_sampling`). Default true.
    pub by_id: bool,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct TraceWishes {
    /// It has an `x-client-trace-id`.
    pub client: bool,
    /// It has a believed `x-envoy-force-trace`.
    pub forced: bool,
}

impl Tracing {
    /// Why a request with this id is traced, and whether its id is to tell it: where nothing speaks for it, the id stays.
    pub fn judge(&self, id: &[u8], wishes: TraceWishes, dice: &mut Dice) -> (TraceReason, bool) {
        if !self.by_id {
            return (TraceReason::Sampled, false);
        }
        let Some(number) = number(id) else { return (TraceReason::NotTraceable, false) };
        let reason = match TraceReason::of(id) {
            TraceReason::NotTraceable if wishes.client && dice.hits(self.client) => TraceReason::ClientForced,
            TraceReason::NotTraceable if wishes.forced => TraceReason::ServiceForced,
            TraceReason::NotTraceable if holds(self.random, number) => TraceReason::Sampled,
            told => told,
        };
        let told = reason != TraceReason::NotTraceable;
        (if holds(self.overall, number) { reason } else { TraceReason::NotTraceable }, told)
    }
}

impl TraceReason {
    /// What an id says.
    #[must_use]
    pub fn of(id: &[u8]) -> Self {
        match id.get(PLACE) {
            Some(b'9') if id.len() == LENGTH => Self::Sampled,
            Some(b'a') if id.len() == LENGTH => Self::ServiceForced,
            Some(b'b') if id.len() == LENGTH => Self::ClientForced,
            _ => Self::NotTraceable,
        }
    }

    /// The id that says so; `None`: this one does, or is no UUID.
    #[must_use]
    pub fn mark(self, id: &[u8]) -> Option<[u8; LENGTH]> {
        let mut marked: [u8; LENGTH] = id.try_into().ok()?;
        let digit = match self {
            Self::NotTraceable => b'4',
            Self::Sampled => b'9',
            Self::ServiceForced => b'a',
            Self::ClientForced => b'b',
        };
        let place = marked.get_mut(PLACE)?;
        (std::mem::replace(place, digit) != digit).then_some(marked)
    }
}

/// What chance goes by: the id's first eight digits.
fn number(id: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(id.get(..8)?).ok()?;
    u32::from_str_radix(digits, 16).ok()
}

fn holds(share: Fraction, number: u32) -> bool {
    // Envoy takes the number modulo 10,000 first, whatever the share is of.
    (number % 10_000).checked_rem(share.denominator).is_some_and(|rest| rest < share.numerator)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &[u8; LENGTH] = b"000003e8-89ab-4def-8123-456789abcdef";

    fn of(numerator: u32) -> Fraction {
        Fraction { numerator, denominator: 10_000 }
    }

    fn tracing() -> Tracing {
        Tracing { client: Fraction::ALWAYS, random: of(0), overall: of(10_000), by_id: true }
    }

    #[test]
    fn wishes_go_before_chance() {
        let judge =
            |tracing: &Tracing, client, forced| tracing.judge(ID, TraceWishes { client, forced }, &mut Dice::new(1)).0;
        assert_eq!(judge(&tracing(), false, false), TraceReason::NotTraceable);
        assert_eq!(judge(&tracing(), true, true), TraceReason::ClientForced);
        assert_eq!(judge(&tracing(), false, true), TraceReason::ServiceForced);
        let deaf = Tracing { client: Fraction::NEVER, ..tracing() };
        assert_eq!(judge(&deaf, true, false), TraceReason::NotTraceable);
    }

    #[test]
    fn the_id_is_the_chance() {
        let judge = |random, overall| {
            let tracing = Tracing { random: of(random), overall: of(overall), ..tracing() };
            tracing.judge(ID, TraceWishes::default(), &mut Dice::new(1)).0
        };
        assert_eq!(judge(1_000, 10_000), TraceReason::NotTraceable);
        assert_eq!(judge(1_001, 10_000), TraceReason::Sampled);
        assert_eq!(judge(10_000, 1_000), TraceReason::NotTraceable);
    }

    #[test]
    fn a_mark_is_read_back() {
        for reason in [TraceReason::Sampled, TraceReason::ClientForced, TraceReason::ServiceForced] {
            let marked = reason.mark(ID).unwrap();
            assert_eq!(TraceReason::of(&marked), reason);
            assert_eq!(reason.mark(&marked), None);
            assert_eq!(TraceReason::NotTraceable.mark(&marked).as_ref(), Some(ID));
        }
        assert_eq!(TraceReason::Sampled.mark(b"no-uuid"), None);
        let words = tracing().judge(b"words that are no number", TraceWishes::default(), &mut Dice::new(1));
        assert_eq!(words, (TraceReason::NotTraceable, false));
    }
}
