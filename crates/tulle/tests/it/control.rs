//! A control plane with a store, and the verbs that speak to it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::{shown, tulle};

/// A control plane that ends with the test.
struct Control(Child);

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts one on Unix sockets only and waits until it is ready.
fn control(directory: &Path, inputs: &[&str]) -> Control {
    let doors = ["control", "--run-dir", "run", "--ca-dir", "ca", "--xds", "off", "--api", "off", "--metrics", "off"];
    let mut child = Command::new(env!("CARGO_BIN_EXE_tulle"))
        .args(doors)
        .args(inputs)
        .current_dir(directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let mut line = String::new();
    let out = child.stdout.take().expect("piped");
    BufReader::new(out).read_line(&mut line).expect("says something");
    assert_eq!(line, "ready: trust domain cluster.local, run/xds.sock\n");
    Control(child)
}

const MESH: &str = "apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec:
  selector: {app: catalog}
  ports: [{name: http, port: 8080}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http: [{route: [{destination: {host: catalog}}], timeout: 2s}]
";

#[test]
fn a_store_from_the_first_apply_to_a_restart() {
    let directory = tempfile::tempdir().expect("made");
    let here = directory.path();
    std::fs::write(here.join("mesh.yaml"), MESH).expect("written");
    let running = control(here, &["--store", "redb:mesh.redb"]);
    let run = |args: &[&str]| {
        let mut all = args.to_vec();
        all.extend(["--run-dir", "run", "-q"]);
        tulle(here, &all)
    };
    assert_eq!(
        run(&["apply", "-f", "mesh.yaml", "--dry-run"]),
        "exit 0\n--- stdout\nService shop/catalog created (dry run)\nVirtualService shop/catalog created (dry run)\n"
    );
    assert_eq!(
        run(&["apply", "-f", "mesh.yaml", "--wait"]),
        "exit 0\n--- stdout\nService shop/catalog created\nVirtualService shop/catalog created\n\
         revision 1 changes no connected proxy\n"
    );
    assert_eq!(
        run(&["apply", "-f", "mesh.yaml"]),
        "exit 0\n--- stdout\nService shop/catalog unchanged\nVirtualService shop/catalog unchanged\nrevision 1\n"
    );
    let listed = "exit 0\n--- stdout\n\
         NAMESPACE  KIND            NAME     STATUS    PROXIES  ORIGIN\n\
         shop       Service         catalog  accepted  -        redb\n\
         shop       VirtualService  catalog  accepted  -        redb\n";
    assert_eq!(run(&["get", "-A"]), listed);
    drop(running);
    let _again = control(here, &["--store", "redb:mesh.redb"]);
    assert_eq!(run(&["get", "-n", "shop"]), listed);
    assert_eq!(
        run(&["delete", "vs", "catalog", "-n", "shop"]),
        "exit 0\n--- stdout\nVirtualService shop/catalog deleted\nrevision 2\n"
    );
    assert_eq!(
        run(&["get", "vs", "catalog", "-n", "shop"]),
        "exit 1\n--- stderr\nerror: there is no vs shop/catalog\n next: tulle get -A lists what there is\n"
    );
    assert_eq!(
        run(&["delete", "vs", "catalog", "-n", "shop"]),
        "exit 1\n--- stderr\nerror: there is no vs shop/catalog\n next: tulle get -A lists what there is\n"
    );
    assert_eq!(run(&["proxy", "ls"]), "exit 0\n--- stdout\nWORKLOAD  CONFIG  AGENT  PROTOCOL  IDENTITY\n");
}

#[test]
fn a_change_to_an_old_revision_is_a_conflict() {
    let directory = tempfile::tempdir().expect("made");
    let here = directory.path();
    std::fs::write(here.join("mesh.yaml"), MESH).expect("written");
    let _running = control(here, &["--store", "redb:mesh.redb"]);
    let run = |args: &[&str]| {
        let mut all = args.to_vec();
        all.extend(["--run-dir", "run", "-q"]);
        tulle(here, &all)
    };
    run(&["apply", "-f", "mesh.yaml"]);
    let got = run(&["get", "vs", "catalog", "-n", "shop", "-o", "yaml"]);
    let yaml = got.strip_prefix("exit 0\n--- stdout\n").expect("printed");
    assert!(yaml.contains("resourceVersion: \"1\""), "{yaml}");
    std::fs::write(here.join("mine.yaml"), yaml.replace("2s", "3s")).expect("written");
    std::fs::write(here.join("late.yaml"), yaml.replace("2s", "4s")).expect("written");
    assert_eq!(
        run(&["apply", "-f", "mine.yaml"]),
        "exit 0\n--- stdout\nVirtualService shop/catalog configured\nrevision 2\n"
    );
    assert_eq!(
        run(&["apply", "-f", "late.yaml"]),
        "exit 5\n--- stderr\nerror: VirtualService shop/catalog is at revision 2, not 1: somebody changed it meanwhile\n \
         next: get it again, make your change there and apply that\n"
    );
}

#[test]
fn a_directory_is_not_written_to() {
    let directory = tempfile::tempdir().expect("made");
    let here = directory.path();
    std::fs::create_dir(here.join("shop")).expect("made");
    std::fs::write(here.join("shop/mesh.yaml"), MESH).expect("written");
    let _running = control(here, &["--config", "shop"]);
    assert_eq!(
        tulle(here, &["apply", "-f", "shop/mesh.yaml", "--run-dir", "run"]),
        "exit 5\n--- stderr\nerror: this control plane reads a directory (--config) and has no store to write to\n \
         next: edit the files there, or start it with --store redb:PATH\n"
    );
    let bad = MESH.replace("timeout: 2s", "timeout: soon");
    std::fs::write(here.join("shop/mesh.yaml"), bad).expect("written");
    let mut listed = String::new();
    for _ in 0..200 {
        listed = tulle(here, &["get", "-A", "--run-dir", "run"]);
        if listed.contains("rejected") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let line = listed.lines().find(|line| line.contains("VirtualService")).unwrap_or_default();
    assert!(line.starts_with("shop       VirtualService  catalog  rejected TL"), "{listed}");
    assert!(line.ends_with("-        shop/mesh.yaml:8"), "{listed}");
    assert!(listed.contains("shop       Service         catalog  accepted"), "{listed}");
}

#[test]
fn nobody_there_and_wrong_input() {
    let directory = tempfile::tempdir().expect("made");
    let here = directory.path();
    let gone = tulle(here, &["get", "-A", "--run-dir", "nowhere"]);
    assert_eq!(
        gone,
        "exit 3\n--- stderr\nerror: cannot reach the control plane at unix:nowhere/api.sock: No such file or directory \
         (os error 2)\n next: is it running? start it with `tulle control --config DIR`, or name it with --run-dir or --api\n"
    );
    let bad = MESH.replace("timeout: 2s", "timeout: soon");
    std::fs::write(here.join("bad.yaml"), bad).expect("written");
    let refused = tulle(here, &["apply", "-f", "bad.yaml", "--run-dir", "nowhere"]);
    assert!(refused.starts_with("exit 6\n--- stderr\nerror[TL"), "{refused}");
    assert!(refused.contains("bad.yaml:13:"), "{refused}");
    assert!(refused.ends_with("error: nothing was applied: there is 1 error\n"), "{refused}");
    assert_eq!(
        tulle(here, &["control"]),
        "exit 2\n--- stderr\nerror: the control plane needs declarations\n next: give --config DIR, or --store redb:FILE, or both\n"
    );
    let open = tulle(here, &["control", "--config", ".", "--insecure-xds", "0.0.0.0:15010"]);
    assert!(open.starts_with("exit 2\n--- stderr\nerror: --insecure-xds 0.0.0.0:15010 would show"), "{open}");
    let output = Command::new(env!("CARGO_BIN_EXE_tulle"))
        .args(["apply", "-f", "bad.yaml", "--wait", "5s"])
        .current_dir(here)
        .output()
        .expect("runs");
    assert!(shown(&output).starts_with("exit 2"), "--wait takes its time with =");
}
