//! The last good configuration on disk, for starts without a control plane. It never holds secrets.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use engine::Update;
use prost::Message;
use proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use proto::envoy::service::discovery::v3::Resource;
use proto::google::protobuf::Any;
use proto::type_url;

const FILE: &str = "last-good.pb";

/// What the control plane sent and this proxy accepted.
#[derive(Debug)]
pub struct Saved {
    path: PathBuf,
    /// From the run before, until it is used or superseded.
    loaded: BTreeMap<(Arc<str>, Arc<str>), Bytes>,
    accepted: BTreeMap<(Arc<str>, Arc<str>), Bytes>,
    changed: bool,
    in_use: bool,
}

impl Saved {
    /// Opens a state directory, made with mode 0700 where it does not exist.
    ///
    /// # Errors
    /// Others could write to it, or the system refuses.
    pub fn open(directory: &Path) -> io::Result<Self> {
        if !directory.exists() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let metadata = std::fs::metadata(directory)?;
        if !metadata.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is not a directory"));
        }
        if metadata.mode() & 0o022 != 0 {
            let mode = metadata.mode() & 0o777;
            let text =
                format!("its mode is {mode:04o}: others could write to it; run: chmod 700 {}", directory.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        if metadata.uid() != own_uid() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user"));
        }
        let path = directory.join(FILE);
        let loaded = match std::fs::read(&path) {
            Ok(bytes) => decode(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { path, loaded, accepted: BTreeMap::new(), changed: false, in_use: false })
    }

    /// Everything from the run before, clusters and endpoints first; once.
    pub fn take_loaded(&mut self) -> Vec<Update> {
        if self.loaded.is_empty() {
            // Asked again with each try to connect that fails: what is in use stays in use.
            return Vec::new();
        }
        use type_url::{CLUSTER, ENDPOINTS, EXTENSION, LISTENER, ROUTE};
        let order = [CLUSTER, ENDPOINTS, ROUTE, EXTENSION, LISTENER];
        let mut updates = Vec::with_capacity(self.loaded.len());
        for kind in order {
            let of_kind = self.loaded.iter().filter(|((type_url, _), _)| **type_url == *kind);
            updates.extend(of_kind.map(|((type_url, name), body)| Update {
                type_url: Arc::clone(type_url),
                name: Arc::clone(name),
                body: Some(body.clone()),
            }));
        }
        self.accepted = std::mem::take(&mut self.loaded);
        self.in_use = !updates.is_empty();
        updates
    }

    /// Whether this run began from what was saved.
    pub fn is_in_use(&self) -> bool {
        self.in_use
    }

    /// Names of a type that were saved and are not among those that the server has now.
    pub fn stale(&self, kind: &str, fresh: &[&str]) -> Vec<String> {
        if !self.in_use || (kind != type_url::CLUSTER && kind != type_url::LISTENER) {
            return Vec::new();
        }
        let names = self.accepted.keys().filter(|(type_url, name)| **type_url == *kind && !fresh.contains(&&**name));
        names.map(|(_, name)| name.to_string()).collect()
    }

    /// Notes a change that was accepted.
    pub fn note(&mut self, update: &Update) {
        if *update.type_url == *type_url::SECRET {
            return;
        }
        let key = (Arc::clone(&update.type_url), Arc::clone(&update.name));
        match &update.body {
            Some(body) => self.accepted.insert(key, body.clone()),
            None => self.accepted.remove(&key),
        };
        self.changed = true;
    }

    /// Writes what was accepted, if it changed, with an atomic swap.
    pub fn write_if_changed(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let resources = self.accepted.iter().map(|((type_url, name), body)| Resource {
            name: name.to_string(),
            resource: Some(Any { type_url: type_url.to_string(), value: body.to_vec() }),
            ..Resource::default()
        });
        let all = DeltaDiscoveryResponse { resources: resources.collect(), ..DeltaDiscoveryResponse::default() };
        if let Err(error) = replace(&self.path, &all.encode_to_vec()) {
            tracing::warn!(event = "state-not-saved", path = %self.path.display(), %error);
        }
    }
}

fn decode(bytes: &[u8]) -> BTreeMap<(Arc<str>, Arc<str>), Bytes> {
    let Ok(all) = DeltaDiscoveryResponse::decode(bytes) else {
        tracing::warn!(event = "state-damaged", "the saved configuration is damaged and is not used");
        return BTreeMap::new();
    };
    let resources = all.resources.into_iter().filter_map(|resource| {
        let any = resource.resource?;
        Some(((Arc::from(any.type_url), Arc::from(resource.name)), Bytes::from(any.value)))
    });
    resources.collect()
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    std::fs::rename(fresh, path)
}

/// The user that this process runs as.
fn own_uid() -> u32 {
    std::fs::metadata("/proc/self").map(|metadata| metadata.uid()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn update(kind: &str, name: &str, body: Option<&'static [u8]>) -> Update {
        Update { type_url: kind.into(), name: name.into(), body: body.map(Bytes::from_static) }
    }

    #[test]
    fn comes_back_after_a_restart_without_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let mut saved = Saved::open(&path).unwrap();
        saved.note(&update(type_url::LISTENER, "l", Some(b"listener")));
        saved.note(&update(type_url::EXTENSION, "f", Some(b"filter")));
        saved.note(&update(type_url::CLUSTER, "c", Some(b"cluster")));
        saved.note(&update(type_url::CLUSTER, "gone", Some(b"x")));
        saved.note(&update(type_url::CLUSTER, "gone", None));
        saved.note(&update(type_url::SECRET, "default", Some(b"key")));
        saved.write_if_changed();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        assert_eq!(std::fs::metadata(path.join(FILE)).unwrap().mode() & 0o777, 0o600);

        let mut again = Saved::open(&path).unwrap();
        let names: Vec<_> = again.take_loaded().iter().map(|u| u.name.to_string()).collect();
        assert_eq!(names, ["c", "f", "l"]);
        assert!(again.take_loaded().is_empty() && again.is_in_use(), "a second look takes nothing away");
        assert_eq!(again.stale(type_url::CLUSTER, &["d"]), ["c"]);
    }

    #[test]
    fn refuses_a_directory_that_others_can_write() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = Saved::open(directory.path()).unwrap_err();
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }
}
