//! Heads and bodies without sockets; `tests/it` has the same over real ones.

use bytes::{Bytes, BytesMut};
use engine::framing::{self, Fault, Length};
use http::{HeaderMap, Method, Version};

use super::decode::{Decoder, Part};
use super::encode;
use super::head::{self, Limits, Scan};

const LIMITS: Limits = Limits { bytes: 1024, lines: 10, any_method: false, trailers: true };

fn request(text: &str) -> Result<head::RequestHead, Fault> {
    let end = Scan::default().find(text.as_bytes(), LIMITS)?.ok_or(Fault::Grammar)?;
    head::request(&Bytes::copy_from_slice(&text.as_bytes()[..end]), LIMITS, HeaderMap::new())
}

/// All parts of a body that comes in pieces of `size`: its text and its trailers.
fn read(mut decoder: Decoder, text: &str, size: usize) -> Result<(String, Option<HeaderMap>), Fault> {
    let (mut input, mut body, mut trailers) = (BytesMut::new(), Vec::new(), None);
    let mut pieces = text.as_bytes().chunks(size);
    loop {
        match decoder.next(&mut input)? {
            Part::Data(data) => body.extend_from_slice(&data),
            Part::Trailers(map) => trailers = Some(map),
            Part::End => return Ok((String::from_utf8(body).unwrap(), trailers)),
            Part::More => match pieces.next() {
                Some(piece) => input.extend_from_slice(piece),
                None => return Err(Fault::TooLarge),
            },
        }
    }
}

#[test]
fn a_head_is_found_wherever_it_is_cut() {
    let text = b"GET / HTTP/1.1\r\nhost: a\r\n\r\nrest";
    let mut scan = Scan::default();
    for end in 0..text.len() {
        match scan.find(&text[..end], LIMITS) {
            Ok(None) => assert!(end < 27, "{end}"),
            Ok(Some(27)) => return assert_eq!(end, 27),
            other => panic!("{other:?} at {end}"),
        }
    }
    panic!("not found");
}

#[test]
fn heads_are_read_as_they_are() {
    let head = request("POST /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n").unwrap();
    assert_eq!((head.method, head.uri.to_string().as_str(), head.version), (Method::POST, "/a?b", Version::HTTP_11));
    assert_eq!((head.length, head.keep, head.expects), (Length::Exact(3), true, true));
    assert_eq!(head.headers["host"], "x");
    assert!(!request("GET / HTTP/1.1\r\nconnection: x, Close\r\n\r\n").unwrap().keep);
    assert!(!request("GET / HTTP/1.0\r\n\r\n").unwrap().keep);
    assert!(request("GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").unwrap().keep);
}

#[test]
fn what_is_no_head_is_refused() {
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(2000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(11));
    for (text, fault) in [
        ("GET / HTTP/1.1\nhost: a\r\n\r\n", Fault::Grammar),
        ("GET / HTTP/1.1\r\nhost: a\n\n", Fault::Grammar),
        ("GET / HTTP/1.1\r\nx: a\rb\r\n\r\n", Fault::Grammar),
        ("GET / HTTP/1.1\r\nx: a\0b\r\n\r\n", Fault::Characters),
        ("GET / HTTP/1.1\r\nx: a\r\n b\r\n\r\n", Fault::Grammar),
        ("GET / HTTP/1.1\r\n x: a\r\n\r\n", Fault::Grammar),
        ("GET / HTTP/1.1\r\nx : a\r\n\r\n", Fault::Grammar),
        ("GET / HTTP/1.1\r\nnocolon\r\n\r\n", Fault::Grammar),
        ("GET / HTTP/1.11\r\n\r\n", Fault::Grammar),
        ("GET / http/1.1\r\n\r\n", Fault::Grammar),
        ("G@T / HTTP/1.1\r\n\r\n", Fault::Grammar),
        ("PRI * HTTP/2.0\r\n\r\n", Fault::Grammar),
        ("POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n", Fault::Grammar),
        ("POST / HTTP/1.1\r\ncontent-length: +1\r\n\r\n", Fault::Grammar),
        ("POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", Fault::BothLengths),
        ("POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n", Fault::Coding),
        (&long, Fault::TooLarge),
        (&many, Fault::TooManyHeaders),
    ] {
        assert_eq!(request(text).map(|head| head.uri), Err(fault), "{text:?}");
    }
}

#[test]
fn answers_have_the_body_that_their_head_means() {
    let body = |text: &str, method: Method| {
        let head = head::response(&Bytes::copy_from_slice(text.as_bytes()), LIMITS, HeaderMap::new(), &method);
        head.map(|head| (format!("{:?}", head.body), head.keep))
    };
    let get = |text: &str| body(text, Method::GET).unwrap();
    assert_eq!(get("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"), ("Length(3)".to_owned(), true));
    assert_eq!(get("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), ("Done".to_owned(), true));
    assert_eq!(get("HTTP/1.1 200 OK\r\n\r\n"), ("UntilClose".to_owned(), false));
    assert_eq!(get("HTTP/1.1 204 No Content\r\n\r\n"), ("Done".to_owned(), true));
    assert_eq!(get("HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n"), ("Done".to_owned(), true));
    assert_eq!(get("HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\n"), ("Length(3)".to_owned(), false));
    let head = body("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", Method::HEAD).unwrap();
    assert_eq!(head, ("Done".to_owned(), true));
    for bad in ["HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", "HTTP/2 200 OK\r\n\r\n"] {
        assert!(body(bad, Method::GET).is_err(), "{bad:?}");
    }
}

#[test]
fn bodies_come_whole_however_they_are_cut() {
    let chunked = "3\r\nabc\r\n2;x=\"y\"\r\nde\r\n000\r\nx-t: 1\r\n\r\n";
    for size in 1..chunked.len() + 1 {
        let (body, trailers) = read(Decoder::chunked(LIMITS), chunked, size).unwrap();
        assert_eq!((body.as_str(), &trailers.unwrap()["x-t"]), ("abcde", &"1".parse::<http::HeaderValue>().unwrap()));
        let without = Decoder::chunked(Limits { trailers: false, ..LIMITS });
        assert_eq!(read(without, chunked, size).unwrap(), ("abcde".to_owned(), None));
        assert_eq!(read(Decoder::Length(4), "abcdef", size).unwrap().0, "abcd");
        assert_eq!(read(Decoder::chunked(LIMITS), "0\r\n\r\n", size).unwrap(), (String::new(), None));
    }
}

#[test]
fn what_is_no_chunk_is_refused() {
    for bad in [
        "+3\r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabcX\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        "3\rabc\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFF1\r\nabc\r\n0\r\n\r\n",
        "0\r\nx-t: 1\n\r\n",
        "0\r\nno trailer\r\n\r\n",
        "\r\n0\r\n\r\n",
    ] {
        for size in [1, 7, 100] {
            assert_eq!(read(Decoder::chunked(LIMITS), bad, size), Err(Fault::Grammar), "{bad:?} by {size}");
        }
    }
    let endless = format!("3;{}", "x".repeat(10_000));
    assert_eq!(read(Decoder::chunked(LIMITS), &endless, 100), Err(Fault::Grammar));
}

#[test]
fn what_is_no_chunk_stays_none() {
    let mut decoder = Decoder::chunked(LIMITS);
    let mut input = BytesMut::from("0\r\nbroken\r\n\r\na: b\r\n\r\nGET / HTTP/1.1\r\n\r\n");
    for _ in 0..3 {
        assert!(matches!(decoder.next(&mut input), Err(Fault::Grammar)));
    }
    assert!(!decoder.is_done());
}

#[test]
fn numbers_are_written_whole() {
    for length in [0, 7, 10, 1024, u64::MAX] {
        let mut output = Vec::new();
        encode::content_length(&mut output, length, true);
        assert_eq!(output, format!("Content-Length: {length}\r\n").into_bytes());
    }
}

proptest::proptest! {
    /// Nothing passes that the strict rule about lines refuses, whatever the parser thinks of it.
    #[test]
    fn no_head_passes_that_has_odd_lines(middle in "[ -~\r\n\t\0\u{e9}]{0,40}") {
        let text = format!("GET / HTTP/1.1\r\n{middle}\r\n\r\n");
        let end = Scan::default().find(text.as_bytes(), LIMITS).ok().flatten();
        if let Some(end) = end && request(&text).is_ok() {
            proptest::prop_assert_eq!(framing::lines(&text.as_bytes()[..end]), Ok(()), "{:?}", text);
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_fall(bytes: Vec<u8>) {
        let mut input = BytesMut::from(&bytes[..]);
        let mut decoder = Decoder::chunked(LIMITS);
        while let Ok(Part::Data(_) | Part::Trailers(_)) = decoder.next(&mut input) {}
    }
}
