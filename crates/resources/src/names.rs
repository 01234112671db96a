//! The spelling of names: DNS labels and hosts, Kubernetes labels, HTTP header names.

/// Checks a DNS label (RFC 1123): a namespace, a service, a subset.
pub(crate) fn dns_label(text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > 63 {
        return Err("must have 1 to 63 characters".to_owned());
    }
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    if !bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        || !edge(bytes.first())
        || !edge(bytes.last())
    {
        return Err("may hold a-z, 0-9 and `-` only, and must begin and end with a letter or digit".to_owned());
    }
    Ok(())
}

/// Checks an object's name (RFC 1123 subdomain).
pub(crate) fn object_name(text: &str) -> Result<(), String> {
    if text.len() > 253 {
        return Err("must have at most 253 characters".to_owned());
    }
    text.split('.').try_for_each(|label| if label.len() > 63 { Ok(()) } else { dns_label(label) })
}

/// Whether a name looks like one that a template is still to fill in: `$(NS)`, `${NS}`, `NS_PLACEHOLDER`.
pub(crate) fn is_placeholder(text: &str) -> bool {
    let template = |part: &str| {
        let upper = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || "_${()}".contains(c);
        part.chars().any(|c| c.is_ascii_uppercase() || c == '$') && part.chars().all(upper)
    };
    text.split('.').any(template)
}

/// Checks a host: a short name or a full one; upper case is accepted as DNS does.
pub(crate) fn host(text: &str) -> Result<(), String> {
    if text.len() > 255 {
        return Err("must have at most 255 characters".to_owned());
    }
    let bare = text.strip_suffix('.').unwrap_or(text);
    for label in bare.split('.') {
        dns_label(&label.to_ascii_lowercase()).map_err(|why| match label {
            "*" => "may hold `*` only as its first part".to_owned(),
            _ => format!("is no host name: each part {why}"),
        })?;
    }
    Ok(())
}

/// Checks a host that may be `*` or begin with `*.`.
pub(crate) fn wildcard_host(text: &str) -> Result<(), String> {
    match text.strip_prefix("*.") {
        _ if text == "*" => Ok(()),
        Some(rest) => host(rest),
        None => host(text),
    }
}

/// Checks a Kubernetes label key: an optional DNS prefix with `/`, then a name.
pub(crate) fn label_key(text: &str) -> Result<(), String> {
    let name = match text.split_once('/') {
        Some((prefix, name)) => {
            object_name(prefix).map_err(|why| format!("has a wrong prefix: it {why}"))?;
            name
        }
        None => text,
    };
    if name.is_empty() {
        return Err("must not be empty".to_owned());
    }
    label_value(name)
}

/// Checks a Kubernetes label value; it may be empty.
pub(crate) fn label_value(text: &str) -> Result<(), String> {
    if text.len() > 63 {
        return Err("must have at most 63 characters".to_owned());
    }
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    if !bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
        || !edge(bytes.first())
        || !edge(bytes.last())
    {
        return Err(
            "may hold letters, digits, `-`, `_` and `.` only, and must begin and end with a letter or digit".to_owned()
        );
    }
    Ok(())
}

/// Checks an HTTP header name (RFC 9110 token).
pub(crate) fn header(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("must not be empty".to_owned());
    }
    let bare = text.strip_prefix(':').unwrap_or(text);
    match bare.chars().find(|c| !c.is_ascii_alphanumeric() && !"!#$%&'*+-.^_`|~".contains(*c)) {
        Some(wrong) => Err(format!("must not hold {wrong:?}")),
        None => Ok(()),
    }
}

/// The known word that a misspelt one is nearest to, if it is near.
pub(crate) fn nearest<'a>(text: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = normal(text);
    known
        .map(|word| (distance(&wanted, &normal(word)), word))
        .filter(|(distance, word)| *distance <= (word.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Without the differences between `fooBar`, `foo_bar` and `FOO-BAR`.
fn normal(text: &str) -> Vec<char> {
    text.chars().filter(|c| !"-_".contains(*c)).take(64).map(|c| c.to_ascii_lowercase()).collect()
}

/// Levenshtein's distance.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut row = (0..=b.len()).collect::<Vec<_>>();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (y, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let best = (diagonal + usize::from(x != y)).min(*cell + 1).min(left + 1);
            diagonal = *cell;
            *cell = best;
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for good in ["reviews", "reviews.shop.svc.cluster.local", "EXAMPLE.com", "x.test."] {
            assert_eq!(host(good), Ok(()), "{good}");
        }
        for bad in ["", "a b", "a..b", "-a", "*.x", "http://x", "a_b"] {
            assert!(host(bad).is_err(), "{bad}");
        }
        assert_eq!(wildcard_host("*.x.test"), Ok(()));
        assert!(wildcard_host("a.*.test").is_err());
    }

    #[test]
    fn near_words() {
        let known = ["perTryTimeout", "attempts", "retryOn"];
        assert_eq!(nearest("per_try_timeout", known.into_iter()), Some("perTryTimeout"));
        assert_eq!(nearest("atempts", known.into_iter()), Some("attempts"));
        assert_eq!(nearest("colour", known.into_iter()), None);
    }
}
