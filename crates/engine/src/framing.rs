//! HTTP/1 framing, strict (RFC 9112): where a message ends is never a matter of taste. What is refused here is refused
//! before anything is decided, and nothing of it is passed on.

use http::StatusCode;

/// Why a message cannot be read. The words are Envoy's response code details, so that logs read alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It breaks the grammar of HTTP/1.
    Grammar,
    /// A zero byte in its head.
    Characters,
    /// `Content-Length` beside `Transfer-Encoding` (section 6.3: the way to smuggle a request).
    BothLengths,
    /// A transfer coding other than `chunked`, or several.
    Coding,
    /// Its head is larger than allowed.
    TooLarge,
    /// It has more header lines than allowed.
    TooManyHeaders,
}

impl Fault {
    /// The answer.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Grammar | Self::Characters | Self::BothLengths => StatusCode::BAD_REQUEST,
            Self::Coding => StatusCode::NOT_IMPLEMENTED,
            Self::TooLarge | Self::TooManyHeaders => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        }
    }

    /// The response code details.
    #[must_use]
    pub const fn details(self) -> &'static str {
        match self {
            Self::Grammar => "http1.codec_error",
            Self::Characters => "http1.invalid_characters",
            Self::BothLengths => "http1.content_length_and_chunked_not_allowed",
            Self::Coding => "http1.invalid_transfer_encoding",
            Self::TooLarge => "http1.headers_too_large",
            Self::TooManyHeaders => "http1.too_many_headers",
        }
    }
}

/// The methods that HTTP/1 is taken with unless a manager says otherwise, as Envoy 1.40 has them: a server behind that has fewer
/// could not read what we pass on, and a method may be what is left of another message.
#[must_use]
pub fn is_known_method(method: &str) -> bool {
    const OTHERS: [&str; 27] = [
        "ACL",
        "BIND",
        "CHECKOUT",
        "COPY",
        "LINK",
        "LOCK",
        "MERGE",
        "MKACTIVITY",
        "MKCALENDAR",
        "MKCOL",
        "MOVE",
        "MSEARCH",
        "NOTIFY",
        "PROPFIND",
        "PROPPATCH",
        "PURGE",
        "REBIND",
        "REPORT",
        "SEARCH",
        "SOURCE",
        "SUBSCRIBE",
        "TRACE",
        "UNBIND",
        "UNLINK",
        "UNLOCK",
        "UNSUBSCRIBE",
        "CONNECT",
    ];
    matches!(method, "GET" | "POST" | "PUT" | "HEAD" | "DELETE" | "PATCH" | "OPTIONS") || OTHERS.contains(&method)
}

/// How a request's body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// So many bytes; 0 where nothing is said.
    Exact(u64),
    /// Chunks.
    Chunked,
}

/// Whether the lines of a head end as they must, and nothing in them ends a line for others. `head` reaches from the first
/// byte of the start line to the empty line. What else may stand where is the parser's to say.
///
/// # Errors
/// A line feed without its carriage return (section 2.2 lets a recipient take it for a line's end, and not all do), a
/// carriage return without its line feed, a zero byte, a folded line (section 5.2).
pub fn lines(head: &[u8]) -> Result<(), Fault> {
    let mut previous = 0;
    for byte in head {
        match (previous, byte) {
            (_, 0) => return Err(Fault::Characters),
            (b'\r', b'\n') => {}
            (_, b'\n') | (b'\r', _) | (b'\n', b' ' | b'\t') => return Err(Fault::Grammar),
            _ => {}
        }
        previous = *byte;
    }
    Ok(())
}

/// How the body of a request is delimited, by all its `Transfer-Encoding` and `Content-Length` values.
///
/// # Errors
/// What RFC 9112 section 6.3 calls faulty, and what recipients are known to read in different ways: a coding but one
/// `chunked`, both headers, a length that is not digits alone, two lengths (even when they are the same).
pub fn request_length<'a>(
    http_11: bool,
    codings: impl IntoIterator<Item = &'a [u8]>,
    lengths: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Length, Fault> {
    let mut codings = codings.into_iter();
    let mut lengths = lengths.into_iter();
    let length = lengths.next();
    if lengths.next().is_some() {
        return Err(Fault::Grammar);
    }
    if let Some(coding) = codings.next() {
        if !coding.trim_ascii().eq_ignore_ascii_case(b"chunked") || codings.next().is_some() {
            return Err(Fault::Coding);
        }
        // HTTP/1.0 has no codings (section 6.1).
        if length.is_some() || !http_11 {
            return Err(Fault::BothLengths);
        }
        return Ok(Length::Chunked);
    }
    length.map_or(Ok(Length::Exact(0)), |value| digits(value, 10).map(Length::Exact))
}

/// The size that a chunk's first line tells; `line` without its CR LF. Extensions are read over (section 7.1.1).
///
/// # Errors
/// Where the size is not hexadecimal digits alone, does not fit into 64 bits, or the line holds control characters.
pub fn chunk_size(line: &[u8]) -> Result<u64, Fault> {
    let (size, extension) = match line.iter().position(|byte| *byte == b';') {
        Some(at) => line.split_at(at),
        None => (line, &[][..]),
    };
    if extension.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(Fault::Grammar);
    }
    // Blanks before an extension are bad but known (section 7.1.1, BWS); before the line's end they are nothing.
    let size = if extension.is_empty() { size } else { size.trim_ascii_end() };
    digits(size, 16)
}

/// A number of digits alone.
fn digits(text: &[u8], radix: u32) -> Result<u64, Fault> {
    if text.is_empty() {
        return Err(Fault::Grammar);
    }
    text.iter().try_fold(0u64, |number, byte| {
        let digit = char::from(*byte).to_digit(radix).ok_or(Fault::Grammar)?;
        number.checked_mul(u64::from(radix)).and_then(|n| n.checked_add(u64::from(digit))).ok_or(Fault::Grammar)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn length(codings: &[&str], lengths: &[&str]) -> Result<Length, Fault> {
        let bytes = |all: &[&str]| all.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>();
        let (codings, lengths) = (bytes(codings), bytes(lengths));
        request_length(true, codings.iter().map(Vec::as_slice), lengths.iter().map(Vec::as_slice))
    }

    #[test]
    fn lines_end_in_one_way() {
        assert_eq!(lines(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"), Ok(()));
        for bad in
            ["GET / HTTP/1.1\nhost: a\r\n\r\n", "G\r\nhost: a\n\r\n", "G\r\na: b\rc\r\n\r\n", "G\r\na: b\r\n c\r\n\r\n"]
        {
            assert_eq!(lines(bad.as_bytes()), Err(Fault::Grammar), "{bad:?}");
        }
        assert_eq!(lines(b"G\r\na: b\0\r\n\r\n"), Err(Fault::Characters));
    }

    #[test]
    fn a_body_has_one_length() {
        assert_eq!(length(&[], &[]), Ok(Length::Exact(0)));
        assert_eq!(length(&[], &["0012"]), Ok(Length::Exact(12)));
        assert_eq!(length(&["Chunked"], &[]), Ok(Length::Chunked));
        assert_eq!(length(&["chunked"], &["3"]), Err(Fault::BothLengths));
        for codings in [&["gzip, chunked"][..], &["chunked", "chunked"], &["xchunked"], &[""], &["identity"]] {
            assert_eq!(length(codings, &[]), Err(Fault::Coding), "{codings:?}");
        }
        for lengths in
            [&["+5"][..], &["-5"], &["0x5"], &["5 6"], &["5, 5"], &[""], &["5", "5"], &["18446744073709551616"]]
        {
            assert_eq!(length(&[], lengths), Err(Fault::Grammar), "{lengths:?}");
        }
        assert_eq!(request_length(false, [&b"chunked"[..]], []), Err(Fault::BothLengths));
    }

    #[test]
    fn chunks_have_plain_sizes() {
        assert_eq!(chunk_size(b"000aF"), Ok(0xaf));
        assert_eq!(chunk_size(b"3 ;name=\"v\"\t"), Ok(3));
        assert_eq!(chunk_size(b"ffffffffffffffff"), Ok(u64::MAX));
        for bad in ["", "+3", "-1", "0x3", "3 ", " 3", "3\r", "3;a\nb", "3_0", "10000000000000000", ";a"] {
            assert_eq!(chunk_size(bad.as_bytes()), Err(Fault::Grammar), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if lines(&bytes).is_ok() {
                let bare = bytes.iter().enumerate().any(|(at, b)| *b == b'\n' && (at == 0 || bytes[at - 1] != b'\r'));
                prop_assert!(!bare && !bytes.contains(&0));
            }
            if let Ok(size) = chunk_size(&bytes) {
                let digits = format!("{size:x}").len();
                prop_assert!(digits <= bytes.len());
            }
        }

        #[test]
        fn every_size_is_read_back(size: u64) {
            prop_assert_eq!(chunk_size(format!("{size:x}").as_bytes()), Ok(size));
            prop_assert_eq!(length(&[], &[&size.to_string()]), Ok(Length::Exact(size)));
        }
    }
}
