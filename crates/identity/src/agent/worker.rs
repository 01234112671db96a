//! The agent's loop: join or renew, store, publish, wait.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use zeroize::Zeroizing;

use super::ask::{ask, csr, fresh_key};
use super::directory::PemDirectory;
use super::material::Material;
use super::{AgentError, AgentSettings, Status, control_client, pin_text};
use crate::ca;
use crate::private;
use crate::reach::Server;
use crate::tls::{KeySlot, pinned_client_config};
use crate::token::JoinToken;

/// The key of a join that is not finished: a retry must use the same key, also after a crash.
const PENDING_KEY: &str = "pending-key.pem";
/// The id of the token that was used: it is not tried again.
const USED_TOKEN: &str = "used-token";
/// The address that worked last.
const SERVER: &str = "server";

/// The shortest and longest pause after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));
/// The longest sleep: the wall clock is looked at again, because a suspended machine does not count sleep.
const NAP: Duration = Duration::from_secs(20);

pub(super) struct Worker {
    settings: AgentSettings,
    home: PemDirectory,
    copy: Option<PemDirectory>,
    status: watch::Sender<Status>,
    keys: Arc<KeySlot>,
    failures: u32,
}

impl Worker {
    pub(super) fn new(
        settings: AgentSettings,
        home: PemDirectory,
        copy: Option<PemDirectory>,
        status: watch::Sender<Status>,
        keys: Arc<KeySlot>,
    ) -> Self {
        Self { settings, home, copy, status, keys, failures: 0 }
    }

    pub(super) async fn run(mut self) {
        match self.restore(SystemTime::now()) {
            Ok(Some(material)) => {
                tracing::info!(identity = %material.identity, "took the identity that an earlier run left");
                self.store_in(self.copy.as_ref(), &material);
                self.publish(material);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "what an earlier run left cannot be used"),
        }
        let mut due = self.renewal_time(SystemTime::now());
        loop {
            self.sleep_until(due).await;
            match self.attempt().await {
                Ok(material) => {
                    self.failures = 0;
                    self.keep(&material);
                    self.publish(material);
                    due = self.renewal_time(SystemTime::now());
                }
                Err(error) => {
                    self.complain(&error);
                    due = SystemTime::now() + self.backoff();
                }
            }
        }
    }

    /// What an earlier run left, if it is still valid.
    fn restore(&self, now: SystemTime) -> Result<Option<Material>, AgentError> {
        let Some(pems) = self.home.read()? else { return Ok(None) };
        Material::check(pems.chain, pems.key, pems.root, None, now).map(Some)
    }

    /// With a certificate: renew; without, or when renewal is refused and a token is there: join.
    async fn attempt(&self) -> Result<Material, AgentError> {
        let current = self.status.borrow().material.clone();
        if let Some(current) = current.filter(|m| !m.is_over(SystemTime::now())) {
            match self.renew(&current).await {
                Err(AgentError::Refused(reason)) => match self.unused_token() {
                    Ok(token) => return self.join(&token).await,
                    Err(_) => return Err(AgentError::Refused(reason)),
                },
                other => return other,
            }
        }
        self.join(&self.unused_token()?).await
    }

    async fn renew(&self, current: &Material) -> Result<Material, AgentError> {
        let server = self.server(None)?;
        let key = fresh_key()?;
        let tls = control_client(current, Arc::clone(&self.keys))?;
        let answer = ask(&server, tls, None, csr(&current.identity, &key)?, self.settings.ttl).await?;
        let material = Material::from_answer(&answer, key, SystemTime::now())?;
        if material.identity != current.identity {
            let (got, had) = (&material.identity, &current.identity);
            return Err(AgentError::Certificate(format!("it is for {got}, not for {had}")));
        }
        if material.root_hash() != current.root_hash() {
            return Err(AgentError::Certificate("its root is not the one that was trusted until now".to_owned()));
        }
        Ok(material)
    }

    async fn join(&self, token: &JoinToken) -> Result<Material, AgentError> {
        let server = self.server(Some(token))?;
        let key = self.pending_key()?;
        let trust_domain = token.identity.trust_domain();
        let control = ca::control_identity(trust_domain).map_err(|e| AgentError::Certificate(e.to_string()))?;
        let alpn = vec![b"h2".to_vec()];
        let (tls, _) = pinned_client_config(token.ca_sha256, trust_domain, &control.to_string(), alpn)?;
        let request = csr(&token.identity, &key)?;
        let answer = ask(&server, tls, Some(&token.secret), request, self.settings.ttl).await?;
        let material = Material::from_answer(&answer, key, SystemTime::now())?;
        if material.identity != token.identity {
            let (got, want) = (&material.identity, &token.identity);
            return Err(AgentError::Certificate(format!("it is for {got}, not for {want}")));
        }
        if material.root_hash() != Some(token.ca_sha256) {
            let pin = pin_text(token.ca_sha256);
            return Err(AgentError::Certificate(format!("its root has not the SHA-256 {pin} that the token names")));
        }
        self.remember(USED_TOKEN, &token.secret.id());
        self.remember(SERVER, &server.to_string());
        let _ = std::fs::remove_file(self.path(PENDING_KEY));
        Ok(material)
    }

    /// The token, unless there is none or it was used before.
    fn unused_token(&self) -> Result<JoinToken, AgentError> {
        let Some(path) = &self.settings.token else {
            let reason = "there is no valid certificate and no join token: make one with `tulle token create` and give \
                          it with --token";
            return Err(AgentError::NoProof(reason.to_owned()));
        };
        let token = JoinToken::read(path)?;
        if self.recall(USED_TOKEN).as_deref() == Some(token.secret.id().as_str()) {
            let path = path.display();
            let reason = format!("the certificate has ended and the token in {path} was used: put a new one there");
            return Err(AgentError::NoProof(reason));
        }
        Ok(token)
    }

    /// The address: as set, else as the token says, else as it was.
    fn server(&self, token: Option<&JoinToken>) -> Result<Server, AgentError> {
        if let Some(server) = &self.settings.server {
            return Ok(server.clone());
        }
        let text = match token {
            Some(token) => Some(token.server.clone()),
            None => self.recall(SERVER).or_else(|| self.token_server()),
        };
        let text = text.ok_or_else(|| {
            AgentError::NoProof("the control plane's address is not known: give it with --server".to_owned())
        })?;
        text.parse().map_err(|e: crate::reach::NoServer| AgentError::NoProof(e.to_string()))
    }

    fn token_server(&self) -> Option<String> {
        JoinToken::read(self.settings.token.as_deref()?).ok().map(|token| token.server)
    }

    fn pending_key(&self) -> Result<Zeroizing<String>, AgentError> {
        let path = self.path(PENDING_KEY);
        match private::read_secret(&path) {
            Ok(bytes) => {
                let bytes = Zeroizing::new(bytes);
                if let Ok(text) = std::str::from_utf8(&bytes)
                    && rcgen::KeyPair::from_pem(text).is_ok()
                {
                    return Ok(Zeroizing::new(text.to_owned()));
                }
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        let key = fresh_key()?;
        private::replace(&path, key.as_bytes())?;
        Ok(key)
    }

    /// Stores the set; an agent that cannot store still serves.
    fn keep(&self, material: &Material) {
        self.store_in(Some(&self.home), material);
        self.store_in(self.copy.as_ref(), material);
    }

    fn store_in(&self, directory: Option<&PemDirectory>, material: &Material) {
        if let Some(Err(error)) = directory.map(|directory| directory.write(material)) {
            tracing::error!(%error, "storing key and certificate");
        }
    }

    fn publish(&self, material: Material) {
        let until = crate::tls::when(material.not_after());
        tracing::info!(target: "audit", event = "identity_held", subject = %material.identity, until);
        self.keys.set(vec![Arc::clone(&material.credentials)]);
        self.status.send_modify(|status| {
            status.material = Some(Arc::new(material));
            status.problem = None;
            status.forbidden = false;
            status.received += 1;
        });
    }

    fn complain(&mut self, error: &AgentError) {
        self.failures = self.failures.saturating_add(1);
        let left = self.status.borrow().material.as_ref().map(|m| life(m, SystemTime::now()));
        match left {
            None => tracing::warn!(%error, attempt = self.failures, "no identity yet"),
            Some((left, whole)) if left < whole.mul_f64(0.2) => {
                tracing::error!(%error, ?left, "the certificate ends soon and cannot be renewed");
            }
            Some((left, _)) => tracing::warn!(%error, ?left, "renewal failed, trying again"),
        }
        self.status.send_modify(|status| {
            status.problem = Some(error.to_string());
            status.forbidden = error.is_forbidden();
            status.failed += 1;
        });
    }

    /// Between 35 % and 50 % of the life that was left when the certificate came; at once without one.
    fn renewal_time(&self, now: SystemTime) -> SystemTime {
        let status = self.status.borrow();
        let Some(material) = &status.material else { return now };
        let (left, whole) = life(material, now);
        let share = 0.35 + 0.15 * rand::random::<f64>();
        let gone = whole.saturating_sub(left);
        now + whole.mul_f64(share).saturating_sub(gone)
    }

    /// Doubles with each failure, with jitter; short lives get short pauses.
    fn backoff(&self) -> Duration {
        let (least, most) = BACKOFF;
        let most = match self.status.borrow().material.as_ref() {
            Some(material) => (life(material, SystemTime::now()).1 / 10).clamp(least, most),
            None => most,
        };
        let doubled = least.saturating_mul(1 << self.failures.saturating_sub(1).min(10));
        doubled.min(most).mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }

    async fn sleep_until(&self, due: SystemTime) {
        while let Ok(left) = due.duration_since(SystemTime::now()) {
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(NAP)).await;
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.settings.run_dir.join(name)
    }

    fn remember(&self, name: &str, text: &str) {
        if let Err(error) = private::replace(&self.path(name), text.as_bytes()) {
            tracing::warn!(%error, "storing the agent's state");
        }
    }

    fn recall(&self, name: &str) -> Option<String> {
        private::read_secret(&self.path(name)).ok().and_then(|bytes| String::from_utf8(bytes).ok())
    }
}

/// What is left of a certificate's life, and how long it was when it came.
fn life(material: &Material, now: SystemTime) -> (Duration, Duration) {
    let ends = material.not_after();
    (ends.duration_since(now).unwrap_or_default(), ends.duration_since(material.since).unwrap_or_default())
}
