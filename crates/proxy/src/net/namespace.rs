//! Sockets of other network namespaces.
//!
//! A socket belongs for ever to the namespace of the thread that made it, whichever thread uses it. So a thread that has
//! moved into the namespace makes the sockets, and the workers do everything else with them. It takes no rights to come
//! back: the thread ends there.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Socket, Type};
use tokio::sync::oneshot;

/// How long a thread waits in a namespace for the next wish, before it ends and lets the namespace go.
const STAY: Duration = Duration::from_secs(10);

/// The threads, by the file of the namespace they are in.
static THREADS: Mutex<BTreeMap<PathBuf, mpsc::Sender<Wish>>> = Mutex::new(BTreeMap::new());

/// A TCP socket that somebody wants.
struct Wish {
    domain: Domain,
    answer: Box<dyn FnOnce(io::Result<Socket>) + Send>,
}

/// A new TCP socket in the network namespace of a file.
///
/// # Errors
/// The namespace cannot be entered, or the system gives no socket.
pub async fn tcp_socket(namespace: &Path, domain: Domain) -> io::Result<Socket> {
    let (answer, answered) = oneshot::channel();
    wish(namespace, Wish { domain, answer: Box::new(move |made| drop(answer.send(made))) })?;
    answered.await.unwrap_or_else(|_| Err(io::Error::other("the thread in the network namespace ended")))
}

/// The same for callers that may wait.
///
/// # Errors
/// As [`tcp_socket`].
pub fn tcp_socket_blocking(namespace: &Path, domain: Domain) -> io::Result<Socket> {
    let (answer, answered) = mpsc::sync_channel(1);
    wish(namespace, Wish { domain, answer: Box::new(move |made| drop(answer.send(made))) })?;
    answered.recv().unwrap_or_else(|_| Err(io::Error::other("the thread in the network namespace ended")))
}

fn wish(namespace: &Path, wish: Wish) -> io::Result<()> {
    let mut threads = THREADS.lock();
    let wish = match threads.get(namespace) {
        Some(thread) => match thread.send(wish) {
            Ok(()) => return Ok(()),
            Err(mpsc::SendError(wish)) => wish,
        },
        None => wish,
    };
    let (sender, wishes) = mpsc::channel();
    let path = namespace.to_owned();
    std::thread::Builder::new().name("namespace".to_owned()).spawn(move || fulfil(&path, &wishes))?;
    // The thread takes wishes until it is out of the table, so this one is not lost.
    let _ = sender.send(wish);
    threads.insert(namespace.to_owned(), sender);
    Ok(())
}

/// Makes sockets inside the namespace until nobody wants one for a while.
fn fulfil(namespace: &Path, wishes: &mpsc::Receiver<Wish>) {
    let entered = enter(namespace);
    loop {
        let wish = match wishes.recv_timeout(if entered.is_ok() { STAY } else { Duration::from_millis(1) }) {
            Ok(wish) => wish,
            Err(_) => {
                let mut threads = THREADS.lock();
                // Wishes are sent under the lock: what is not here now will never come.
                let Ok(late) = wishes.try_recv() else {
                    threads.remove(namespace);
                    return;
                };
                late
            }
        };
        (wish.answer)(match &entered {
            Ok(()) => Socket::new(wish.domain, Type::STREAM, None),
            Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", namespace.display()))),
        });
    }
}

fn enter(namespace: &Path) -> io::Result<()> {
    let file = std::fs::File::open(namespace)?;
    Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_is_not_there_is_an_error_and_not_the_own_one() {
        let error = tcp_socket_blocking(Path::new("/no/such/namespace"), Domain::IPV4).expect_err("no socket");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().starts_with("/no/such/namespace: "), "{error}");
        let other = tcp_socket_blocking(Path::new("/proc/self/stat"), Domain::IPV4).expect_err("no namespace");
        assert!(other.to_string().starts_with("/proc/self/stat: "), "{other}");
    }
}
