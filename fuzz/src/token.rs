//! Tokens and the keys that should confirm them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::jwt::{self, KeySet, Status};

/// Lines: header, claims, signature, and the key set. The first three are put into the compact form, or come so in one
/// line. No fuzzer can sign: whatever is read, nothing is confirmed.
pub(crate) fn jwt(data: &[u8]) {
    let mut lines = data.splitn(4, |byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let (token, keys) = if first.starts_with(b"{") {
        let mut part = || URL_SAFE_NO_PAD.encode(lines.next().unwrap_or_default());
        let (claims, signature) = (part(), part());
        (format!("{}.{claims}.{signature}", URL_SAFE_NO_PAD.encode(first)), lines.next().unwrap_or_default())
    } else {
        (String::from_utf8_lossy(first).into_owned(), lines.next().unwrap_or_default())
    };
    let keys = KeySet::parse(keys);
    let _ = jwt::parse(&token);
    if let (Ok(signed), Ok(keys)) = (jwt::parse_signed(&token), keys) {
        assert!(!keys.is_empty());
        assert_ne!(keys.verify(&signed), Status::Ok, "confirmed");
    }
}
