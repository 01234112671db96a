//! Key and certificate as PEM files, all replaced in one step.
//!
//! The files are in a fresh directory of their own; `..data` is a symbolic link to it that is renamed over the old one,
//! and `cert-chain.pem`, `key.pem`, `root-cert.pem` are links through `..data`. So a reader that opens the three sees a
//! matching set, and Envoy's `watched_directory` notices the move (the layout of Kubernetes' volumes).

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::material::Material;
use crate::private::{self, PrivateError};

pub(super) const CHAIN: &str = "cert-chain.pem";
pub(super) const KEY: &str = "key.pem";
pub(super) const ROOT: &str = "root-cert.pem";
const DATA: &str = "..data";
const DRAFT: &str = "..data.new";

/// A directory with the three files.
#[derive(Debug, Clone)]
pub(super) struct PemDirectory(PathBuf);

/// The three texts.
pub(super) struct Pems {
    pub(super) chain: String,
    pub(super) key: Zeroizing<String>,
    pub(super) root: String,
}

impl PemDirectory {
    /// Makes the directory (0700), or checks an existing one.
    pub(super) fn open(path: &Path) -> Result<Self, PrivateError> {
        private::directory(path)?;
        Ok(Self(path.to_owned()))
    }

    /// Replaces the set.
    pub(super) fn write(&self, material: &Material) -> Result<(), PrivateError> {
        let old = fs::read_link(self.0.join(DATA)).ok();
        let name = format!("..set-{:016x}", rand::random::<u64>());
        let set = self.0.join(&name);
        private::directory(&set)?;
        private::create(&set.join(CHAIN), material.chain_pem.as_bytes())?;
        private::create(&set.join(KEY), material.key_pem.as_bytes())?;
        private::create(&set.join(ROOT), material.root_pem.as_bytes())?;

        let (draft, data) = (self.0.join(DRAFT), self.0.join(DATA));
        absent(&draft, |path| fs::remove_file(path))?;
        symlink(&name, &draft).map_err(|e| io_error("link", &draft, e))?;
        fs::rename(&draft, &data).map_err(|e| io_error("replace", &data, e))?;
        for file in [CHAIN, KEY, ROOT] {
            let link = self.0.join(file);
            let target = Path::new(DATA).join(file);
            if fs::read_link(&link).ok().as_deref() != Some(&target) {
                absent(&link, |path| fs::remove_file(path))?;
                symlink(&target, &link).map_err(|e| io_error("link", &link, e))?;
            }
        }
        // Only a directory of ours is removed, whatever the old link said.
        if let Some(old) = old.filter(|old| is_set(old) && old.as_path() != Path::new(&name)) {
            absent(&self.0.join(old), |path| fs::remove_dir_all(path))?;
        }
        Ok(())
    }

    /// The set that is there, if any.
    pub(super) fn read(&self) -> Result<Option<Pems>, PrivateError> {
        let data = self.0.join(DATA);
        let text = |bytes: Vec<u8>, name: &str| {
            String::from_utf8(bytes)
                .map_err(|_| io_error("read", &data.join(name), io::Error::from(io::ErrorKind::InvalidData)))
        };
        let key = match private::read_secret(&data.join(KEY)) {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        };
        Ok(Some(Pems {
            key: Zeroizing::new(text(key, KEY)?),
            chain: text(private::read(&data.join(CHAIN))?, CHAIN)?,
            root: text(private::read(&data.join(ROOT))?, ROOT)?,
        }))
    }
}

fn is_set(link: &Path) -> bool {
    link.to_str().is_some_and(|name| name.starts_with("..set-") && !name.contains('/'))
}

/// Removes something that need not be there.
fn absent(path: &Path, remove: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), PrivateError> {
    match remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path, error)),
        _ => Ok(()),
    }
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> PrivateError {
    PrivateError::Io { what, path: path.to_owned(), source }
}
