//! The verbs that look at a living mesh, with their whole output: a control plane, two proxies, a program, requests.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::{shown, tulle};

const LIMIT: Duration = Duration::from_secs(20);

/// Child processes; ended with the test.
#[derive(Default)]
struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A mesh in a directory: `web-1` calls `catalog-1`.
struct Mesh {
    directory: tempfile::TempDir,
    children: Children,
    /// Loopback addresses of this process: 127.77.BLOCK.N and 127.79.BLOCK.N.
    block: u8,
    port: u16,
    program: u16,
}

impl Mesh {
    fn start() -> Self {
        let program = program();
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = std::process::id() * 2 + STARTED.fetch_add(1, Ordering::Relaxed);
        let block = 128 + u8::try_from(number % 100).unwrap();
        let port =
            TcpListener::bind((std::net::Ipv4Addr::new(127, 79, block, 1), 0)).unwrap().local_addr().unwrap().port();
        let mut mesh =
            Self { directory: tempfile::tempdir().unwrap(), children: Children::default(), block, port, program };
        fs::create_dir(mesh.path().join("mesh")).unwrap();
        fs::write(mesh.path().join("mesh/shop.yaml"), mesh.declared()).unwrap();
        mesh.spawn(&[
            "control",
            "--config",
            "mesh",
            "--run-dir",
            "run",
            "--ca-dir",
            "ca",
            "--xds",
            "off",
            "--api",
            "off",
            "--metrics",
            "off",
        ]);
        until("the control plane listens", || mesh.path().join("run/xds.sock").exists());
        mesh
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn declared(&self) -> String {
        let Self { block, port, program, .. } = self;
        format!(
            "\
apiVersion: v1
kind: Service
metadata: {{name: catalog, namespace: shop}}
spec: {{selector: {{app: catalog}}, ports: [{{name: http, port: 8080}}]}}
---
apiVersion: tulle.dev/v1alpha1
kind: Workload
metadata: {{name: catalog-1, namespace: shop, labels: {{app: catalog, version: v1}}}}
spec:
  serviceAccount: catalog
  addresses: [127.77.{block}.1]
  ports: [{{name: http, number: 8080, app: \"127.0.0.1:{program}\", bind: \"127.77.{block}.1:{port}\"}}]
  interception: {{explicit: {{outbound: []}}}}
---
apiVersion: tulle.dev/v1alpha1
kind: Workload
metadata: {{name: web-1, namespace: shop, labels: {{app: web, version: v1}}}}
spec:
  serviceAccount: web
  addresses: [127.77.{block}.2]
  interception:
    explicit:
      outbound: [{{host: catalog.shop.svc.cluster.local, port: 8080, bind: \"127.79.{block}.1:{port}\"}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: shop}}
spec: {{mtls: {{mode: STRICT}}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: callers, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: catalog}}}}
  rules:
    - from: [{{source: {{principals: [cluster.local/ns/shop/sa/web]}}}}]
      to: [{{operation: {{notPaths: [/secret]}}}}]
"
        )
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tulle"));
        command.args(args).current_dir(self.path()).env("NO_COLOR", "1").env_remove("TULLE_RUN_DIR");
        command
    }

    fn spawn(&mut self, args: &[&str]) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path().join("log")).unwrap();
        let mut command = self.command(args);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.children.0.push(command.spawn().unwrap());
    }

    /// Joins a workload: token, proxy, and a program that does nothing. Gives what making the token said.
    fn join(&mut self, workload: &str, account: &str) -> String {
        let (token, made) = self.token(workload, account);
        self.spawn(&["run", "--token", &token, "--run-dir", workload, "--", "sleep", "60"]);
        made
    }

    /// The file of a new join token, and what making it said.
    fn token(&self, workload: &str, account: &str) -> (String, String) {
        let server = format!("unix:{}", self.path().join("run/xds.sock").display());
        let made = self.say(&[
            "token",
            "create",
            "--ca-dir",
            "ca",
            "--workload",
            workload,
            "-n",
            "shop",
            "--service-account",
            account,
            "--server",
            &server,
        ]);
        (format!("{workload}.shop.token"), made)
    }

    /// Everything a verb says, with this mesh's own numbers made the same for every run.
    fn say(&self, args: &[&str]) -> String {
        self.masked(&shown(&self.command(args).output().unwrap()))
    }

    fn masked(&self, text: &str) -> String {
        let text = text
            .replace(&self.path().display().to_string(), "DIR")
            .replace(&format!(".{}.", self.block), ".B.")
            .replace(&format!(":{}", self.port), ":PORT")
            .replace(&format!(":{}", self.program), ":PROGRAM");
        let text: String = text.split_inclusive('\n').map(masked_line).collect();
        // Columns are as wide as what was masked.
        let mut narrow = text.replace("    ", "  ");
        while narrow.contains("   ") {
            narrow = narrow.replace("   ", "  ");
        }
        narrow
    }

    /// What `tap` says of the first request of a path; asked again until tap has begun to listen.
    fn tapped(&self, path: &str) -> String {
        let mut tap = self.command(&["tap", "--run-dir", "run", "--max", "1", "--path", path]);
        let mut tap = tap.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until("tap ends", || {
            self.get(path);
            tap.try_wait().unwrap().is_some()
        });
        self.masked(&shown(&tap.wait_with_output().unwrap()))
    }

    fn get(&self, path: &str) -> Option<u16> {
        let to = SocketAddr::from(([127, 79, self.block, 1], self.port));
        let mut stream = TcpStream::connect(to).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let host = "catalog.shop.svc.cluster.local:8080";
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes())
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split(' ').nth(1)?.parse().ok()
    }
}

fn program() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello");
            });
        }
    });
    port
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < LIMIT, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Times, durations and random ids differ from run to run.
fn masked_line(line: &str) -> String {
    let mut last = "";
    let words = line.split_inclusive(' ').map(|word| {
        let bare = word.trim_end();
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let hex = bare.strip_prefix("id=").unwrap_or(bare);
        let is_id = hex.len() >= 16 && hex.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        let mask = if is_id {
            bare.replace(hex, "ID")
        } else if bare.len() >= 12 && bare.starts_with(|c: char| c.is_ascii_digit()) && bare.matches(':').count() > 1 {
            "TIME".to_owned()
        } else if last == "in" && digits(bare) {
            "N".to_owned()
        } else {
            bare.to_owned()
        };
        last = bare;
        word.replacen(bare, &mask, 1)
    });
    words.collect()
}

#[test]
fn every_look_at_a_living_mesh() {
    let mut mesh = Mesh::start();
    let mut said = mesh.join("catalog-1", "catalog");
    said.push_str(&mesh.join("web-1", "web"));
    until("a request goes through", || mesh.get("/") == Some(200));
    until("both have everything", || mesh.say(&["proxy", "ls", "--run-dir", "run"]).matches('✓').count() == 2);
    // Two tokens of one moment come in any order.
    let list = mesh.say(&["token", "list", "--ca-dir", "ca"]);
    let (head, mut tokens) = (list.lines().take(3), list.lines().skip(3).collect::<Vec<_>>());
    tokens.sort_unstable();
    said.push_str(&head.chain(tokens).map(|line| format!("{line}\n")).collect::<String>());
    insta::assert_snapshot!("tokens", said);

    let mut said = mesh.say(&["proxy", "ls", "--run-dir", "run"]);
    for part in [&[][..], &["listeners"], &["routes"], &["clusters"], &["endpoints"]] {
        let asked = [&["$ tulle proxy config web-1.shop"], part].concat().join(" ");
        said.push_str(&format!("{asked}\n"));
        said.push_str(&mesh.say(&[&["proxy", "config", "--run-dir", "run", "web-1.shop"], part].concat()));
    }
    insta::assert_snapshot!("proxies", said);

    let mut said = mesh.say(&["get", "-A", "--run-dir", "run"]);
    said.push_str(&mesh.say(&[
        "get",
        "authorizationpolicy",
        "callers",
        "-n",
        "shop",
        "-o",
        "yaml",
        "--run-dir",
        "run",
    ]));
    said.push_str(&mesh.say(&["get", "svc", "-n", "shop", "-o", "name", "--run-dir", "run"]));
    insta::assert_snapshot!("objects", said);

    insta::assert_snapshot!("tap", mesh.tapped("/items") + &mesh.tapped("/secret"));

    let strict = mesh.say(&["check", "--run-dir", "run", "--ca-dir", "ca"]);
    let said = strict.find("control plane\n").map_or("", |at| &strict[at..]);
    insta::assert_snapshot!("check", said);
}

#[test]
fn everything_a_run_says() {
    let mesh = Mesh::start();
    let (token, _) = mesh.token("web-1", "web");
    let run = |more: &[&str]| mesh.say(&[&["run", "--dns", "off", "--run-dir", "web-1"], more].concat());
    let mut said =
        String::from("$ tulle run --token web-1.shop.token -- sh -c 'echo \"$CATALOG_ADDR\"; echo oh >&2; exit 7'\n");
    said += &run(&["--token", &token, "--", "sh", "-c", "echo \"$CATALOG_ADDR\"; echo oh >&2; exit 7"]);
    let again = &["--control", "unix:run/xds.sock", "--workload", "web-1", "-n", "shop"][..];
    for (shown, more) in [
        ("-q -- echo only this", &["-q", "--", "echo", "only this"][..]),
        ("-- /no/such/program", &["--", "/no/such/program"]),
        ("--net userns -- true", &["--net", "userns", "--", "true"]),
        ("--service web -- true", &["--service", "web", "--", "true"]),
        ("(no program)", &[]),
    ] {
        said += &format!("$ tulle run {shown}\n");
        said += &run(&[again, more].concat());
    }
    insta::assert_snapshot!("run", said);
}

#[test]
fn what_needs_no_mesh() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(tulle(here, &["version"]), format!("exit 0\n--- stdout\ntulle {version}\n"));
    assert_eq!(tulle(here, &["version", "-o", "json"]), format!("exit 0\n--- stdout\n{{\"version\":\"{version}\"}}\n"));
    // One of the five whole; they are made by one library from one tree.
    insta::assert_snapshot!("completion", tulle(here, &["completion", "fish"]));
    insta::assert_snapshot!("completion_refused", tulle(here, &["completion", "tcsh"]));
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = tulle(here, &["completion", shell]);
        for verb in
            ["apply", "get", "delete", "analyze", "translate", "stat", "tap", "authz", "check", "explain", "run"]
        {
            assert!(script.starts_with("exit 0\n--- stdout\n") && script.contains(verb), "{shell} knows {verb}");
        }
    }
    insta::assert_snapshot!(tulle(here, &["anlyze"]), @r"
    exit 2
    --- stderr
    error: unrecognized subcommand 'anlyze'

      tip: some similar subcommands exist: 'apply', 'translate', 'analyze'

    Usage: tulle [OPTIONS] <COMMAND>

    For more information, try '--help'.
    ");
}

/// Where nobody sits at a terminal, nothing asks and nothing is coloured, whatever the verb.
#[test]
fn no_colour_and_no_question_without_a_terminal() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(
        directory.path().join("bad.yaml"),
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {prots: []}\n",
    )
    .unwrap();
    for args in
        [&["analyze", "bad.yaml"][..], &["apply", "-f", "bad.yaml"], &["check", "--pre"], &["delete", "vs", "x"]]
    {
        let said = tulle(directory.path(), args);
        assert!(!said.contains('\u{1b}'), "{args:?} uses colours: {said:?}");
    }
    let coloured = tulle(directory.path(), &["analyze", "bad.yaml", "--color", "always"]);
    assert!(coloured.contains('\u{1b}'), "{coloured:?}");
}

#[test]
fn one_bad_object_among_a_hundred() {
    let mut mesh = Mesh::start();
    let config = mesh.path().join("mesh");
    for number in 0..100 {
        let timeout = if number == 57 { "soonish" } else { "10s" };
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: r{number}, namespace: many}}\nspec:\n  \
             hosts: [s{number}.example]\n  http:\n  - timeout: {timeout}\n    route: [{{destination: {{host: catalog.shop.svc.cluster.local}}}}]\n"
        );
        fs::write(config.join(format!("r{number:03}.yaml")), text).unwrap();
    }
    let said = mesh.say(&["analyze", "mesh", "--fail-on", "error"]);
    assert!(said.starts_with("exit 1\n") && said.contains("--> mesh/r057.yaml:7:14"), "{said}");
    let listed = || mesh.say(&["get", "vs", "-n", "many", "--run-dir", "run", "--no-headers"]);
    until("all are known", || listed().matches("r").count() > 0 && listed().lines().count() >= 102);
    let lines = listed();
    let (good, bad): (Vec<&str>, Vec<&str>) = lines.lines().skip(2).partition(|line| line.contains("accepted"));
    assert_eq!(good.len(), 99, "{lines}");
    let bad: Vec<String> = bad.iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(bad, ["many VirtualService r57 rejected TL0013 - mesh/r057.yaml:1"]);
    let log = fs::read_to_string(mesh.path().join("log")).unwrap();
    assert!(
        log.lines().any(|line| line.contains("event=configuration_rejected") && line.contains("mesh/r057.yaml:7:14")),
        "{log}"
    );
    // The others work: programs join and are served.
    mesh.join("catalog-1", "catalog");
    mesh.join("web-1", "web");
    until("a request goes through", || mesh.get("/") == Some(200));
}
