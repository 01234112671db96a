//! A server that says what it received and does what the path asks for.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A backend on a port of its own; its threads end with the test program.
pub(crate) struct Backend {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Connections so far.
    connections: Arc<AtomicUsize>,
    /// Heads of the requests so far.
    pub(crate) heads: Arc<Mutex<Vec<String>>>,
}

impl Backend {
    /// Starts one. What a path asks for: `/status/N`, `/fail-first/N` (503 to the first N requests), `/sleep/MS`,
    /// `/busy/MS` (503 after that time), `/close` (without an answer), `/chunked`, `/upgrade`; anything else: 200 with the request's body.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, heads) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<Vec<String>>>::default());
        let (count, record) = (Arc::clone(&connections), Arc::clone(&heads));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::SeqCst);
                let record = Arc::clone(&record);
                std::thread::spawn(move || serve(stream, &record));
            }
        });
        Self { address, connections, heads }
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> usize {
        self.heads.lock().unwrap().len()
    }

    /// The last request's head.
    pub(crate) fn last(&self) -> String {
        self.heads.lock().unwrap().last().cloned().unwrap_or_default()
    }
}

/// A port on which nobody listens.
pub(crate) fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn serve(stream: TcpStream, heads: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    while let Some(head) = read_head(&mut reader) {
        let earlier = {
            let mut heads = heads.lock().unwrap();
            heads.push(head.clone());
            heads.len() - 1
        };
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let body = read_body(&mut reader, &head);
        let argument = path.rsplit('/').next().and_then(|n| n.parse::<usize>().ok()).unwrap_or_default();
        let answer = match path.split('/').nth(1).unwrap_or_default() {
            "status" => format!("HTTP/1.1 {argument} Status\r\ncontent-length: 2\r\n\r\nno").into_bytes(),
            "fail-first" if earlier < argument => b"HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno".to_vec(),
            "busy" => {
                std::thread::sleep(Duration::from_millis(argument as u64));
                b"HTTP/1.1 503 Busy\r\ncontent-length: 2\r\n\r\nno".to_vec()
            }
            "close" => return,
            "chunked" => {
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n".to_vec()
            }
            "upgrade" => {
                writer
                    .write_all(b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
                    .unwrap();
                echo(&mut reader, &mut writer);
                return;
            }
            word => {
                if word == "sleep" {
                    std::thread::sleep(Duration::from_millis(argument as u64));
                }
                let mut answer = format!("HTTP/1.1 200 OK\r\nx-backend: yes\r\ncontent-length: {}\r\n\r\n", body.len());
                answer.push_str(&String::from_utf8_lossy(&body));
                answer.into_bytes()
            }
        };
        if writer.write_all(&answer).is_err() {
            return;
        }
    }
}

fn echo(reader: &mut impl Read, writer: &mut impl Write) {
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = reader.read(&mut buffer) {
        if writer.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

fn read_head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            return Some(head);
        }
        head.push_str(&line);
    }
}

fn read_body(reader: &mut impl BufRead, head: &str) -> Vec<u8> {
    let head = head.to_ascii_lowercase();
    let value = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mut body = Vec::new();
    if let Some(length) = value("content-length:") {
        body.resize(length.parse().unwrap(), 0);
        reader.read_exact(&mut body).unwrap();
    } else if value("transfer-encoding:") == Some("chunked") {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let size = usize::from_str_radix(line.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).unwrap();
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    }
    body
}
