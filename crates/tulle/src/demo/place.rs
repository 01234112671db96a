//! Where a demo keeps its files.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What every demo's folder is called, before its process id.
const PREFIX: &str = "tulle-demo-";
/// Unix socket paths are at most this long, with room for `/w/payments-1/admin.sock`.
const LONGEST: usize = 108 - 40;

/// The demo's own folder, which only its user may enter.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    dir: PathBuf,
}

impl Place {
    /// Makes a new one, and clears away those of demos that were killed.
    pub(crate) fn create() -> io::Result<Self> {
        let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| usable(dir));
        let base = base
            .unwrap_or_else(|| Some(std::env::temp_dir()).filter(|dir| usable(dir)).unwrap_or_else(|| "/tmp".into()));
        clear_away(&base);
        let dir = base.join(format!("{PREFIX}{}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Self { dir })
    }

    /// One that stands.
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The declarations, which the control plane watches.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("config")
    }

    /// The certificate authority's key and tokens.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.join("ca")
    }

    /// The control plane's sockets.
    pub(crate) fn control(&self) -> PathBuf {
        self.dir.join("control")
    }

    /// The files the network namespaces are bound to.
    pub(crate) fn namespaces(&self) -> PathBuf {
        self.dir.join("ns")
    }

    /// A workload's own folder.
    pub(crate) fn of(&self, part: &str) -> PathBuf {
        self.dir.join("w").join(part)
    }

    /// Its proxy's admin socket.
    pub(crate) fn admin(&self, part: &str) -> PathBuf {
        self.of(part).join("admin.sock")
    }

    /// The file that makes a program sick while it exists. Programs may run as another user, so they may go there.
    pub(crate) fn sick(&self, part: &str) -> PathBuf {
        self.dir.join("sick").join(part)
    }

    /// Makes the folders, all private but one.
    pub(crate) fn furnish<'a>(&self, parts: impl Iterator<Item = &'a str>) -> io::Result<()> {
        let fixed = [self.config(), self.ca(), self.control(), self.namespaces()];
        for dir in fixed.into_iter().chain(parts.map(|part| self.of(part))) {
            std::fs::DirBuilder::new().mode(0o700).recursive(true).create(dir)?;
        }
        std::fs::DirBuilder::new().mode(0o711).create(self.dir.join("sick"))?;
        std::fs::set_permissions(&self.dir, std::fs::Permissions::from_mode(0o711))
    }

    /// Removes everything.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn usable(dir: &Path) -> bool {
    dir.is_dir() && dir.as_os_str().len() + PREFIX.len() + 10 <= LONGEST
}

/// Folders of demos whose process is gone. What belongs to somebody else stays: it cannot be removed.
fn clear_away(base: &Path) {
    let Ok(entries) = std::fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
