//! The proxies that are measured: read from `bench/peers.toml`, configured for a part, started, and ended when dropped.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::{pinned, process};

/// Where the configurations are.
const FOLDER: &str = "bench";
/// How long a proxy may take to listen.
const PATIENCE: Duration = Duration::from_secs(120);

/// A proxy as `peers.toml` describes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    #[serde(default)]
    arguments: Vec<String>,
    #[serde(default)]
    version: Vec<String>,
    like: Option<String>,
    #[serde(default)]
    files: BTreeMap<String, String>,
}

/// A proxy that can be started.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// Its name in tables.
    pub(crate) name: String,
    /// The program.
    pub(crate) program: PathBuf,
    arguments: Vec<String>,
    version: Vec<String>,
    files: BTreeMap<String, PathBuf>,
}

/// All proxies of a run.
#[derive(Debug)]
pub(crate) struct Peers(Vec<Peer>);

impl Peers {
    /// Reads the descriptions. `programs` are the programs by name; a name `tulle-before` stands for another build that is
    /// configured like `tulle`.
    pub(crate) fn read(more: Option<&Path>, programs: &[(String, PathBuf)]) -> Result<Self> {
        let mut described = described(&Path::new(FOLDER).join("peers.toml"))?;
        if let Some(more) = more {
            described.extend(self::described(more)?);
        }
        let peers = programs.iter().map(|(name, program)| {
            let (known, folder) = known(&described, name)
                .with_context(|| format!("peers.toml describes no proxy `{name}`, and no beginning of that name"))?;
            let (like, folder) = match &known.like {
                Some(like) => described.get(like).with_context(|| format!("`like = {like}` names no proxy"))?.as_ref(),
                None => (known, folder),
            };
            let files = like.files.iter().chain(&known.files);
            Ok(Peer {
                name: name.clone(),
                program: program.clone(),
                arguments: known.arguments.clone(),
                version: known.version.clone(),
                files: files.map(|(part, file)| (part.clone(), folder.join(file))).collect(),
            })
        });
        Ok(Self(peers.collect::<Result<_>>()?))
    }

    /// A proxy by its name.
    pub(crate) fn get(&self, name: &str) -> Result<&Peer> {
        self.0.iter().find(|peer| peer.name == name).with_context(|| format!("there is no proxy `{name}`"))
    }

    /// Those of the given names, and all that were named on the command line, that have a file for every part.
    pub(crate) fn for_parts(&self, names: &[&str], parts: &[&str]) -> Vec<&Peer> {
        let wanted = |peer: &&Peer| names.contains(&peer.name.as_str()) || peer.is_guest();
        self.0.iter().filter(wanted).filter(|peer| parts.iter().all(|part| peer.files.contains_key(*part))).collect()
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[Peer] {
        &self.0
    }
}

type Descriptions = BTreeMap<String, (Described, PathBuf)>;

trait AsParts {
    fn as_ref(&self) -> (&Described, &Path);
}

impl AsParts for (Described, PathBuf) {
    fn as_ref(&self) -> (&Described, &Path) {
        (&self.0, &self.1)
    }
}

fn described(file: &Path) -> Result<Descriptions> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let read: BTreeMap<String, Described> = toml::from_str(&text).with_context(|| file.display().to_string())?;
    let folder = file.parent().unwrap_or_else(|| Path::new(".")).to_owned();
    Ok(read.into_iter().map(|(name, described)| (name, (described, folder.clone()))).collect())
}

fn known<'a>(described: &'a Descriptions, name: &str) -> Option<(&'a Described, &'a Path)> {
    let beginning = name.split_once('-').map_or(name, |(beginning, _)| beginning);
    described.get(name).or_else(|| described.get(beginning)).map(AsParts::as_ref)
}

impl Peer {
    /// Whether it was named on the command line.
    fn is_guest(&self) -> bool {
        !super::OWN.contains(&self.name.as_str())
    }

    /// The first line that it says of its version.
    pub(crate) fn version(&self) -> String {
        let Ok(output) = Command::new(&self.program).args(&self.version).output() else { return String::new() };
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let line = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("");
        // Some begin with the path that they were started by.
        line.strip_prefix(&*self.program.to_string_lossy()).map_or(line, str::trim).to_owned()
    }
}

/// How a proxy is to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting<'a> {
    /// A folder that outlives the proxy.
    pub(crate) work: &'a Path,
    /// The certificates.
    pub(crate) pki: &'a Path,
    /// Where its requests go in the end.
    pub(crate) backend: u16,
    /// Worker threads.
    pub(crate) workers: usize,
    /// Whether it has a processor of its own.
    pub(crate) alone: bool,
    /// Put before its command line (`valgrind`, ...).
    pub(crate) under: &'a [&'a str],
}

/// Running proxies, one behind the other; they end when this is dropped.
#[derive(Debug)]
pub(crate) struct Subject {
    /// The proxy's name.
    pub(crate) name: String,
    /// Where the first one listens.
    pub(crate) front: SocketAddr,
    children: Vec<Child>,
    work: PathBuf,
    /// When the proxy in front was started.
    pub(crate) started: Instant,
    /// How long it took from there to its first good answer, where that was measured.
    pub(crate) ready: Duration,
    /// The configurations in force, by file name.
    pub(crate) files: BTreeMap<String, String>,
}

impl Subject {
    /// Starts one proxy for each part; the first is the one that clients reach.
    pub(crate) fn start(peer: &Peer, parts: &[&str], setting: &Setting) -> Result<Self> {
        let mut subject = Self {
            name: peer.name.clone(),
            front: SocketAddr::from(([127, 0, 0, 1], setting.backend)),
            children: Vec::new(),
            work: PathBuf::new(),
            started: Instant::now(),
            ready: Duration::ZERO,
            files: BTreeMap::new(),
        };
        for part in parts.iter().rev() {
            subject.add(peer, part, setting)?;
        }
        Ok(subject)
    }

    /// Puts one more proxy in front.
    fn add(&mut self, peer: &Peer, part: &str, setting: &Setting) -> Result<()> {
        let template = peer.files.get(part).with_context(|| format!("{} has no file for `{part}`", peer.name))?;
        let text = std::fs::read_to_string(template).with_context(|| template.display().to_string())?;
        self.add_text(peer, part, &text, template, setting)
    }

    /// Starts one proxy from a configuration that was made, not read.
    pub(crate) fn made(peer: &Peer, file: &Path, text: &str, setting: &Setting) -> Result<Self> {
        let mut subject = Self::start(peer, &[], setting)?;
        subject.add_text(peer, "made", text, file, setting)?;
        subject.files.clear();
        Ok(subject)
    }

    fn add_text(&mut self, peer: &Peer, part: &str, text: &str, named: &Path, setting: &Setting) -> Result<()> {
        let front = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let work = tempfile::Builder::new().prefix(&format!("{}-{part}-", peer.name)).tempdir_in(setting.work)?.keep();
        let name = named.file_name().unwrap_or_default();
        let (file, log) = (work.join(name), work.join("log"));
        let words = |text: &str| -> String {
            let words = [
                ("@PORT@", front.port().to_string()),
                ("@NEXT@", self.front.port().to_string()),
                ("@BACKEND@", self.front.port().to_string()),
                ("@ADMIN@", free_port().unwrap_or(0).to_string()),
                ("@PKI@", setting.pki.display().to_string()),
                ("@WORK@", work.display().to_string()),
                ("@LOG@", log.display().to_string()),
                ("@WORKERS@", setting.workers.to_string()),
                ("@FILE@", file.display().to_string()),
            ];
            words.iter().fold(text.to_owned(), |text, (word, value)| text.replace(word, value))
        };
        let text = words(text);
        std::fs::write(&file, &text)?;
        self.files.insert(format!("{}/{}", peer.name, name.to_string_lossy()), text);
        let arguments: Vec<String> = peer.arguments.iter().map(|argument| words(argument)).collect();
        let said = std::fs::File::create(work.join("said"))?;
        let mut command = match setting.under.split_first() {
            Some((tool, flags)) => {
                let mut command = pinned::proxy(Path::new(tool), setting.alone);
                command.args(flags.iter().map(|flag| words(flag))).arg(&peer.program);
                command
            }
            None => pinned::proxy(&peer.program, setting.alone),
        };
        command.args(arguments).stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        self.started = Instant::now();
        let child = command.spawn().with_context(|| peer.program.display().to_string())?;
        self.children.push(child);
        self.front = front;
        self.work.clone_from(&work);
        self.listens(&work.join("said")).with_context(|| format!("{} for `{part}`", peer.name))
    }

    /// Waits until the proxy in front accepts connections.
    fn listens(&mut self, said: &Path) -> Result<()> {
        let patience = Instant::now() + PATIENCE;
        while TcpStream::connect(self.front).is_err() {
            let ended = self.children.last_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)));
            if ended || Instant::now() > patience {
                let said = std::fs::read_to_string(said).unwrap_or_default();
                bail!("it does not listen: {}", said.lines().take(12).collect::<Vec<_>>().join("\n"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// The folder of the proxy in front.
    pub(crate) fn work(&self) -> &Path {
        &self.work
    }

    /// The processes; the proxy in front is the last.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }

    /// Nanoseconds on a processor, of all its proxies.
    pub(crate) fn cpu(&self) -> u64 {
        self.pids().into_iter().map(process::cpu).sum()
    }

    /// Proportional set size in bytes, of all its proxies.
    pub(crate) fn pss(&self) -> Result<u64> {
        self.pids().into_iter().map(process::pss).sum()
    }

    /// What all its proxies have written to, in bytes.
    pub(crate) fn dirty(&self) -> Result<u64> {
        self.pids().into_iter().map(process::dirty).sum()
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A port that nobody listens at.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
