//! Whatever comes in: an answer, never a panic.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::{codes, parse};

const GOOD: &str = include_str!("good.yaml");

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text(text in any::<String>()) {
        parse(&text);
    }

    #[test]
    fn text_that_looks_like_yaml(text in "[a-z{}\\[\\]:,&*!|>'\"%@`#?\\- \n\t0-9~<.\u{e9}]{0,200}") {
        let parsed = parse(&text);
        for finding in &parsed.diagnostics {
            resources::render(finding, Some(&text), true);
        }
    }

    /// A good file with one place spoilt: still no panic, and all other documents take effect.
    #[test]
    fn one_spoilt_byte(at in 0..GOOD.len(), with in any::<char>()) {
        prop_assume!(GOOD.is_char_boundary(at));
        let tail = GOOD[at..].chars().next().map_or("", |c| &GOOD[at + c.len_utf8()..]);
        let spoilt = format!("{}{with}{tail}", &GOOD[..at]);
        let parsed = parse(&spoilt);
        for finding in &parsed.diagnostics {
            let drawn = resources::render(finding, Some(&spoilt), false);
            prop_assert!(drawn.contains("TL0"));
        }
        let documents = parse(GOOD).entries.len();
        // The spoilt place may be a `---`, which makes two documents one.
        prop_assert!(parsed.entries.len() + 2 >= documents, "{} of {documents}", parsed.entries.len());
    }

    #[test]
    fn truncated(at in 0..GOOD.len()) {
        prop_assume!(GOOD.is_char_boundary(at));
        parse(&GOOD[..at]);
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the time it takes is what is tested")]
fn bombs_are_refused_at_once() {
    let begin = Instant::now();
    let mut bomb = String::from("a0: &a0 [x, x]\n");
    for level in 1..60 {
        let below = level - 1;
        bomb.push_str(&format!("a{level}: &a{level} [*a{below}, *a{below}]\n"));
    }
    assert_eq!(codes(&bomb), ["TL0003"]);
    assert_eq!(codes(&"[".repeat(100_000)).len(), 1);
    assert_eq!(codes(&"- ".repeat(100_000)).len(), 1);
    let wide = format!("kind: {{{}}}", (0..50_000).map(|n| format!("k{n}: 1,")).collect::<String>());
    assert!(!codes(&wide).is_empty());
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}

#[test]
fn one_bad_document_among_a_hundred() {
    let good = |n: usize| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{n}}}\nspec:\n  ports: [{{port: 80, name: http}}]\n---\n"
        )
    };
    let mut text = (0..50).map(good).collect::<String>();
    text.push_str("apiVersion: v1\nkind: Service\nmetadata: {name: broken\nspec: [\n---\n");
    text.push_str(&(50..100).map(good).collect::<String>());
    let parsed = parse(&text);
    assert_eq!(parsed.entries.len(), 100);
    assert_eq!(parsed.diagnostics.len(), 1);
    let place = parsed.diagnostics[0].labels[0].start.line;
    assert!((301..=306).contains(&place), "line {place}");
}
