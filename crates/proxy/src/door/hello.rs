//! Reading a TLS ClientHello without taking part in the handshake: what the TLS inspector needs to choose a filter chain.
//!
//! Sources: RFC 8446 section 4.1.2 (ClientHello), RFC 6066 section 3 (server_name), RFC 7301 section 3.1 (ALPN).

/// What a ClientHello says in clear.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hello {
    /// `server_name`, lower case.
    pub sni: Option<String>,
    /// Protocols offered by ALPN, in the client's order.
    pub alpn: Vec<String>,
}

/// What a look at the first bytes tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// Could still become a ClientHello: read more.
    More,
    /// Not TLS, or a ClientHello that no TLS library would accept.
    NotTls,
    /// A whole ClientHello.
    Tls(Hello),
}

/// Most bytes of a ClientHello that are buffered, record headers included (Envoy's default is 16 KiB).
pub const MAX_HELLO: usize = 16 * 1024;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXT_SERVER_NAME: u16 = 0;
const EXT_ALPN: u16 = 16;

/// Looks at the first bytes of a connection.
pub fn look(bytes: &[u8]) -> Look {
    match bytes {
        [] | [HANDSHAKE] | [HANDSHAKE, 3] => return Look::More,
        [HANDSHAKE, 3, ..] => {}
        _ => return Look::NotTls,
    }
    let mut message = Vec::new();
    let mut rest = Cursor(bytes);
    loop {
        if let Some(hello) = whole_hello(&message) {
            return parse(hello).map_or(Look::NotTls, Look::Tls);
        }
        let Some(header) = rest.take(5) else { break };
        let &[kind, major, _, high, low] = header else { return Look::NotTls };
        if kind != HANDSHAKE || major != 3 {
            return Look::NotTls;
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length == 0 || length > 16 * 1024 + 256 {
            return Look::NotTls;
        }
        let available = rest.0.len().min(length);
        let Some(fragment) = rest.take(available) else { break };
        message.extend_from_slice(fragment);
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Look::NotTls;
        }
        if available < length {
            break;
        }
    }
    if let Some(hello) = whole_hello(&message) {
        return parse(hello).map_or(Look::NotTls, Look::Tls);
    }
    if bytes.len() >= MAX_HELLO { Look::NotTls } else { Look::More }
}

/// The body of the handshake message, when all of it is there.
fn whole_hello(message: &[u8]) -> Option<&[u8]> {
    let [CLIENT_HELLO, a, b, c, body @ ..] = message else { return None };
    let length = usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).ok()?;
    body.get(..length)
}

fn parse(body: &[u8]) -> Option<Hello> {
    let mut body = Cursor(body);
    body.take(2 + 32)?; // version, random
    body.vector8()?; // session id
    body.vector16()?; // cipher suites
    body.vector8()?; // compression methods
    let mut hello = Hello::default();
    if body.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = Cursor(body.vector16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.number16()?;
        let mut data = Cursor(extensions.vector16()?);
        match kind {
            EXT_SERVER_NAME => hello.sni = server_name(&mut data)?,
            EXT_ALPN => hello.alpn = protocols(&mut data)?,
            _ => {}
        }
    }
    Some(hello)
}

fn server_name(data: &mut Cursor<'_>) -> Option<Option<String>> {
    let mut names = Cursor(data.vector16()?);
    while !names.0.is_empty() {
        let [kind] = names.take(1)? else { return None };
        let name = names.vector16()?;
        if *kind == 0 {
            return Some(std::str::from_utf8(name).ok().map(str::to_ascii_lowercase));
        }
    }
    Some(None)
}

fn protocols(data: &mut Cursor<'_>) -> Option<Vec<String>> {
    let mut names = Cursor(data.vector16()?);
    let mut protocols = Vec::new();
    while !names.0.is_empty() {
        protocols.push(String::from_utf8_lossy(names.vector8()?).into_owned());
    }
    Some(protocols)
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn number16(&mut self) -> Option<u16> {
        let [high, low] = self.take(2)? else { return None };
        Some(u16::from_be_bytes([*high, *low]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let [length] = self.take(1)? else { return None };
        self.take(usize::from(*length))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.number16()?;
        self.take(usize::from(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ClientHello made by rustls itself.
    fn hello_bytes(name: &str, alpn: &[&str]) -> Vec<u8> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let mut config = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
        let mut connection = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn reads_name_and_protocols() {
        let bytes = hello_bytes("Reviews.shop.svc.cluster.local", &["istio-peer-exchange", "istio"]);
        let Look::Tls(hello) = look(&bytes) else { panic!("{:?}", look(&bytes)) };
        assert_eq!(hello.sni.as_deref(), Some("reviews.shop.svc.cluster.local"));
        assert_eq!(hello.alpn, ["istio-peer-exchange", "istio"]);
    }

    #[test]
    fn every_prefix_asks_for_more() {
        let bytes = hello_bytes("a.example", &["h2"]);
        for end in 0..bytes.len() {
            assert_eq!(look(&bytes[..end]), Look::More, "{end} of {}", bytes.len());
        }
    }

    #[test]
    fn a_hello_split_over_records() {
        let bytes = hello_bytes("a.example", &[]);
        let mut split = Vec::new();
        for part in bytes[5..].chunks(40) {
            split.extend_from_slice(&[22, 3, 1, 0, u8::try_from(part.len()).unwrap()]);
            split.extend_from_slice(part);
        }
        assert!(matches!(look(&split), Look::Tls(hello) if hello.sni.as_deref() == Some("a.example")));
    }

    #[test]
    fn garbage_is_not_tls_and_never_panics() {
        assert_eq!(look(b"GET / HTTP/1.1\r\n"), Look::NotTls);
        assert_eq!(look(&[22, 3, 1, 0, 0]), Look::NotTls);
        assert_eq!(look(&[22, 3, 1, 0, 1, 2]), Look::NotTls);
        let bytes = hello_bytes("a.example", &["h2"]);
        for index in 0..bytes.len() {
            for value in [0, 1, 127, 128, 255] {
                let mut broken = bytes.clone();
                broken[index] = value;
                let _ = look(&broken);
            }
        }
    }
}
