//! `docs/reference/xds.md`, written from the table.

use std::fmt::Write;

use super::Coverage;
use crate::schema::{FieldType, MessageType, Status};

const HEAD: &str = "# What the proxy honours of Envoy's API v3

<!-- Written by `cargo xtask docs` from docs/reference/xds.toml; do not edit. -->

A field that is not in this list, and a message that is not in this list, is **refused**: a resource that sets it is
not acknowledged (or, in a bootstrap file, the proxy does not start), and the answer names the field's path. An
*ignored* field is accepted, counted and logged, and does nothing.

";

const TESTED: &str = "\
Every honoured field is set by a configuration in `tests/scenarios`, to another value than its default: our proxy and
Envoy are asked the same questions with it and must give the same answers. `cargo xtask docs --check` fails where a field
is honoured and no scenario sets it. Istio's own messages (`io.istio`, `istio.envoy`, `stats`) are asked of our proxy
alone: a plain Envoy does not have them.

";

/// The page, in Markdown; `asked`: what the scenarios set.
pub fn reference_page(asked: &Coverage) -> String {
    let mut page = HEAD.to_owned();
    page.push_str(TESTED);
    let (set, all) = asked.count();
    // Writing to a String cannot fail.
    let _ = writeln!(page, "Asked: {set} of {all} honoured fields.\n");
    for message in MessageType::all().filter(|message| message.listed()) {
        section(&mut page, message, asked);
    }
    page
}

fn section(page: &mut String, message: MessageType, asked: &Coverage) {
    // Writing to a String cannot fail.
    let _ = writeln!(page, "## {}\n", message.name());
    let with = |status: Status| message.fields().filter(move |field| field.status() == status);
    let honoured: Vec<_> = with(Status::Honoured).map(|field| format!("`{}`", field.name())).collect();
    if message.fields().next().is_none() {
        page.push_str("Accepted; it has no fields.\n\n");
    } else if honoured.is_empty() {
        page.push_str("Honoured: nothing.\n\n");
    } else {
        let _ = writeln!(page, "Honoured: {}.\n", honoured.join(", "));
    }
    let unasked: Vec<_> = with(Status::Honoured)
        .filter(|field| !asked.has(message.name(), field.name()))
        .map(|field| format!("`{}`", field.name()))
        .collect();
    if !unasked.is_empty() {
        let _ = writeln!(page, "No scenario yet: {}.\n", unasked.join(", "));
    }
    list(page, "Ignored", with(Status::Ignored));
    list(page, "Refused", with(Status::Refused));
    let unlisted: Vec<_> = with(Status::Unlisted).map(|field| format!("`{}`", field.name())).collect();
    if !unlisted.is_empty() {
        let _ = writeln!(page, "Not implemented, so refused: {}.\n", unlisted.join(", "));
    }
}

fn list(page: &mut String, title: &str, fields: impl Iterator<Item = FieldType>) {
    let lines: Vec<_> = fields.map(|field| format!("- `{}`: {}", field.name(), field.reason())).collect();
    if !lines.is_empty() {
        let _ = writeln!(page, "{title}:\n\n{}\n", lines.join("\n"));
    }
}
