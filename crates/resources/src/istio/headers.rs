//! Header changes.

use model::route::{HeaderChanges, HeaderOps};

use crate::field::{Field, Object};
use crate::{codes, names};

/// Reads `headers`.
pub(super) fn read(field: &Field<'_>) -> HeaderOps {
    let object = field.object();
    let changes = |name: &'static str| object.get(name).map(|field| changes(&field)).unwrap_or_default();
    HeaderOps { request: changes("request"), response: changes("response") }
}

/// Reads the name of a header, in lower case; pseudo-headers are none.
pub(super) fn name(field: &Field<'_>) -> String {
    let name = field.filled();
    if let (false, Err(why)) = (name.is_empty(), names::header(&name)) {
        field.error(codes::HEADER, format!("header name `{name}` {why}"));
    } else if name.starts_with(':') {
        field.error(codes::HEADER, format!("`{name}` is no header of its own"));
    }
    name.to_ascii_lowercase()
}

fn changes(field: &Field<'_>) -> HeaderChanges {
    let object = field.object();
    HeaderChanges {
        set: values(&object, "set"),
        add: values(&object, "add"),
        remove: object.get("remove").map(|field| field.items().iter().map(removed).collect()).unwrap_or_default(),
    }
}

fn removed(item: &Field<'_>) -> String {
    let name = item.text();
    match names::header(&name) {
        Err(why) => {
            item.error(codes::HEADER, format!("header name `{name}` {why}"));
        }
        Ok(()) if name.starts_with(':') || name.eq_ignore_ascii_case("host") => {
            item.error(codes::HEADER, format!("`{name}` cannot be removed: no request is without it"));
        }
        Ok(()) => {}
    }
    name
}

fn values(object: &Object<'_>, name: &'static str) -> Vec<(String, String)> {
    let Some(field) = object.get(name) else { return Vec::new() };
    let read = |pair: &Field<'_>| {
        let value = pair.text();
        if let Err(why) = names::header(pair.key()) {
            pair.error_at_key(codes::HEADER, format!("header name `{}` {why}", pair.key()));
        } else if pair.key().starts_with(':') && pair.key() != ":authority" {
            pair.error_at_key(codes::HEADER, format!("`{}` cannot be changed here", pair.key()))
                .help("use `rewrite` for the path and the authority");
        }
        if let Err(why) = format_text(&value) {
            pair.error(codes::HEADER, why).help("a plain percent sign is written %%");
        }
        (pair.key().to_owned(), value)
    };
    field.pairs().iter().map(read).collect()
}

/// Checks Envoy's substitution format: `%OPERATOR(ARGUMENT)%` and `%%`.
fn format_text(text: &str) -> Result<(), String> {
    if let Some(wrong) = text.chars().find(|c| matches!(c, '\0' | '\r' | '\n')) {
        return Err(format!("a header value must not hold {wrong:?}"));
    }
    let mut rest = text;
    while let Some(start) = rest.find('%') {
        rest = rest.get(start + 1..).unwrap_or_default();
        if let Some(after) = rest.strip_prefix('%') {
            rest = after;
            continue;
        }
        let name_end = rest.find(|c: char| !c.is_ascii_uppercase() && c != '_' && !c.is_ascii_digit());
        let (operator, after) = rest.split_at(name_end.unwrap_or(rest.len()));
        let after = match after.strip_prefix('(') {
            Some(arguments) => arguments.split_once(')').map(|(_, after)| after),
            None => Some(after),
        };
        // A maximum length may follow: %REQ(X):10%.
        let closed = after.map(|after| after.trim_start_matches(|c: char| c == ':' || c.is_ascii_digit()));
        match closed.and_then(|after| after.strip_prefix('%')) {
            Some(after) if !operator.is_empty() => rest = after,
            _ => return Err(format!("the format operator `%{operator}` is not closed by a second %")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::format_text;

    #[test]
    fn operators_are_closed() {
        for good in ["plain", "100%%", "%REQ(X-A)%", "a%START_TIME%b", "%REQ(X):10%", "%DOWNSTREAM_REMOTE_ADDRESS%"] {
            assert_eq!(format_text(good), Ok(()), "{good}");
        }
        for bad in ["100%", "%NO_SUCH", "%REQ(X", "% %", "a\r\nb"] {
            assert!(format_text(bad).is_err(), "{bad}");
        }
    }
}
