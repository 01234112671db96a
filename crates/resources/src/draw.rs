//! Drawing a diagnostic as rustc draws its own: the line of the text, an underline, and what to do.

use std::fmt::Write;

use model::{Diagnostic, Label, Severity};

const RESET: &str = "\x1b[0m";
const BOLD: &str = "\x1b[1m";
const RED: &str = "\x1b[1;31m";
const YELLOW: &str = "\x1b[1;33m";
const CYAN: &str = "\x1b[1;36m";
const BLUE: &str = "\x1b[1;34m";

/// Lines longer than this are cut around the underlined place.
const WIDTH: usize = 160;

/// Draws a diagnostic over several lines, the last one ending with a line break. Without the text of the
/// file no snippet is drawn.
pub fn render(diagnostic: &Diagnostic, source: Option<&str>, color: bool) -> String {
    let paint = Paint { color };
    let (word, tone) = match diagnostic.severity {
        Severity::Error => ("error", RED),
        Severity::Warning => ("warning", YELLOW),
        Severity::Info => ("note", CYAN),
    };
    let head = paint.with(tone, &format!("{word}[{}]", diagnostic.code));
    let mut out = format!("{head}{}\n", paint.with(BOLD, &format!(": {}", clean(&diagnostic.message))));
    let lines = source.map(|text| text.lines().collect::<Vec<_>>()).unwrap_or_default();
    let last = diagnostic.labels.iter().map(|label| label.start.line).max().unwrap_or(1);
    let gutter = last.to_string().len();
    arrow(&mut out, diagnostic, gutter, &paint);
    snippet(&mut out, diagnostic, &lines, gutter, tone, &paint);
    let note = |out: &mut String, name: &str, text: &str| {
        let _ = writeln!(out, "{:gutter$} {} {name}: {}", "", paint.with(BLUE, "="), clean(text));
    };
    if let Some(object) = &diagnostic.object {
        let field = if diagnostic.field.is_empty() { String::new() } else { format!(", {}", diagnostic.field) };
        let name = if object.name.is_empty() { format!("a {} without name", object.kind) } else { object.to_string() };
        note(&mut out, "in", &format!("{name}{field}"));
    }
    if let Some(help) = &diagnostic.help {
        note(&mut out, "help", help);
    }
    note(&mut out, "more", &format!("tulle explain {}", diagnostic.code));
    out
}

fn arrow(out: &mut String, diagnostic: &Diagnostic, gutter: usize, paint: &Paint) {
    let file = diagnostic.file.as_deref().unwrap_or("<input>");
    let place = match diagnostic.labels.first() {
        Some(label) => format!("{file}:{}:{}", label.start.line, label.start.column),
        None => file.to_owned(),
    };
    let _ = writeln!(out, "{:gutter$}{} {}", "", paint.with(BLUE, "-->"), clean(&place));
}

/// The underlined lines in the order of the text; `...` where lines between them are left out.
fn snippet(out: &mut String, diagnostic: &Diagnostic, lines: &[&str], gutter: usize, tone: &str, paint: &Paint) {
    let mut labels = diagnostic.labels.iter().enumerate().collect::<Vec<_>>();
    labels.sort_by_key(|(_, label)| label.start);
    labels.retain(|(_, label)| line(lines, label).is_some());
    if labels.is_empty() {
        return;
    }
    let bar = paint.with(BLUE, "|");
    let _ = writeln!(out, "{:gutter$} {bar}", "");
    let mut before: Option<u32> = None;
    for (index, label) in labels {
        let Some(text) = line(lines, label) else { continue };
        if before != Some(label.start.line) {
            if before.is_some_and(|before| label.start.line > before + 1) {
                let _ = writeln!(out, "{}", paint.with(BLUE, "..."));
            }
            let number = paint.with(BLUE, &format!("{:gutter$} |", label.start.line));
            let _ = writeln!(out, "{number} {}", cut(text, label).0);
        }
        before = Some(label.start.line);
        let (mark, tone) = if index == 0 { ("^", tone) } else { ("-", BLUE) };
        let (_, offset, length) = cut(text, label);
        let underline = format!("{} {}", mark.repeat(length), clean(&label.text));
        let _ = writeln!(out, "{:gutter$} {bar} {:offset$}{}", "", "", paint.with(tone, underline.trim_end()));
    }
    let _ = writeln!(out, "{:gutter$} {bar}", "");
}

fn line<'t>(lines: &[&'t str], label: &Label) -> Option<&'t str> {
    lines.get(usize::try_from(label.start.line).ok()?.checked_sub(1)?).copied()
}

/// The part of a line to show, and where in it to underline how much.
fn cut(text: &str, label: &Label) -> (String, usize, usize) {
    let start = usize::try_from(label.start.column.saturating_sub(1)).unwrap_or(0);
    let chars = text.chars().count();
    let start = start.min(chars);
    let length = usize::try_from(label.length).unwrap_or(1).clamp(1, chars.saturating_sub(start).max(1));
    let skip = if chars > WIDTH { start.saturating_sub(WIDTH / 2) } else { 0 };
    let shown = text.chars().skip(skip).take(WIDTH).collect::<String>();
    (clean(shown.trim_end()), start - skip, length.min(WIDTH))
}

/// Control characters must not reach a terminal; a tab is one column wide here as in the position.
fn clean(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c == '\t' {
                ' '
            } else if c.is_control() {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

struct Paint {
    color: bool,
}

impl Paint {
    fn with(&self, tone: &str, text: &str) -> String {
        if self.color && !text.is_empty() { format!("{tone}{text}{RESET}") } else { text.to_owned() }
    }
}
