//! Where the control plane keeps tokens: one small file each, hashed, in a private directory, safe for several
//! processes (the control plane redeems while `tulle token` creates, lists and revokes).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use model::SpiffeId;
use serde::{Deserialize, Serialize};

use super::file::unhex;
use super::{MAX_TTL, Secret, moment};
use crate::audit::{Audit, Event};
use crate::ca::{CONTROL_ACCOUNT, CONTROL_NAMESPACE};
use crate::private::{self, PrivateError};
use crate::tls::hex;

/// How long an ended token stays in the list.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a new token is for.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Who its holder will be.
    pub identity: SpiffeId,
    /// The name of the workload, for people and audits.
    pub workload: String,
    /// How long it can be used.
    pub ttl: Duration,
}

/// Where a token is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenState {
    /// Nobody used it yet.
    Unused,
    /// A key owns it.
    Used,
    /// Its time ended without use.
    Expired,
    /// Somebody revoked it.
    Revoked,
}

/// A token as `list` shows it.
#[derive(Debug, Clone)]
pub struct TokenInfo {
    /// Its public name.
    pub id: String,
    /// Who its holder will be.
    pub identity: SpiffeId,
    /// The name of the workload.
    pub workload: String,
    /// When it was made.
    pub created: SystemTime,
    /// When it ends.
    pub expires: SystemTime,
    /// Where it is in its life.
    pub state: TokenState,
}

/// A token that was accepted.
#[derive(Debug, Clone)]
pub struct Redeemed {
    /// Its public name.
    pub id: String,
    /// Who its holder is.
    pub identity: SpiffeId,
    /// The name of the workload.
    pub workload: String,
    /// Whether this was the first use; `false`: a retry with the same key.
    pub first: bool,
}

/// Why a token is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum TokenRefusal {
    /// Not 43 characters of base64, or not known.
    #[error("this join token is not known here")]
    Unknown,
    /// Too late.
    #[error("this join token ended at {0}: make a new one with `tulle token create`")]
    Expired(String),
    /// Revoked.
    #[error("this join token was revoked")]
    Revoked,
    /// Another key used it first: the token was stolen, or is used by two workloads.
    #[error("this join token was already used by another key")]
    OtherKey,
    /// The store failed.
    #[error("the token store failed: {0}")]
    Store(#[from] TokenError),
}

/// Why the store cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// A file.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// A record is damaged.
    #[error("{path} is damaged: {reason}; remove it (its token is then refused)")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The lifetime.
    #[error("a join token cannot live {0:?}: give a time between 1 second and 7 days")]
    Ttl(Duration),
    /// The control plane's own identity is never given away.
    #[error("{0} is the control plane's own identity: no workload may have it")]
    Reserved(SpiffeId),
    /// No token has that name.
    #[error("there is no join token {0}")]
    NoSuch(String),
    /// The system's random generator failed.
    #[error("the system gives no random bits")]
    Random,
}

#[derive(Serialize, Deserialize)]
struct Record {
    hash: String,
    identity: String,
    workload: String,
    created: String,
    expires: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked: Option<String>,
}

/// The tokens of one control plane.
#[derive(Debug, Clone)]
pub struct TokenStore {
    directory: PathBuf,
    audit: Arc<Audit>,
}

impl TokenStore {
    /// Opens (or begins) the store in `CA-DIRECTORY/tokens`.
    ///
    /// # Errors
    /// The directory cannot be made or others may change it.
    pub fn open(ca_directory: &Path, audit: Arc<Audit>) -> Result<Self, PrivateError> {
        private::directory(ca_directory)?;
        let directory = ca_directory.join("tokens");
        private::directory(&directory)?;
        Ok(Self { directory, audit })
    }

    /// Makes a token and stores its hash.
    ///
    /// # Errors
    /// The lifetime is out of bounds, the identity is reserved, or a file cannot be written.
    pub fn create(&self, grant: &Grant, now: SystemTime) -> Result<(Secret, TokenInfo), TokenError> {
        if grant.ttl < Duration::from_secs(1) || grant.ttl > MAX_TTL {
            return Err(TokenError::Ttl(grant.ttl));
        }
        if grant.identity.namespace() == CONTROL_NAMESPACE && grant.identity.service_account() == CONTROL_ACCOUNT {
            return Err(TokenError::Reserved(grant.identity.clone()));
        }
        self.forget_old(now);
        let secret = Secret::random().map_err(|_| TokenError::Random)?;
        let record = Record {
            hash: hex(&secret.hash()),
            identity: grant.identity.to_string(),
            workload: grant.workload.clone(),
            created: moment::text(now),
            expires: moment::text(now + grant.ttl),
            revoked: None,
        };
        let id = secret.id();
        private::create(&self.record_path(&id), &json(&record))?;
        let info = self.info(&id, &record, now)?;
        self.audit.note(Event::TokenCreated, &info.identity, &format_args!("token {id} until {}", record.expires));
        Ok((secret, info))
    }

    /// Accepts a token for a key, or says why not. The first key that comes owns the token: this is decided by one
    /// atomic step in the file system, also between processes.
    ///
    /// # Errors
    /// See [`TokenRefusal`]; each refusal is audited.
    pub fn redeem(&self, presented: &str, key_hash: [u8; 32], now: SystemTime) -> Result<Redeemed, TokenRefusal> {
        let outcome = self.judge(presented, key_hash, now);
        let id = Secret::parse(presented).map_or_else(|| "malformed".to_owned(), |secret| secret.id());
        match &outcome {
            Ok(accepted) if accepted.first => {
                let detail = format_args!("token {id}, key {}", hex(&key_hash));
                self.audit.note(Event::TokenRedeemed, &accepted.identity, &detail);
            }
            Ok(_) => {}
            Err(refusal) => {
                let subject = self.load(&id).map_or_else(|_| "unknown".to_owned(), |record| record.identity);
                let detail = format_args!("token {id}, key {}: {refusal}", hex(&key_hash));
                self.audit.note(Event::TokenRefused, &subject, &detail);
            }
        }
        outcome
    }

    fn judge(&self, presented: &str, key_hash: [u8; 32], now: SystemTime) -> Result<Redeemed, TokenRefusal> {
        let secret = Secret::parse(presented).ok_or(TokenRefusal::Unknown)?;
        let id = secret.id();
        let record = match self.load(&id) {
            Err(TokenError::Private(error)) if error.is_not_found() => return Err(TokenRefusal::Unknown),
            other => other?,
        };
        let stored = unhex(&record.hash).ok_or_else(|| self.damaged(&id, "hash"))?;
        if verify_slices_are_equal(&stored, &secret.hash()).is_err() {
            return Err(TokenRefusal::Unknown);
        }
        if record.revoked.is_some() {
            return Err(TokenRefusal::Revoked);
        }
        let expires = moment::parse(&record.expires).ok_or_else(|| self.damaged(&id, "expires"))?;
        if now >= expires {
            return Err(TokenRefusal::Expired(record.expires));
        }
        let identity: SpiffeId = record.identity.parse().map_err(|_| self.damaged(&id, "identity"))?;
        let owner = hex(&key_hash);
        let first = private::claim(&self.owner_path(&id), owner.as_bytes()).map_err(TokenError::from)?;
        if !first {
            let earlier = private::read_secret(&self.owner_path(&id)).map_err(TokenError::from)?;
            verify_slices_are_equal(&earlier, owner.as_bytes()).map_err(|_| TokenRefusal::OtherKey)?;
        }
        Ok(Redeemed { id, identity, workload: record.workload, first })
    }

    /// All tokens that ended less than a week ago or live, oldest first.
    ///
    /// # Errors
    /// The directory cannot be read. Damaged records are skipped with a warning in the log.
    pub fn list(&self, now: SystemTime) -> Result<Vec<TokenInfo>, TokenError> {
        let mut all = Vec::new();
        for id in self.ids()? {
            match self.load(&id).and_then(|record| self.info(&id, &record, now)) {
                Ok(info) => all.push(info),
                Err(error) => tracing::warn!(%error, "skipping a join token"),
            }
        }
        all.sort_by(|a, b| a.created.cmp(&b.created).then_with(|| a.id.cmp(&b.id)));
        Ok(all)
    }

    /// Makes a token unusable. Certificates that were issued for it live on until they end.
    ///
    /// # Errors
    /// There is no such token, or its file cannot be written.
    pub fn revoke(&self, id: &str, now: SystemTime) -> Result<TokenInfo, TokenError> {
        let well_formed = id.len() == 16 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let mut record = match self.load(id) {
            _ if !well_formed => return Err(TokenError::NoSuch(id.to_owned())),
            Err(TokenError::Private(error)) if error.is_not_found() => return Err(TokenError::NoSuch(id.to_owned())),
            other => other?,
        };
        if record.revoked.is_none() {
            record.revoked = Some(moment::text(now));
            private::replace(&self.record_path(id), &json(&record))?;
            self.audit.note(Event::TokenRevoked, &record.identity, &format_args!("token {id}"));
        }
        self.info(id, &record, now)
    }

    fn info(&self, id: &str, record: &Record, now: SystemTime) -> Result<TokenInfo, TokenError> {
        let expires = moment::parse(&record.expires).ok_or_else(|| self.damaged(id, "expires"))?;
        let state = if record.revoked.is_some() {
            TokenState::Revoked
        } else if self.owner_path(id).exists() {
            TokenState::Used
        } else if now >= expires {
            TokenState::Expired
        } else {
            TokenState::Unused
        };
        Ok(TokenInfo {
            id: id.to_owned(),
            identity: record.identity.parse().map_err(|_| self.damaged(id, "identity"))?,
            workload: record.workload.clone(),
            created: moment::parse(&record.created).ok_or_else(|| self.damaged(id, "created"))?,
            expires,
            state,
        })
    }

    fn load(&self, id: &str) -> Result<Record, TokenError> {
        let path = self.record_path(id);
        let bytes = private::read_secret(&path)?;
        serde_json::from_slice(&bytes).map_err(|e| TokenError::Damaged { path, reason: e.to_string() })
    }

    fn ids(&self) -> Result<Vec<String>, TokenError> {
        let io = |source| PrivateError::Io { what: "list", path: self.directory.clone(), source };
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            if let Some(id) = name.to_str().and_then(|name| name.strip_suffix(".json"))
                && !id.starts_with('.')
            {
                ids.push(id.to_owned());
            }
        }
        Ok(ids)
    }

    /// Removes what ended more than a week ago; what cannot be removed stays.
    fn forget_old(&self, now: SystemTime) {
        for id in self.ids().unwrap_or_default() {
            let old = self.load(&id).ok().and_then(|record| moment::parse(&record.expires));
            if old.is_some_and(|expires| expires + REMEMBERED < now) {
                // The record first: without it the owner file means nothing.
                let _ = std::fs::remove_file(self.record_path(&id));
                let _ = std::fs::remove_file(self.owner_path(&id));
            }
        }
    }

    fn record_path(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }

    fn owner_path(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.key"))
    }

    fn damaged(&self, id: &str, field: &str) -> TokenError {
        TokenError::Damaged { path: self.record_path(id), reason: format!("field `{field}`") }
    }
}

fn json(record: &Record) -> Vec<u8> {
    serde_json::to_vec_pretty(record).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> (tempfile::TempDir, TokenStore, Grant) {
        let dir = tempfile::tempdir().unwrap();
        let store = TokenStore::open(&dir.path().join("ca"), Arc::default()).unwrap();
        let identity = SpiffeId::new("mesh.test", "shop", "cart").unwrap();
        (dir, store, Grant { identity, workload: "cart".into(), ttl: Duration::from_secs(600) })
    }

    #[test]
    fn the_first_key_owns_a_token() {
        let (_dir, store, grant) = fixture();
        let now = SystemTime::now();
        let (secret, info) = store.create(&grant, now).unwrap();
        assert_eq!(info.state, TokenState::Unused);
        let text = secret.reveal();
        let first = store.redeem(&text, [1; 32], now).unwrap();
        assert!(first.first);
        assert_eq!(first.identity, grant.identity);
        assert!(!store.redeem(&text, [1; 32], now).unwrap().first, "a retry with the same key");
        assert!(matches!(store.redeem(&text, [2; 32], now), Err(TokenRefusal::OtherKey)));
        assert_eq!(store.list(now).unwrap()[0].state, TokenState::Used);
        assert_eq!(store.audit.count(Event::TokenRedeemed), 1);
        assert_eq!(store.audit.count(Event::TokenRefused), 1);
    }

    #[test]
    fn time_and_revocation_end_it() {
        let (_dir, store, grant) = fixture();
        let now = SystemTime::now();
        let (secret, _) = store.create(&grant, now).unwrap();
        let late = now + Duration::from_secs(601);
        assert!(matches!(store.redeem(&secret.reveal(), [1; 32], late), Err(TokenRefusal::Expired(_))));
        let (secret, info) = store.create(&grant, now).unwrap();
        assert_eq!(store.revoke(&info.id, now).unwrap().state, TokenState::Revoked);
        assert!(matches!(store.redeem(&secret.reveal(), [1; 32], now), Err(TokenRefusal::Revoked)));
        assert!(matches!(store.revoke("0123456789abcdef", now), Err(TokenError::NoSuch(_))));
        assert!(matches!(store.revoke("../../etc/passwd", now), Err(TokenError::NoSuch(_))));
    }

    #[test]
    fn only_hashes_are_stored() {
        let (dir, store, grant) = fixture();
        let (secret, info) = store.create(&grant, SystemTime::now()).unwrap();
        let record = std::fs::read_to_string(dir.path().join(format!("ca/tokens/{}.json", info.id))).unwrap();
        assert!(!record.contains(secret.reveal().as_str()));
        assert!(record.contains(&hex(&secret.hash())));
        assert!(!format!("{secret:?}").contains(secret.reveal().as_str()));
    }

    #[test]
    fn a_race_of_keys_has_one_winner() {
        let (_dir, store, grant) = fixture();
        let now = SystemTime::now();
        let (secret, _) = store.create(&grant, now).unwrap();
        let text = secret.reveal();
        let winners = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..16_u8)
                .map(|key| {
                    let (store, text) = (&store, text.as_str());
                    scope.spawn(move || store.redeem(text, [key; 32], now).is_ok())
                })
                .collect();
            tries.into_iter().map(|t| t.join().unwrap()).filter(|won| *won).count()
        });
        assert_eq!(winners, 1);
    }

    #[test]
    fn reserved_and_unbounded_grants_are_refused() {
        let (_dir, store, grant) = fixture();
        let now = SystemTime::now();
        let reserved = SpiffeId::new("mesh.test", CONTROL_NAMESPACE, CONTROL_ACCOUNT).unwrap();
        let control = Grant { identity: reserved, ..grant.clone() };
        assert!(matches!(store.create(&control, now), Err(TokenError::Reserved(_))));
        let eternal = Grant { ttl: MAX_TTL * 2, ..grant.clone() };
        assert!(matches!(store.create(&eternal, now), Err(TokenError::Ttl(_))));
        store.create(&grant, now).unwrap();
        store.create(&grant, now + REMEMBERED * 2).unwrap();
        assert_eq!(store.list(now).unwrap().len(), 1, "old ones are forgotten");
    }
}
