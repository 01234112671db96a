//! `tulle token` and `tulle agent` against a certificate authority.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::audit::Audit;
use identity::ca::Authority;
use identity::door::{self, UnixDoor};
use identity::service::{CertificateService, control_keys};
use identity::token::TokenStore;

use crate::shown;

/// An authority that serves on a Unix socket for as long as it lives.
struct Control {
    dir: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Control {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let ca = dir.path().join("ca");
        let hour = Duration::from_secs(3600);
        let authority = Arc::new(Authority::load_or_create(&ca, "mesh.test", hour, SystemTime::now()).unwrap());
        let audit = Arc::<Audit>::default();
        let tokens = TokenStore::open(&ca, Arc::clone(&audit)).unwrap();
        runtime.block_on(async {
            let keys = control_keys(Arc::clone(&authority), Vec::new()).unwrap();
            let tls = door::control_tls(keys, authority.bundle().unwrap()).unwrap();
            let listener = door::bind_unix(&dir.path().join("xds.sock")).unwrap();
            let incoming = door::unix(listener, UnixDoor { tls: Some(tls), ..UnixDoor::default() });
            let service = CertificateService::new(authority, tokens, audit).into_server();
            let server = tonic::transport::Server::builder().add_service(service);
            tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
        });
        Self { dir, _runtime: runtime }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tulle(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_tulle")).args(arguments).current_dir(self.dir.path()).output().unwrap()
    }

    /// `tulle token create` for `shop/cart`; gives the file's name.
    fn token(&self, more: &[&str]) -> String {
        let server = format!("unix:{}", self.path("xds.sock").display());
        let base = ["token", "create", "--ca-dir", "ca", "--workload", "cart", "-n", "shop"];
        let output = self.tulle(&[&base[..], &["--service-account", "cart", "--server", &server], more].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        stdout(&output).trim().to_owned()
    }
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_workload_joins_once_with_its_token() {
    let control = Control::start();
    let file = control.token(&[]);
    assert_eq!(file, "cart.shop.token");
    assert_eq!(mode(&control.path(&file)), 0o600);

    let joined = control.tulle(&["agent", "-q", "--token", &file, "--run-dir", "run", "--pem-dir", "pem", "--once"]);
    assert_eq!(stdout(&joined), "spiffe://mesh.test/ns/shop/sa/cart\n", "{joined:?}");
    assert_eq!(joined.status.code(), Some(0));
    for name in ["run/key.pem", "pem/key.pem", "pem/cert-chain.pem", "pem/root-cert.pem"] {
        assert_eq!(mode(&control.path(name)), 0o600, "{name}");
    }

    // The same token from another place: refused, with exit code 4 and the reason.
    let stolen = ["agent", "-q", "--token", &file, "--run-dir", "thief", "--once", "--wait", "2s"];
    let stolen = control.tulle(&stolen);
    assert_eq!(stolen.status.code(), Some(4), "{stolen:?}");
    assert!(stderr(&stolen).contains("already used by another key"), "{stolen:?}");

    // The first place starts again without a token: it has its certificate.
    let again = control.tulle(&["agent", "-q", "--run-dir", "run", "--once"]);
    assert_eq!(stdout(&again), "spiffe://mesh.test/ns/shop/sa/cart\n");

    let list = control.tulle(&["token", "list", "--ca-dir", "ca"]);
    let lines: Vec<&str> = stdout(&list).lines().collect();
    assert!(lines[0].starts_with("ID                STATE  WORKLOAD  IDENTITY"), "{lines:?}");
    assert!(lines[1].contains("  used   cart      spiffe://mesh.test/ns/shop/sa/cart  "), "{lines:?}");
    let audit = std::fs::read_to_string(control.path("ca/audit.log")).unwrap();
    assert!(audit.contains("token_created") && audit.contains("spiffe://mesh.test/ns/shop/sa/cart"), "{audit}");
}

#[test]
fn a_revoked_token_is_useless() {
    let control = Control::start();
    let file = control.token(&["--out", "other.token", "-o", "json"]);
    let made: serde_json::Value = serde_json::from_str(&file).unwrap();
    assert_eq!(made["state"], "unused");
    let id = made["id"].as_str().unwrap();
    let revoked = control.tulle(&["token", "revoke", "--ca-dir", "ca", id]);
    assert_eq!(stdout(&revoked), format!("{id} revoked\n"));
    let output = control.tulle(&["agent", "-q", "--token", "other.token", "--run-dir", "r", "--once", "--wait", "1s"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(stderr(&output).contains("this join token was revoked"), "{output:?}");
    let unknown = control.tulle(&["token", "revoke", "--ca-dir", "ca", "0123456789abcdef"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert_eq!(
        stderr(&unknown),
        "error: there is no join token 0123456789abcdef\n next: see the ids with: tulle token list\n"
    );
}

#[test]
fn mistakes_are_explained() {
    let control = Control::start();
    control.token(&[]);
    let twice = ["token", "create", "--ca-dir", "ca", "--workload", "cart", "-n", "shop"];
    let twice = control.tulle(&twice);
    assert_eq!(twice.status.code(), Some(5));
    assert_eq!(
        stderr(&twice),
        "error: cart.shop.token exists already\n next: remove it, or choose another name with --out\n"
    );

    let nowhere = control.tulle(&["token", "list", "--ca-dir", "nowhere"]);
    assert_eq!(nowhere.status.code(), Some(3));
    assert_eq!(
        stderr(&nowhere),
        "error: there is no certificate authority in nowhere\n next: start `tulle control` first (it makes one), or \
         name its directory with --ca-dir\n"
    );

    let own = ["token", "create", "--ca-dir", "ca", "--workload", "x", "-n", "tulle-system"];
    let own = control.tulle(&[&own[..], &["--service-account", "tulle-control"]].concat());
    assert_eq!(own.status.code(), Some(2));
    assert!(stderr(&own).contains("the control plane's own identity"), "{own:?}");

    for ttl in ["0s", "8d", "ten minutes", "-5s"] {
        let ttl = format!("--ttl={ttl}");
        let output = control.tulle(&["token", "create", "--ca-dir", "ca", "--workload", "y", &ttl]);
        assert_eq!(output.status.code(), Some(2), "{ttl}: {output:?}");
    }

    let nobody = control.tulle(&["agent", "-q", "--run-dir", "empty", "--once", "--wait", "1s"]);
    assert_eq!(nobody.status.code(), Some(4), "{nobody:?}");
    assert!(stderr(&nobody).contains("tulle token create"), "{nobody:?}");
}

/// What differs from run to run: times and the directory.
fn masked(control: &Control, said: &str) -> String {
    let said = said.replace(&control.dir.path().display().to_string(), "DIR");
    let word = |word: &str| {
        let (word, end) = word.strip_suffix('\n').map_or((word, ""), |word| (word, "\n"));
        match word.split_once('=') {
            Some((name @ ("time" | "until"), _)) => {
                format!("{name}=MASKED{end}")
            }
            _ => format!("{word}{end}"),
        }
    };
    let lines = said.split_inclusive('\n').map(|line| line.split(' ').map(word).collect::<Vec<_>>().join(" "));
    lines.collect()
}

/// Runs a verb until it is ready, and ends it as a service manager does.
fn until_ready(control: &Control, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tulle"));
    command.args(arguments).current_dir(control.dir.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    // The line after `ready:` is the last one.
    let mut said: Vec<String> = Vec::new();
    while !said.iter().rev().skip(1).take(1).any(|line| line.starts_with("ready: ")) {
        said.push(lines.next().expect("it gets ready").unwrap());
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    said.extend(lines.map(Result::unwrap));
    let mut output = child.wait_with_output().unwrap();
    output.stderr = said.iter().flat_map(|line| [line.as_bytes(), b"\n"].concat()).collect();
    masked(control, &shown(&output))
}

#[test]
fn everything_an_agent_says() {
    let control = Control::start();
    let file = control.token(&[]);
    let once = |more: &[&str]| masked(&control, &shown(&control.tulle(&[&["agent", "--once"], more].concat())));
    let mut said = String::from("$ tulle agent --once --token cart.shop.token --run-dir run --pem-dir pem\n");
    said += &once(&["--token", &file, "--run-dir", "run", "--pem-dir", "pem"]);
    said += "$ tulle agent --run-dir run, until a SIGTERM\n";
    said += &until_ready(&control, &["agent", "--run-dir", "run"]);
    said += "$ tulle agent --run-dir run --no-sds, until a SIGTERM\n";
    said += &until_ready(&control, &["agent", "--run-dir", "run", "--no-sds"]);
    said += "$ tulle agent --once -q --run-dir empty --wait 300ms\n";
    said += &once(&["-q", "--run-dir", "empty", "--wait", "300ms"]);
    said += "$ tulle agent --wait 1s\n";
    said += &masked(&control, &shown(&control.tulle(&["agent", "--wait", "1s"])));
    insta::assert_snapshot!("agent", said);
}
