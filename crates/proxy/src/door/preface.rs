//! Telling HTTP from opaque bytes by the first few of them: the HTTP inspector, and `codec_type: AUTO`.

/// The HTTP/2 connection preface (RFC 9113 section 3.4).
pub const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest request line that is waited for before the bytes are called opaque.
pub const MAX_REQUEST_LINE: usize = 8 * 1024;

/// What the first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guess {
    /// Cannot be told yet.
    More,
    /// An HTTP/1.0 request line.
    Http10,
    /// An HTTP/1.1 request line.
    Http11,
    /// The HTTP/2 preface.
    Http2,
    /// None of them.
    Opaque,
}

impl Guess {
    /// The application protocol as Envoy's HTTP inspector names it.
    pub fn application_protocol(self) -> Option<&'static str> {
        match self {
            Self::Http10 => Some("http/1.0"),
            Self::Http11 => Some("http/1.1"),
            Self::Http2 => Some("h2c"),
            Self::More | Self::Opaque => None,
        }
    }
}

/// Whether the bytes begin, or may begin, with the HTTP/2 preface: `None` while it cannot be told.
pub fn is_h2(bytes: &[u8]) -> Option<bool> {
    let length = bytes.len().min(H2_PREFACE.len());
    if bytes.get(..length) != H2_PREFACE.get(..length) {
        return Some(false);
    }
    (length == H2_PREFACE.len()).then_some(true)
}

/// Looks at the first bytes of a connection.
pub fn guess(bytes: &[u8]) -> Guess {
    match is_h2(bytes) {
        Some(true) => return Guess::Http2,
        None => return Guess::More,
        Some(false) => {}
    }
    let Some(end) = bytes.iter().position(|b| *b == b'\n') else {
        let method = bytes.iter().position(|b| *b == b' ').and_then(|end| bytes.get(..end));
        let plausible = match method {
            Some(method) => is_method(method),
            None => bytes.len() <= 24 && bytes.iter().all(|b| is_token(*b)),
        };
        return if plausible && bytes.len() < MAX_REQUEST_LINE { Guess::More } else { Guess::Opaque };
    };
    let line = bytes.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut words = line.split(|b| *b == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    match (method, target, version, words.next()) {
        (Some(method), Some(target), Some(version), None) if is_method(method) && !target.is_empty() => match version {
            b"HTTP/1.1" => Guess::Http11,
            b"HTTP/1.0" => Guess::Http10,
            _ => Guess::Opaque,
        },
        _ => Guess::Opaque,
    }
}

fn is_method(word: &[u8]) -> bool {
    !word.is_empty() && word.len() <= 24 && word.iter().all(|b| is_token(*b))
}

/// Token characters that real methods use: letters and `-`.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'-'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_protocols() {
        assert_eq!(guess(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n"), Guess::Http11);
        assert_eq!(guess(b"GET /x HTTP/1.0\r\n"), Guess::Http10);
        assert_eq!(guess(H2_PREFACE), Guess::Http2);
        assert_eq!(guess(b"\x00\x01\x02"), Guess::Opaque);
        assert_eq!(guess(b"SSH-2.0-OpenSSH_9\r\n"), Guess::Opaque);
        assert_eq!(guess(b"GET /x HTTP/9.9\r\n"), Guess::Opaque);
        assert_eq!(guess(b"EHLO x\r\n"), Guess::Opaque);
    }

    #[test]
    fn waits_only_while_it_may_become_http() {
        for prefix in [&b""[..], b"G", b"GET", b"GET /long", b"PRI * HTTP/2.0\r\n"] {
            assert_eq!(guess(prefix), Guess::More, "{prefix:?}");
        }
        assert_eq!(guess(b"*1\r\n$4\r\nPING\r\n"), Guess::Opaque);
        assert_eq!(guess(&[b'A'; 30]), Guess::Opaque);
    }
}
