//! HTTP/2 as RFC 9113 asks it of a server, frame by frame: what must be refused, how, and what must not be.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use testkit::frames::{Frame, Frames, PREFACE, block, flag, kind};

use crate::backend::Backend;
use crate::world::{World, cluster, http_with};

const PROTOCOL: u32 = 1;
const FLOW_CONTROL: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const REFUSED: u32 = 7;
/// The library has the general code for most of what has a code of its own; the connection ends all the same.
const FRAME_SIZE: [u32; 2] = [6, PROTOCOL];
const WINDOW: [u32; 2] = [FLOW_CONTROL, PROTOCOL];
const COMPRESSION: [u32; 2] = [9, PROTOCOL];

/// How long a server may take to react.
const PATIENCE: Duration = Duration::from_secs(5);

const SIMPLE: [(&[u8], &[u8]); 4] =
    [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")];
const POST: [(&[u8], &[u8]); 4] =
    [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")];

/// What a server may do.
#[derive(Clone, Copy)]
enum Must {
    /// End the connection, with one of these codes where it says one.
    EndConnection(&'static [u32]),
    /// End the stream 1 or the connection with one of these codes.
    EndStream(&'static [u32]),
    /// Answer stream 1, 3 or 5 with this status.
    Answer(u16),
}

struct Case {
    name: &'static str,
    says: Vec<Vec<u8>>,
    must: Must,
}

fn case(name: &'static str, must: Must, frames: impl IntoIterator<Item = Frame>) -> Case {
    Case { name, says: frames.into_iter().map(|frame| frame.encode()).collect(), must }
}

fn get(stream: u32) -> Frame {
    Frame::headers(stream, true, &SIMPLE)
}

fn post(stream: u32) -> Frame {
    Frame::headers(stream, false, &POST)
}

fn data(stream: u32, end: bool, bytes: &[u8]) -> Frame {
    Frame::new(kind::DATA, if end { flag::END_STREAM } else { 0 }, stream, bytes)
}

fn fields(more: &[(&'static [u8], &'static [u8])]) -> Frame {
    Frame::headers(1, true, &[&SIMPLE[..], more].concat())
}

/// Only these fields.
fn exactly(all: &[(&'static [u8], &'static [u8])]) -> Frame {
    Frame::headers(1, true, all)
}

fn raw_block(bytes: &[u8]) -> Frame {
    Frame::new(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, [&block(&SIMPLE), bytes].concat())
}

fn number(kind: u8, stream: u32, value: u32) -> Frame {
    Frame::new(kind, 0, stream, value.to_be_bytes())
}

fn priority(on: u32) -> Vec<u8> {
    [&on.to_be_bytes()[..], &[16]].concat()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn world(backend: &Backend, manager: &str) -> World {
    let cluster = cluster("c", &[backend.address], "");
    let manager = format!("codec_type: HTTP2, {manager}");
    World::start(&http_with("", &manager, "{match: {prefix: /}, route: {cluster: c}}", &cluster))
}

fn run(cases: Vec<Case>) {
    let backend = Backend::start();
    let world = world(&backend, "http2_protocol_options: {max_concurrent_streams: 4},");
    let at = world.address("in");
    let wrong: Vec<_> = cases.iter().filter_map(|case| block_on(ask(at, case)).err()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

async fn ask(at: SocketAddr, case: &Case) -> Result<(), String> {
    let mut frames = Frames::open(at).await.unwrap();
    for bytes in &case.says {
        frames.bytes(bytes).await;
    }
    let mut seen = Vec::new();
    loop {
        let Some(frame) = frames.next(PATIENCE).await else {
            seen.push("closed".to_owned());
            break;
        };
        seen.push(format!("{frame:?}"));
        let code = frame.error_code();
        let fine = match (case.must, frame.kind) {
            (Must::EndConnection(codes), kind::GOAWAY) | (Must::EndStream(codes), kind::RST_STREAM | kind::GOAWAY) => {
                code.is_some_and(|code| codes.contains(&code))
            }
            (Must::Answer(status), kind::HEADERS) => frame.status() == Some(status),
            _ => continue,
        };
        return if fine { Ok(()) } else { Err(format!("{}: {seen:?}", case.name)) };
    }
    match case.must {
        Must::EndConnection(_) | Must::EndStream(_) if seen.len() == 1 => Ok(()),
        _ => Err(format!("{}: {seen:?}", case.name)),
    }
}

#[test]
fn frames_have_a_form() {
    use Must::{Answer, EndConnection};
    let large = vec![0; 16_385];
    let setting = |id: u16, value: u32| Frame::settings(&[(id, value)]);
    run(vec![
        case("a frame of no known type", Answer(200), [Frame::new(0x42, 0xff, 0, *b"whatever"), get(1)]),
        case("flags that a frame does not have", Answer(200), [Frame::new(kind::PING, 0x16, 0, [0; 8]), get(1)]),
        case("a reserved bit", Answer(200), [Frame::new(kind::PING, 0, 1 << 31, [0; 8]), get(1)]),
        case("large data", EndConnection(&FRAME_SIZE), [post(1), data(1, true, &large)]),
        case(
            "large headers",
            EndConnection(&FRAME_SIZE),
            [Frame::new(kind::HEADERS, flag::END_HEADERS, 1, large.clone())],
        ),
        case("data on the connection", EndConnection(&[PROTOCOL]), [post(1), data(0, true, b"a")]),
        case("headers on the connection", EndConnection(&[PROTOCOL]), [Frame::headers(0, true, &SIMPLE)]),
        case(
            "more padding than data",
            EndConnection(&[PROTOCOL]),
            [post(1), Frame::new(kind::DATA, flag::PADDED | flag::END_STREAM, 1, *b"\x09abc")],
        ),
        case(
            "more padding than headers",
            EndConnection(&[PROTOCOL]),
            [Frame::new(kind::HEADERS, flag::PADDED | flag::END_HEADERS, 1, [&[255][..], &block(&SIMPLE)].concat())],
        ),
        case(
            "padded data",
            Answer(200),
            [post(1), Frame::new(kind::DATA, flag::PADDED | flag::END_STREAM, 1, *b"\x02abc\0\0")],
        ),
        case("a priority of four bytes", EndConnection(&FRAME_SIZE), [Frame::new(kind::PRIORITY, 0, 1, [0; 4])]),
        case(
            "a priority of the connection",
            EndConnection(&[PROTOCOL]),
            [Frame::new(kind::PRIORITY, 0, 0, priority(1))],
        ),
        case(
            "a reset of three bytes",
            EndConnection(&FRAME_SIZE),
            [post(1), Frame::new(kind::RST_STREAM, 0, 1, [0; 3])],
        ),
        case("a reset of the connection", EndConnection(&[PROTOCOL]), [number(kind::RST_STREAM, 0, 8)]),
        case("settings of a stream", EndConnection(&[PROTOCOL]), [Frame::new(kind::SETTINGS, 0, 1, [])]),
        case("settings of five bytes", EndConnection(&FRAME_SIZE), [Frame::new(kind::SETTINGS, 0, 0, [0; 5])]),
        case(
            "an acknowledgement with settings",
            EndConnection(&FRAME_SIZE),
            [Frame::new(kind::SETTINGS, flag::ACK, 0, [0; 6])],
        ),
        case("a push setting of 2", EndConnection(&[PROTOCOL]), [setting(2, 2)]),
        case("a window setting of 2^31", EndConnection(&WINDOW), [setting(4, 1 << 31)]),
        case("a frame size below the least", EndConnection(&[PROTOCOL]), [setting(5, 16_383)]),
        case("a frame size above the most", EndConnection(&[PROTOCOL]), [setting(5, 1 << 24)]),
        case("an unknown setting", Answer(200), [setting(0xff, 1), get(1)]),
        case("a ping of a stream", EndConnection(&[PROTOCOL]), [Frame::new(kind::PING, 0, 1, [0; 8])]),
        case("a ping of six bytes", EndConnection(&FRAME_SIZE), [Frame::new(kind::PING, 0, 0, [0; 6])]),
        case("a goodbye to a stream", EndConnection(&[PROTOCOL]), [Frame::new(kind::GOAWAY, 0, 1, [0; 8])]),
        case(
            "a window update of three bytes",
            EndConnection(&FRAME_SIZE),
            [Frame::new(kind::WINDOW_UPDATE, 0, 0, [0; 3])],
        ),
        case(
            "a promise by a client",
            EndConnection(&[PROTOCOL]),
            [Frame::new(kind::PUSH_PROMISE, flag::END_HEADERS, 1, [&[0, 0, 0, 2][..], &block(&SIMPLE)].concat())],
        ),
    ]);
}

#[test]
fn streams_have_a_life() {
    use Must::{Answer, EndConnection, EndStream};
    let closed = &[STREAM_CLOSED, PROTOCOL];
    run(vec![
        case("data before headers", EndConnection(&[PROTOCOL]), [data(1, true, b"a")]),
        case("a reset before headers", EndConnection(&[PROTOCOL]), [number(kind::RST_STREAM, 1, 8)]),
        case("a window before headers", EndConnection(&[PROTOCOL]), [number(kind::WINDOW_UPDATE, 1, 1)]),
        case(
            "a continuation of nothing",
            EndConnection(&[PROTOCOL]),
            [Frame::new(kind::CONTINUATION, flag::END_HEADERS, 1, block(&SIMPLE))],
        ),
        case("an even number", EndConnection(&[PROTOCOL]), [get(2)]),
        case("a number again smaller", EndConnection(closed), [get(5), get(3)]),
        case("data behind the end", EndStream(closed), [get(1), data(1, true, b"a")]),
        case("headers behind the end", EndStream(closed), [get(1), get(1)]),
        case("data behind a reset", EndStream(closed), [post(1), number(kind::RST_STREAM, 1, 8), data(1, true, b"a")]),
        case("headers in the middle", EndStream(&[PROTOCOL]), [post(1), Frame::headers(1, false, &[(b"x-a", b"1")])]),
        case("more streams than said", EndStream(&[PROTOCOL, REFUSED]), (0..9).map(|n| post(2 * n + 1))),
        case("a priority, which means nothing", Answer(200), [Frame::new(kind::PRIORITY, 0, 3, priority(1)), get(1)]),
        case(
            "headers with a priority",
            Answer(200),
            [Frame::new(
                kind::HEADERS,
                flag::PRIORITY | flag::END_HEADERS | flag::END_STREAM,
                1,
                [priority(0), block(&SIMPLE)].concat(),
            )],
        ),
        case(
            "headers that depend on themselves",
            EndStream(&[PROTOCOL]),
            [Frame::new(
                kind::HEADERS,
                flag::PRIORITY | flag::END_HEADERS | flag::END_STREAM,
                1,
                [priority(1), block(&SIMPLE)].concat(),
            )],
        ),
        case("trailers", Answer(200), [post(1), data(1, false, b"a"), Frame::headers(1, true, &[(b"x-sum", b"1")])]),
        case("no window for a stream", EndStream(&[PROTOCOL]), [post(1), number(kind::WINDOW_UPDATE, 1, 0)]),
        case("no window for the connection", EndConnection(&[PROTOCOL]), [number(kind::WINDOW_UPDATE, 0, 0)]),
        case(
            "too much window for the connection",
            EndConnection(&WINDOW),
            [number(kind::WINDOW_UPDATE, 0, 0x7fff_ffff)],
        ),
        case(
            "too much window for a stream",
            EndStream(&[FLOW_CONTROL]),
            [post(1), number(kind::WINDOW_UPDATE, 1, 0x7fff_ffff)],
        ),
    ]);
}

#[test]
fn header_blocks_are_read_strictly() {
    use Must::{Answer, EndConnection};
    let whole = block(&SIMPLE);
    let (first, rest) = whole.split_at(9);
    let begin = |flags| Frame::new(kind::HEADERS, flags, 1, first);
    let more = |flags, stream| Frame::new(kind::CONTINUATION, flags, stream, rest);
    run(vec![
        case("index 0", EndConnection(&COMPRESSION), [raw_block(&[0x80])]),
        case("an index beyond the tables", EndConnection(&COMPRESSION), [raw_block(&[0xff, 0xff, 0x7f])]),
        case(
            "a table larger than allowed",
            EndConnection(&COMPRESSION),
            [Frame::new(
                kind::HEADERS,
                flag::END_HEADERS | flag::END_STREAM,
                1,
                [&[0x3f, 0xe1, 0xff, 0x07][..], &whole].concat(),
            )],
        ),
        case("a text that ends early", EndConnection(&COMPRESSION), [raw_block(&[0, 5, b'a'])]),
        case(
            "a Huffman text with the end symbol",
            EndConnection(&COMPRESSION),
            [raw_block(&[0, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff])],
        ),
        case(
            "a Huffman text with zeros behind it",
            EndConnection(&COMPRESSION),
            [raw_block(&[0, 1, b'x', 0x81, 0x18])],
        ),
        case("a block in two frames", Answer(200), [begin(flag::END_STREAM), more(flag::END_HEADERS, 1)]),
        case(
            "a block in three",
            Answer(200),
            [begin(flag::END_STREAM), Frame::new(kind::CONTINUATION, 0, 1, []), more(flag::END_HEADERS, 1)],
        ),
        case(
            "another frame in the middle",
            EndConnection(&[PROTOCOL]),
            [begin(flag::END_STREAM), Frame::new(kind::PING, 0, 0, [0; 8])],
        ),
        case(
            "another stream's continuation",
            EndConnection(&[PROTOCOL]),
            [begin(flag::END_STREAM), more(flag::END_HEADERS, 3)],
        ),
        case(
            "the connection's continuation",
            EndConnection(&[PROTOCOL]),
            [begin(flag::END_STREAM), more(flag::END_HEADERS, 0)],
        ),
        case(
            "a continuation behind the last",
            EndConnection(&[PROTOCOL]),
            [get(1), Frame::new(kind::CONTINUATION, flag::END_HEADERS, 1, block(&[(b"x", b"y")]))],
        ),
    ]);
}

/// What may not be in a request, and what is made of it on an HTTP/1 hop.
fn malformed() -> Vec<Case> {
    let end = Must::EndStream(&[PROTOCOL]);
    let named = |method: &'static [u8], path: &'static [u8], host: &'static [u8]| {
        exactly(&[(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", host)])
    };
    let posts = |more: &[(&'static [u8], &'static [u8])]| Frame::headers(1, false, &[&POST[..], more].concat());
    vec![
        case("upper case", end, [fields(&[(b"X-A", b"1")])]),
        case("a space in a name", end, [fields(&[(b"x a", b"1")])]),
        case("a colon in a name", end, [fields(&[(b"x:a", b"1")])]),
        case("a line in a name", end, [fields(&[(b"x: y\r\nevil", b"1")])]),
        case("an empty name", end, [fields(&[(b"", b"1")])]),
        case("a line feed in a value", end, [fields(&[(b"x-a", b"b\nevil: 1")])]),
        case("a carriage return in a value", end, [fields(&[(b"x-a", b"b\rc")])]),
        case("a zero in a value", end, [fields(&[(b"x-a", b"b\0c")])]),
        case("connection", end, [fields(&[(b"connection", b"close")])]),
        case("keep-alive", end, [fields(&[(b"keep-alive", b"5")])]),
        case("proxy-connection", end, [fields(&[(b"proxy-connection", b"close")])]),
        case("upgrade", end, [fields(&[(b"upgrade", b"h2c")])]),
        case("transfer-encoding", end, [fields(&[(b"transfer-encoding", b"chunked")])]),
        case("te", end, [fields(&[(b"te", b"gzip")])]),
        case("a pseudo-header of no kind", end, [fields(&[(b":evil", b"1")])]),
        case("a status", end, [fields(&[(b":status", b"200")])]),
        case("a second path", end, [fields(&[(b":path", b"/b")])]),
        case("a second method", end, [fields(&[(b":method", b"PUT")])]),
        case(
            "a pseudo-header behind others",
            end,
            [exactly(&[
                (b":method", b"GET"),
                (b"x", b"y"),
                (b":scheme", b"http"),
                (b":path", b"/"),
                (b":authority", b"a"),
            ])],
        ),
        case("no method", end, [exactly(&[(b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")])]),
        case("no scheme", end, [exactly(&[(b":method", b"GET"), (b":path", b"/"), (b":authority", b"a")])]),
        case("no path", end, [exactly(&[(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a")])]),
        case("an empty path", end, [named(b"GET", b"", b"a")]),
        case("a line in the path", end, [named(b"GET", b"/ HTTP/1.1\r\nevil: 1", b"a")]),
        case("a space in the path", end, [named(b"GET", b"/a b", b"a")]),
        case("a space in the method", end, [named(b"GET /x", b"/", b"a")]),
        case("a line in the host", end, [named(b"GET", b"/", b"a\r\nevil: 1")]),
        case("a shorter body than said", end, [posts(&[(b"content-length", b"5")]), data(1, true, b"abc")]),
        case("a longer body than said", end, [posts(&[(b"content-length", b"2")]), data(1, true, b"abc")]),
        case("a length that is none", end, [posts(&[(b"content-length", b"abc")]), data(1, true, b"abc")]),
        case(
            "two lengths",
            end,
            [posts(&[(b"content-length", b"3"), (b"content-length", b"4")]), data(1, true, b"abc")],
        ),
        case(
            "a pseudo-header in the trailers",
            end,
            [post(1), Frame::headers(1, true, &[(b"x-a", b"1"), (b":path", b"/b")])],
        ),
    ]
}

#[test]
fn what_is_malformed_goes_no_further() {
    // A request whose body turns out wrong may have begun its way, and is seen whenever its backend has time.
    let backends = [Backend::start(), Backend::start()];
    let worlds = backends.each_ref().map(|backend| world(backend, ""));
    let mut wrong = Vec::new();
    for case in malformed() {
        let begun = case.says.len() > 1;
        wrong.extend(block_on(ask(worlds[usize::from(begun)].address("in"), &case)).err());
        let heads = std::mem::take(&mut *backends[usize::from(begun)].heads.lock().unwrap());
        if heads.iter().any(|head| !begun || head.contains("evil")) {
            wrong.push(format!("{}: {heads:?}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_names_no_host_goes_no_further() {
    let backend = Backend::start();
    let world = world(&backend, "");
    let at = world.address("in");
    for host in [&b"a/b"[..], b"u@a", b"a b", b"a,b"] {
        let named = Frame::headers(
            1,
            true,
            &[(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", host)],
        );
        let case = case("a host that is none", Must::Answer(400), [named]);
        let answered = block_on(ask(at, &case));
        let refused = answered.is_ok() || answered.is_err_and(|seen| seen.contains("kind: 3"));
        assert!(refused && backend.requests() == 0, "{host:?}");
    }
}

#[test]
fn cookies_come_together_again() {
    let backend = Backend::start();
    let world = world(&backend, "");
    let crumbs =
        case("crumbs", Must::Answer(200), [fields(&[(b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"te", b"trailers")])]);
    block_on(ask(world.address("in"), &crumbs)).unwrap();
    assert!(backend.last().contains("\ncookie: a=1; b=2\r\n"), "{}", backend.last());
}

#[test]
fn a_preface_that_is_none_ends_the_connection() {
    let backend = Backend::start();
    let world = world(&backend, "");
    block_on(async {
        let mut frames = Frames::silent(world.address("in")).await.unwrap();
        let mut wrong = PREFACE.to_vec();
        wrong[16] = b'X';
        frames.bytes(&[&wrong[..], &Frame::settings(&[]).encode()].concat()).await;
        while let Some(frame) = frames.next(PATIENCE).await {
            assert_eq!(frame.kind, kind::GOAWAY, "{frame:?}");
        }
    });
}

#[test]
fn a_connection_that_ends_for_what_its_client_sent_is_logged() {
    let backend = Backend::start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("access.log");
    let log = format!(
        "access_log: [{{name: f, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {file:?}, log_format: \
         {{text_format_source: {{inline_string: \"%PROTOCOL% %REQ(:METHOD)% %RESPONSE_CODE% %RESPONSE_FLAGS% \
         %RESPONSE_CODE_DETAILS%\\n\"}}}}}}}}],"
    );
    let world = world(&backend, &log);
    let pings = Frame::new(kind::PING, 0, 0, *b"whatever").encode().repeat(10_000);
    let cases = [
        (Frame::new(kind::DATA, 0, 0, *b"x").encode(), "HTTP/2 - 0 DPE http2.codec_error{PROTOCOL_ERROR}"),
        (
            Frame::new(kind::HEADERS, flag::END_HEADERS, 1, [0x80]).encode(),
            "HTTP/2 - 0 DPE http2.codec_error{PROTOCOL_ERROR}",
        ),
        (pings, "HTTP/2 - 0 DPE http2.inbound_control_frames_flood"),
    ];
    let mut expected = String::new();
    for (bytes, line) in cases {
        block_on(async {
            let mut frames = Frames::open(world.address("in")).await.unwrap();
            frames.bytes(&bytes).await;
            while frames.next(PATIENCE).await.is_some() {}
        });
        expected.push_str(line);
        expected.push('\n');
    }
    // A client that only goes away has done nothing wrong.
    drop(block_on(Frames::open(world.address("in"))).unwrap());
    drop(world);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), expected);
}

#[test]
fn settings_and_pings_are_acknowledged() {
    let backend = Backend::start();
    let world = world(&backend, "");
    block_on(async {
        let mut frames = Frames::open(world.address("in")).await.unwrap();
        frames.send(&Frame::new(kind::PING, 0, 0, *b"whatever")).await;
        let (mut settings, mut ping) = (false, false);
        while !(settings && ping) {
            let frame = tokio::time::timeout(PATIENCE, frames.read()).await.unwrap().unwrap();
            settings |= frame.kind == kind::SETTINGS && frame.flags == flag::ACK;
            ping |= frame.kind == kind::PING && frame.flags == flag::ACK && frame.payload == b"whatever";
        }
    });
}

/// The sizes of the data frames that come until nothing comes for a while.
async fn sizes(frames: &mut Frames) -> Vec<usize> {
    let mut sizes = Vec::new();
    while let Some(frame) = frames.next(Duration::from_millis(300)).await {
        if frame.kind == kind::DATA {
            sizes.push(frame.payload.len());
        }
    }
    sizes
}

#[test]
fn windows_are_kept() {
    let backend = Backend::start();
    let world = world(&backend, "");
    block_on(async {
        let mut frames = Frames::silent(world.address("in")).await.unwrap();
        let small = Frame::settings(&[(4, 3)]);
        frames.bytes(&[PREFACE, &small.encode()].concat()).await;
        frames.send(&post(1)).await;
        frames.send(&data(1, true, b"0123456789")).await;
        assert_eq!(sizes(&mut frames).await.iter().sum::<usize>(), 3, "no more than the window");
        // A smaller window may make it negative; then what is given first fills the hole.
        frames.send(&Frame::settings(&[(4, 1)])).await;
        frames.send(&number(kind::WINDOW_UPDATE, 1, 2)).await;
        assert_eq!(sizes(&mut frames).await, [] as [usize; 0], "the window is 0");
        frames.send(&number(kind::WINDOW_UPDATE, 1, 4)).await;
        assert_eq!(sizes(&mut frames).await.iter().sum::<usize>(), 4);
        frames.send(&Frame::settings(&[(4, 1000)])).await;
        assert_eq!(sizes(&mut frames).await.iter().sum::<usize>(), 3, "and the rest");
    });
}

#[test]
fn small_blocks_that_unfold_are_refused() {
    let backend = Backend::start();
    let world = world(&backend, "");
    // One field of 4,000 bytes goes into the table; then it is named again and again in one byte each.
    let mut bomb = block(&SIMPLE);
    bomb.extend_from_slice(&[0x40, 1, b'x', 127, 0xa1, 0x1e]);
    bomb.extend_from_slice(&[b'a'; 4000]);
    bomb.extend_from_slice(&[0xbe; 4000]);
    let crumbs: Vec<(&[u8], &[u8])> =
        SIMPLE.into_iter().chain((0..4000).map(|_| (&b"cookie"[..], &b"a=1"[..]))).collect();
    for bomb in [bomb, block(&crumbs)] {
        let mut says = Vec::new();
        let pieces: Vec<_> = bomb.chunks(16_000).collect();
        for (number, piece) in pieces.iter().enumerate() {
            let last = if number + 1 == pieces.len() { flag::END_HEADERS } else { 0 };
            let (kind, flags) = if number == 0 { (kind::HEADERS, flag::END_STREAM) } else { (kind::CONTINUATION, 0) };
            says.push(Frame::new(kind, flags | last, 1, *piece).encode());
        }
        let case = Case { name: "a bomb", says, must: Must::Answer(431) };
        let answered = block_on(ask(world.address("in"), &case));
        let refused =
            answered.is_ok() || answered.is_err_and(|seen| seen.contains("closed") || seen.contains("kind: 7"));
        assert!(refused && backend.requests() == 0);
    }
}
