//! Access logs: the time as Envoy writes it, JSON text as Envoy escapes it, and the files that lines go to.
//!
//! What a line says is the format language's (engine) and the record's (proxy) business; here is what it takes to
//! write lines quickly and without ever waiting for a disk.

pub mod clock;
pub mod sink;

pub use clock::TimeFormat;
pub use sink::{Sink, Sinks, Target};

/// Writes a JSON string as Envoy does: quotes, backslash and control characters escaped, all else as it is.
pub fn write_json_text(text: &str, out: &mut Vec<u8>) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    // Nearly all text needs no escape; a loop that never breaks off is done many bytes at a time.
    let special = |byte: u8| (byte < 0x20) | (byte == b'"') | (byte == b'\\');
    if !text.bytes().fold(false, |found, byte| found | special(byte)) {
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
        return;
    }
    let mut plain = 0;
    for (at, byte) in text.bytes().enumerate() {
        if !special(byte) {
            continue;
        }
        out.extend_from_slice(text.as_bytes().get(plain..at).unwrap_or_default());
        plain = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => out.extend_from_slice(format!("\\u{control:04x}").as_bytes()),
        }
    }
    out.extend_from_slice(text.as_bytes().get(plain..).unwrap_or_default());
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_text_is_what_a_parser_reads_back() {
        for text in ["", "plain", "curly \"quote\" \\ é", "a\nb\tc\r\u{1}\u{7f}\u{2028}", "\"", "\\"] {
            let mut out = Vec::new();
            write_json_text(text, &mut out);
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }
}
