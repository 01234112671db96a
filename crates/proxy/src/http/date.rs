//! The time of day as the `date` header tells it (RFC 9110 section 6.6.1), written once a second.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderValue;

/// Looks at it.
pub fn with<R>(look: impl FnOnce(&HeaderValue) -> R) -> R {
    thread_local! {
        static LAST: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    LAST.with_borrow_mut(|(of, value)| {
        if *of != second {
            let text = httpdate::HttpDate::from(now).to_string();
            (*of, *value) = (second, HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("")));
        }
        look(value)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_what_the_clock_says() {
        let said = super::with(|value| httpdate::parse_http_date(value.to_str().unwrap()).unwrap());
        assert!(said.elapsed().unwrap().as_secs() < 3, "{said:?}");
    }
}
