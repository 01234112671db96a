//! The sessions that a client may resume, for one configuration and server by server.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, NamedGroup};

use super::material::KeySlot;

/// How many servers' choices of a key exchange group are remembered.
const GROUPS: usize = 64;

/// The sessions of one client configuration, the newest first. They end with it: with other trust or other rules for
/// names there is another configuration and another store. A session that began under another certificate of our own is
/// never offered again.
#[derive(Clone)]
pub struct Sessions {
    most: usize,
    keys: Option<Arc<KeySlot>>,
    kept: Arc<Mutex<Store>>,
}

#[derive(Default)]
struct Store {
    sessions: VecDeque<Kept>,
    groups: VecDeque<(Server, NamedGroup)>,
}

/// Which server: where it is, and the name that was asked for.
type Server = (Place, ServerName<'static>);

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Not said: the name alone tells servers apart.
    Any,
    /// At an address.
    Socket(SocketAddr),
    /// At a Unix socket.
    Path(Arc<Path>),
}

struct Kept {
    server: Server,
    /// The number of our own key when the handshake began.
    key: u64,
    session: Session,
}

enum Session {
    /// May be resumed again and again.
    Older(Tls12ClientSessionValue),
    /// A ticket of TLS 1.3, used once.
    Newer(Tls13ClientSessionValue),
}

impl Sessions {
    /// Room for at most `most` sessions in all; with none, every handshake is a full one. `keys`: those that the
    /// configuration authenticates with.
    pub fn new(most: usize, keys: Option<Arc<KeySlot>>) -> Self {
        Self { most, keys, kept: Arc::default() }
    }

    /// The configuration for one connection to the server at `place`: only what that server gave is offered to it.
    /// (Another one could not read it: the handshake would be full, and the session lost.)
    pub fn towards(&self, config: &Arc<ClientConfig>, place: Place) -> Arc<ClientConfig> {
        if self.most == 0 {
            return Arc::clone(config);
        }
        let mut config = ClientConfig::clone(config);
        config.resumption = Resumption::store(Arc::new(OfServer { key: Some(self.key()), ..self.of(place) }));
        Arc::new(config)
    }

    /// Forgets every session.
    pub fn clear(&self) {
        self.kept.lock().sessions.clear();
    }

    pub(super) fn of(&self, place: Place) -> OfServer {
        OfServer { place, key: None, sessions: self.clone() }
    }

    fn key(&self) -> u64 {
        self.keys.as_ref().map_or(0, |keys| keys.number())
    }
}

impl fmt::Debug for Sessions {
    /// Never prints what a session holds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("most", &self.most).finish_non_exhaustive()
    }
}

/// The store as one connection sees it.
#[derive(Debug)]
pub(super) struct OfServer {
    place: Place,
    /// Of the moment before the handshake: should the key change meanwhile, what the handshake brings is not offered. `None`:
    /// this is the store of many connections.
    key: Option<u64>,
    sessions: Sessions,
}

impl OfServer {
    fn keep(&self, name: ServerName<'static>, session: Session) {
        if self.sessions.most == 0 {
            return;
        }
        let mut kept = self.sessions.kept.lock();
        while kept.sessions.len() >= self.sessions.most {
            kept.sessions.pop_back();
        }
        let server = (self.place.clone(), name);
        let key = self.key.unwrap_or_else(|| self.sessions.key());
        kept.sessions.push_front(Kept { server, key, session });
    }

    fn is_for(&self, kept: &Kept, name: &ServerName<'_>) -> bool {
        kept.key == self.sessions.key() && kept.server.0 == self.place && kept.server.1 == *name
    }
}

impl ClientSessionStore for OfServer {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        let mut kept = self.sessions.kept.lock();
        let server = (self.place.clone(), name);
        if let Some((_, known)) = kept.groups.iter_mut().find(|(known, _)| *known == server) {
            *known = group;
            return;
        }
        kept.groups.truncate(GROUPS - 1);
        kept.groups.push_front((server, group));
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        let kept = self.sessions.kept.lock();
        kept.groups.iter().find(|((place, known), _)| *place == self.place && *known == *name).map(|(_, group)| *group)
    }

    fn set_tls12_session(&self, name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.remove_tls12_session(&name);
        self.keep(name, Session::Older(value));
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        let kept = self.sessions.kept.lock();
        kept.sessions.iter().filter(|kept| self.is_for(kept, name)).find_map(|kept| match &kept.session {
            Session::Older(value) => Some(value.clone()),
            Session::Newer(_) => None,
        })
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        let older = |kept: &Kept| matches!(kept.session, Session::Older(_));
        self.sessions.kept.lock().sessions.retain(|kept| !(older(kept) && self.is_for(kept, name)));
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.keep(name, Session::Newer(value));
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut kept = self.sessions.kept.lock();
        let newer = |kept: &Kept| matches!(kept.session, Session::Newer(_));
        let place = kept.sessions.iter().position(|kept| newer(kept) && self.is_for(kept, name))?;
        match kept.sessions.remove(place)?.session {
            Session::Newer(value) => Some(value),
            Session::Older(_) => None,
        }
    }
}
