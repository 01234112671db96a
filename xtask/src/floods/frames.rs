//! HTTP/2 frames as an attacker writes them (RFC 9113 section 4 and 6), without asking anybody whether they make sense.

/// What a client's connection begins with.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// One frame.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Preface and settings.
pub(super) fn begin(settings: &[u8]) -> Vec<u8> {
    [PREFACE.to_vec(), frame(SETTINGS, 0, 0, settings)].concat()
}

/// A header block of a GET, or of a POST: indexed method, scheme and path, literal authority (RFC 7541).
pub(super) fn block(post: bool, path: &str) -> Vec<u8> {
    let mut block = vec![if post { 0x83 } else { 0x82 }, 0x86];
    literal(&mut block, 4, path);
    literal(&mut block, 1, "web.test");
    block
}

/// A literal with a name from the static table, not kept.
fn literal(block: &mut Vec<u8>, name: u8, value: &str) {
    block.push(name);
    block.push(u8::try_from(value.len()).unwrap_or(0));
    block.extend(value.as_bytes());
}

/// A literal that the peer must keep in its table: the first byte of a compression bomb.
pub(super) fn kept(name: &str, length: u16) -> Vec<u8> {
    let mut block = vec![0x40, u8::try_from(name.len()).unwrap_or(0)];
    block.extend(name.as_bytes());
    // A seven bit prefix, all ones, and the rest in groups of seven bits.
    block.push(0x7f);
    let mut rest = usize::from(length).saturating_sub(127);
    while rest >= 128 {
        block.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    block.push(rest as u8);
    block.extend(std::iter::repeat_n(b'a', usize::from(length)));
    block
}
