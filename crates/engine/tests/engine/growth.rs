//! A large configuration must not cost a request more than a small one.

use std::time::{Duration, Instant};

use crate::sizes::{SUBJECTS, question};

#[allow(clippy::disallowed_methods, reason = "what is measured is time")]
/// The shortest of many short runs: what other programs on the machine do does not show in it.
fn shortest(mut ask: impl FnMut()) -> Duration {
    let run = |ask: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..20).for_each(|_| ask());
        start.elapsed()
    };
    (0..300).map(|_| run(&mut ask)).min().expect("runs")
}

/// A walk over all would take a thousand times as long. `cargo xtask growth` counts instructions and is exact.
#[test]
fn size_does_not_matter() {
    for (subject, large) in SUBJECTS {
        let (small, large) = (shortest(question(subject, 10)), shortest(question(subject, large)));
        assert!(large <= small * 4, "{subject}: {large:?} after {small:?}");
    }
}
