//! Runtime values: numbers, switches and shares by key, which count instead of the defaults of the fields that name the
//! key, or of those that Envoy gives a key of its own (`envoy.config.bootstrap.v3.LayeredRuntime`, static layers).
//!
//! Layers are fixed at the start, so that a value is looked up when a resource is built and never again.

use std::time::Duration;

use hashbrown::HashMap;

use crate::dice::Fraction;

/// All values; of two layers the later one counts.
#[derive(Debug, Default, Clone)]
pub struct Runtime {
    values: HashMap<Box<str>, RuntimeValue>,
}

/// One value, as each kind of reader sees it; `None`: it is nothing of that kind, and the default counts.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct RuntimeValue {
    /// As a switch.
    pub flag: Option<bool>,
    /// As a whole number.
    pub whole: Option<u64>,
    /// As any number.
    pub number: Option<f64>,
    /// As a share.
    pub share: Option<Fraction>,
}

impl RuntimeValue {
    /// What a text says: a number or a switch.
    #[must_use]
    pub fn of_text(text: &str) -> Self {
        let text = text.trim();
        let whole: Option<u64> = text.parse().ok();
        let flag = match whole {
            Some(number) => Some(number != 0),
            None if text.eq_ignore_ascii_case("true") => Some(true),
            None if text.eq_ignore_ascii_case("false") => Some(false),
            None => None,
        };
        Self { flag, whole, number: text.parse().ok(), share: None }
    }

    /// What a number says.
    #[must_use]
    pub fn of_number(number: f64) -> Self {
        // Numbers of JSON are whole up to 2^53; beyond that nobody counts.
        let whole = (number >= 0.0 && number.fract() == 0.0 && number < 9e15).then_some(number as u64);
        Self { flag: whole.map(|number| number != 0), whole, number: Some(number), share: None }
    }
}

impl Runtime {
    /// Takes a value of a further layer.
    pub fn put(&mut self, key: &str, value: RuntimeValue) {
        self.values.insert(key.into(), value);
    }

    /// A switch.
    #[must_use]
    pub fn flag(&self, key: &str, default: bool) -> bool {
        self.value(key).and_then(|value| value.flag).unwrap_or(default)
    }

    /// A whole number.
    #[must_use]
    pub fn whole(&self, key: &str, default: u64) -> u64 {
        self.value(key).and_then(|value| value.whole).unwrap_or(default)
    }

    /// A whole number of 32 bits; a larger one counts as the largest.
    #[must_use]
    pub fn small(&self, key: &str, default: u32) -> u32 {
        u32::try_from(self.whole(key, u64::from(default))).unwrap_or(u32::MAX)
    }

    /// Any number.
    #[must_use]
    pub fn number(&self, key: &str, default: f64) -> f64 {
        self.value(key).and_then(|value| value.number).unwrap_or(default)
    }

    /// A time in milliseconds.
    #[must_use]
    pub fn millis(&self, key: &str, default: Duration) -> Duration {
        self.value(key).and_then(|value| value.whole).map_or(default, Duration::from_millis)
    }

    /// A share. A whole number is one of a hundred, as it was before shares had denominators.
    #[must_use]
    pub fn share(&self, key: &str, default: Fraction) -> Fraction {
        let Some(value) = self.value(key) else { return default };
        let whole = value.whole.map(|number| u32::try_from(number).unwrap_or(u32::MAX));
        value.share.or_else(|| whole.map(|numerator| Fraction { numerator, denominator: 100 })).unwrap_or(default)
    }

    /// The numerator of a share whose denominator stays.
    #[must_use]
    pub fn numerator(&self, key: &str, default: Fraction) -> Fraction {
        Fraction { numerator: self.small(key, default.numerator), ..default }
    }

    fn value(&self, key: &str) -> Option<&RuntimeValue> {
        // A field that names no key asks for the empty one.
        if key.is_empty() { None } else { self.values.get(key) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime(key: &str, value: RuntimeValue) -> Runtime {
        let mut runtime = Runtime::default();
        runtime.put(key, value);
        runtime
    }

    #[test]
    fn a_value_counts_for_those_who_can_read_it_so() {
        let all = runtime("k", RuntimeValue::of_text(" 7 "));
        assert!(all.flag("k", false));
        assert_eq!(all.whole("k", 1), 7);
        assert_eq!(all.share("k", Fraction::NEVER), Fraction { numerator: 7, denominator: 100 });
        let part = runtime("k", RuntimeValue::of_number(0.5));
        assert_eq!(part.whole("k", 3), 3);
        assert!((part.number("k", 0.0) - 0.5).abs() < 1e-9);
        let switch = runtime("k", RuntimeValue::of_text("FALSE"));
        assert!(!switch.flag("k", true));
        assert_eq!(switch.whole("k", 3), 3);
    }

    #[test]
    fn what_is_not_there_leaves_the_default() {
        let some = runtime("k", RuntimeValue::of_number(9.0));
        assert_eq!(some.small("other", 4), 4);
        assert_eq!(some.small("", 4), 4);
        assert_eq!(runtime("k", RuntimeValue::of_text("words")).whole("k", 5), 5);
    }

    #[test]
    fn large_numbers_are_cut() {
        assert_eq!(runtime("k", RuntimeValue::of_text("99999999999")).small("k", 1), u32::MAX);
        let of_ten = Fraction { numerator: 1, denominator: 10_000 };
        let cut = runtime("k", RuntimeValue::of_number(5.0)).numerator("k", of_ten);
        assert_eq!(cut, Fraction { numerator: 5, denominator: 10_000 });
    }
}
