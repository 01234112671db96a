//! Files that nobody else may read: 0600 inside directories of 0700, written whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The largest file this module reads: keys, chains and tokens are far smaller.
const MAX_FILE: u64 = 1 << 20;

/// Why a private file or directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
    /// Other users could read or change it.
    #[error("{path} has mode {mode:04o}: others may {access} it; run: chmod {wanted:o} {path}")]
    Mode {
        /// Which file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// `read` or `change`.
        access: &'static str,
        /// What they should be.
        wanted: u32,
    },
    /// It belongs to another user, who could change it at any time.
    #[error("{path} belongs to user {owner}, not to user {expected} who runs this program")]
    Owner {
        /// Which file or directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs this program.
        expected: u32,
    },
    /// It is larger than 1 MiB.
    #[error("{0} is larger than 1 MiB: that is no key, certificate or token")]
    TooLarge(PathBuf),
    /// The system said no.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried: `read`, `write`, `create`...
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl PrivateError {
    /// Whether the file is simply not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PrivateError {
    let path = path.to_owned();
    move |source| PrivateError::Io { what, path, source }
}

/// Makes a directory of mode 0700 (and its parents), or checks that an existing one cannot be changed by others.
pub(crate) fn directory(path: &Path) -> Result<(), PrivateError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("create", path))?;
    let metadata = fs::metadata(path).map_err(io_error("look at", path))?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(PrivateError::Mode { path: path.to_owned(), mode, access: "change", wanted: 0o700 });
    }
    let uid = rustix::process::geteuid().as_raw();
    if metadata.uid() != uid && uid != 0 {
        return Err(PrivateError::Owner { path: path.to_owned(), owner: metadata.uid(), expected: uid });
    }
    Ok(())
}

/// Reads a secret; refuses it when others may read or change it.
pub(crate) fn read_secret(path: &Path) -> Result<Vec<u8>, PrivateError> {
    let file = File::open(path).map_err(io_error("read", path))?;
    let mode = file.metadata().map_err(io_error("look at", path))?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(PrivateError::Mode { path: path.to_owned(), mode, access: "read", wanted: 0o600 });
    }
    read_open(file, path)
}

/// Reads a file that is not secret.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, PrivateError> {
    read_open(File::open(path).map_err(io_error("read", path))?, path)
}

fn read_open(file: File, path: &Path) -> Result<Vec<u8>, PrivateError> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    if bytes.len() as u64 > MAX_FILE { Err(PrivateError::TooLarge(path.to_owned())) } else { Ok(bytes) }
}

/// Creates a new file of mode 0600; an existing one is an error.
pub(crate) fn create(path: &Path, bytes: &[u8]) -> Result<(), PrivateError> {
    let options = OpenOptions::new().write(true).create_new(true).mode(0o600).clone();
    let mut file = options.open(path).map_err(io_error("create", path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io_error("write", path))
}

/// Opens a file of mode 0600 for appending, and makes it and its directory if need be.
pub(crate) fn append(path: &Path) -> Result<File, PrivateError> {
    if let Some(parent) = path.parent() {
        directory(parent)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(io_error("open", path))
}

/// Puts a file of mode 0600 in place of an older one, in one step: readers see the old or the new, never a part.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), PrivateError> {
    let draft = draft_of(path);
    create(&draft, bytes)?;
    let renamed = fs::rename(&draft, path).map_err(io_error("write", path));
    if renamed.is_err() {
        let _ = fs::remove_file(&draft);
    }
    renamed
}

/// Puts a file of mode 0600 in place if none is there. `Ok(false)`: somebody else's was first and stays.
pub(crate) fn claim(path: &Path, bytes: &[u8]) -> Result<bool, PrivateError> {
    let draft = draft_of(path);
    create(&draft, bytes)?;
    // A hard link appears with its whole content, and fails when the name is taken.
    let linked = fs::hard_link(&draft, path);
    let _ = fs::remove_file(&draft);
    match linked {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(io_error("write", path)(error)),
    }
}

/// Sets the mode of a socket or file that is already there.
pub(crate) fn restrict(path: &Path, mode: u32) -> Result<(), PrivateError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io_error("set the mode of", path))
}

/// A name beside `path` that nobody else uses.
fn draft_of(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{:016x}", rand::random::<u64>()));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn files_are_private_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        directory(&inner).unwrap();
        assert_eq!(mode(&inner), 0o700);
        let file = inner.join("secret");
        replace(&file, b"one").unwrap();
        replace(&file, b"two").unwrap();
        assert_eq!(read_secret(&file).unwrap(), b"two");
        assert_eq!(mode(&file), 0o600);
        assert!(!claim(&file, b"three").unwrap());
        assert!(claim(&inner.join("other"), b"three").unwrap());
        assert_eq!(fs::read_dir(&inner).unwrap().count(), 2, "no drafts are left behind");
    }

    #[test]
    fn what_others_may_touch_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        create(&file, b"x").unwrap();
        restrict(&file, 0o640).unwrap();
        let message = read_secret(&file).unwrap_err().to_string();
        assert!(message.contains("chmod 600"), "{message}");
        restrict(dir.path(), 0o777).unwrap();
        assert!(matches!(directory(dir.path()), Err(PrivateError::Mode { access: "change", .. })));
        assert!(read_secret(&dir.path().join("none")).unwrap_err().is_not_found());
    }
}
