//! `tulle analyze` and `tulle explain CODE`.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::{shown, tulle};

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec:
  selector: {app: catalog}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: tulle.dev/v1alpha1
kind: Workload
metadata: {name: catalog-1, namespace: shop, labels: {app: catalog, version: v1}}
spec:
  serviceAccount: catalog
  addresses: [10.88.0.6]
  ports: [{name: http, number: 8080}]
";

const POLICY: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: catalog, namespace: shop}
spec:
  selector: {matchLabels: {app: catalog}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]
";

const ROUTES: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http:
    - route:
        - destination: {host: catalog, subset: v9}
          weight: 90
        - destination: {host: catlog}
          weight: 20
    - match: [{uri: {prefix: /x}}]
      route: [{destination: {host: catalog}}]
";

fn mesh(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("mesh")).unwrap();
    for (name, text) in files {
        fs::write(directory.path().join("mesh").join(name), text).unwrap();
    }
    directory
}

#[test]
fn a_sound_mesh() {
    let directory = mesh(&[("catalog.yaml", SERVICE), ("policy.yaml", POLICY)]);
    insta::assert_snapshot!(tulle(directory.path(), &["analyze", "mesh"]), @r#"
    exit 0
    --- stdout
    nothing found; 3 objects that take effect in 2 files
    "#);
}

#[test]
fn findings_between_objects() {
    let directory = mesh(&[("catalog.yaml", SERVICE), ("routes.yaml", ROUTES)]);
    insta::assert_snapshot!(tulle(directory.path(), &["analyze", "mesh/"]), @r#"
    exit 1
    --- stdout
    warning[TL0505]: catalog-1.shop is encrypted but open: every identity of the mesh may call it
      --> mesh/catalog.yaml:10:18
       |
    10 | metadata: {name: catalog-1, namespace: shop, labels: {app: catalog, version: v1}}
       |                  ^^^^^^^^^
       |
       = in: Workload shop/catalog-1
       = help: write an AuthorizationPolicy that names its callers
       = more: tulle explain TL0505

    error[TL0502]: no DestinationRule defines the subset v9 of catalog.shop.svc.cluster.local: 503 for its requests
     --> mesh/routes.yaml:8:48
      |
    8 |         - destination: {host: catalog, subset: v9}
      |                                                ^^
      |
      = in: VirtualService shop/catalog, spec.http[0].route[0].destination.subset
      = help: add a DestinationRule for catalog.shop.svc.cluster.local with this subset
      = more: tulle explain TL0502

    error[TL0501]: no service has the host catlog.shop.svc.cluster.local (written catlog): these requests are answered 503
      --> mesh/routes.yaml:10:31
       |
    10 |         - destination: {host: catlog}
       |                               ^^^^^^
       |
       = in: VirtualService shop/catalog, spec.http[0].route[1].destination.host
       = help: write catalog.shop.svc.cluster.local
       = more: tulle explain TL0501

    error[TL0107]: weights of this route add up to 110, not 100
      --> mesh/routes.yaml:11:19
       |
     9 |           weight: 90
       |                   -- 90 here
    ...
    11 |           weight: 20
       |                   ^^ and 20 here
       |
       = in: VirtualService shop/catalog, spec.http[0].route
       = help: change it to 10; as written the shares are 81.8 %, 18.2 %
       = more: tulle explain TL0107

    warning[TL0503]: http[0] matches everything that this rule matches: it is never reached
      --> mesh/routes.yaml:12:7
       |
    12 |     - match: [{uri: {prefix: /x}}]
       |       ^^^^^
       |
       = in: VirtualService shop/catalog, spec.http[1]
       = help: move the rule before http[0], or take it out
       = more: tulle explain TL0503

    3 errors, 2 warnings; 3 objects that take effect in 2 files
    "#);
}

#[test]
fn routes_alone_are_not_blamed_for_services_elsewhere() {
    let text = ROUTES.replace("weight: 20", "weight: 10").replace("catlog", "other");
    let directory = mesh(&[("routes.yaml", &text[..text.find("    - match").unwrap()])]);
    insta::assert_snapshot!(tulle(directory.path(), &["analyze", "mesh/"]), @r#"
    exit 0
    --- stdout
    nothing found; 1 object that takes effect in 1 file; hosts were not checked: none of the files declares a service
    "#);
}

#[test]
fn findings_as_json() {
    let directory = mesh(&[("catalog.yaml", SERVICE)]);
    insta::assert_snapshot!(tulle(directory.path(), &["analyze", "mesh", "-o", "json"]), @r#"
    exit 0
    --- stdout
    {
      "version": 1,
      "summary": {
        "errors": 0,
        "warnings": 1,
        "notes": 0,
        "objects": 2,
        "files": 1
      },
      "findings": [
        {
          "code": "TL0505",
          "severity": "warning",
          "message": "catalog-1.shop is encrypted but open: every identity of the mesh may call it",
          "title": "the workload is encrypted but open to all",
          "object": {
            "group": "tulle.dev",
            "kind": "Workload",
            "namespace": "shop",
            "name": "catalog-1"
          },
          "field": "",
          "file": "mesh/catalog.yaml",
          "line": 10,
          "column": 18,
          "places": [
            {
              "line": 10,
              "column": 18,
              "length": 9,
              "text": ""
            }
          ],
          "help": "write an AuthorizationPolicy that names its callers"
        }
      ]
    }
    "#);
}

#[test]
fn one_line_each() {
    let directory = mesh(&[("catalog.yaml", SERVICE), ("routes.yaml", ROUTES), ("bad.yaml", "kind: [\n")]);
    insta::assert_snapshot!(tulle(directory.path(), &["analyze", "-f", "mesh", "-o", "short"]), @r#"
    exit 1
    --- stdout
    mesh/bad.yaml:1:7: error[TL0001]: unclosed bracket '['
    mesh/catalog.yaml:10:18: warning[TL0505]: Workload shop/catalog-1: catalog-1.shop is encrypted but open: every identity of the mesh may call it
    mesh/routes.yaml:8:48: error[TL0502]: VirtualService shop/catalog: spec.http[0].route[0].destination.subset: no DestinationRule defines the subset v9 of catalog.shop.svc.cluster.local: 503 for its requests
    mesh/routes.yaml:10:31: error[TL0501]: VirtualService shop/catalog: spec.http[0].route[1].destination.host: no service has the host catlog.shop.svc.cluster.local (written catlog): these requests are answered 503
    mesh/routes.yaml:11:19: error[TL0107]: VirtualService shop/catalog: spec.http[0].route: weights of this route add up to 110, not 100
    mesh/routes.yaml:12:7: warning[TL0503]: VirtualService shop/catalog: spec.http[1]: http[0] matches everything that this rule matches: it is never reached
    "#);
}

#[test]
fn the_threshold_decides_the_exit_code() {
    let directory = mesh(&[("catalog.yaml", SERVICE)]);
    let code = |args: &[&str]| tulle(directory.path(), args).lines().next().map(str::to_owned);
    assert_eq!(code(&["analyze", "mesh"]).as_deref(), Some("exit 0"));
    assert_eq!(code(&["analyze", "mesh", "--fail-on", "warning"]).as_deref(), Some("exit 1"));
    assert_eq!(code(&["analyze", "mesh", "--fail-on", "warning", "--ignore", "TL0505"]).as_deref(), Some("exit 0"));
    let broken = mesh(&[("bad.yaml", "kind: [\n")]);
    let code = |args: &[&str]| tulle(broken.path(), args).lines().next().map(str::to_owned);
    assert_eq!(code(&["analyze", "mesh"]).as_deref(), Some("exit 1"));
    assert_eq!(code(&["analyze", "mesh", "--fail-on", "never"]).as_deref(), Some("exit 0"));
}

#[test]
fn what_cannot_be_read_is_not_sound() {
    let directory = mesh(&[("readme.txt", "no configuration")]);
    insta::assert_snapshot!(tulle(directory.path(), &["analyze", "mesh"]), @r#"
    exit 6
    --- stderr
    error: there is no YAML or JSON file to read
     next: -f takes files and directories of YAML or JSON
    "#);
    insta::assert_snapshot!(tulle(directory.path(), &["analyze", "nowhere"]), @r#"
    exit 6
    --- stderr
    error: nowhere: No such file or directory (os error 2)
     next: -f takes files and directories of YAML or JSON
    "#);
    fs::write(directory.path().join("mesh/latin1.yaml"), b"kind: caf\xe9\n").unwrap();
    insta::assert_snapshot!(tulle(directory.path(), &["analyze", "mesh"]), @r#"
    exit 6
    --- stderr
    error: mesh/latin1.yaml: error[TL0025]: the file cannot be read: stream did not contain valid UTF-8
    "#);
    insta::assert_snapshot!(tulle(directory.path(), &["analyze"]), @r#"
    exit 2
    --- stderr
    error: the following required arguments were not provided:
      <PATH>...

    Usage: tulle analyze <PATH>...

    For more information, try '--help'.
    "#);
}

#[test]
fn standard_input_is_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tulle"))
        .args(["analyze", "-", "-n", "shop", "-o", "short"])
        .current_dir(directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text = format!("{SERVICE}---\n{ROUTES}");
    child.stdin.take().unwrap().write_all(text.replace(", namespace: shop", "").as_bytes()).unwrap();
    insta::assert_snapshot!(shown(&child.wait_with_output().unwrap()), @r#"
    exit 1
    --- stdout
    <stdin>:10:18: warning[TL0505]: Workload shop/catalog-1: catalog-1.shop is encrypted but open: every identity of the mesh may call it
    <stdin>:23:48: error[TL0502]: VirtualService shop/catalog: spec.http[0].route[0].destination.subset: no DestinationRule defines the subset v9 of catalog.shop.svc.cluster.local: 503 for its requests
    <stdin>:25:31: error[TL0501]: VirtualService shop/catalog: spec.http[0].route[1].destination.host: no service has the host catlog.shop.svc.cluster.local (written catlog): these requests are answered 503
    <stdin>:26:19: error[TL0107]: VirtualService shop/catalog: spec.http[0].route: weights of this route add up to 110, not 100
    <stdin>:27:7: warning[TL0503]: VirtualService shop/catalog: spec.http[1]: http[0] matches everything that this rule matches: it is never reached
    "#);
}

#[test]
fn codes_are_explained() {
    let directory = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| tulle(directory.path(), args);
    insta::assert_snapshot!(run(&["explain", "TL0107"]), @r#"
    exit 0
    --- stdout
    TL0107: the weights do not add up

    Weights are relative: each destination gets its weight divided by their sum. If all are 0
    nothing can be forwarded, which is an error. A sum other than 100 works, but is usually a slip
    of the pen, because people read weights as percent.

    For example:

        route:
        - destination: {host: a}
          weight: 90
        - destination: {host: b}
          weight: 20
    "#);
    insta::assert_snapshot!(run(&["explain", "tl502", "-o", "json"]), @r#"
    exit 0
    --- stdout
    {
      "code": "TL0502",
      "title": "the subset is not defined",
      "text": "No DestinationRule for this host that the object can see defines the subset. Requests to it fail with 503.",
      "example": "destination: {host: reviews, subset: v9}"
    }
    "#);
    insta::assert_snapshot!(run(&["explain", "TL9999"]), @r#"
    exit 2
    --- stderr
    error: there is no code TL9999
     next: `tulle explain --list` names all of them
    "#);
    insta::assert_snapshot!(run(&["explain", "weights"]), @r#"
    exit 2
    --- stderr
    error: invalid value 'weights' for '[CODE]': `weights` is no diagnostic code; they look like TL0107

    For more information, try '--help'.
    "#);
    assert!(run(&["explain", "--list"]).lines().count() > 60);
}

/// Retries without a name, hosts and a route cannot work; all three are named, with their lines.
#[test]
fn retries_for_nobody() {
    let text = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nspec:\n  http:\n  - retries: {attempts: 3, perTryTimeout: 1s, retryOn: 5xx}\n";
    let directory = mesh(&[("retries.yaml", text)]);
    insta::assert_snapshot!(tulle(directory.path(), &["analyze", "mesh/"]), @r#"
    exit 1
    --- stdout
    error[TL0008]: `metadata.name` is missing, and is required
     --> mesh/retries.yaml:1:1
      |
    1 | apiVersion: networking.istio.io/v1
      | ^^^^^^^^^^
      |
      = in: a VirtualService without name, metadata.name
      = help: name the object: metadata: {name: ...}
      = more: tulle explain TL0008

    error[TL0008]: `spec.hosts` is missing, and is required
     --> mesh/retries.yaml:3:1
      |
    3 | spec:
      | ^^^^
      |
      = in: a VirtualService without name, spec.hosts
      = help: say which hosts the rules are for: hosts: [NAME]
      = more: tulle explain TL0008

    error[TL0105]: the rule has no action: `route` is missing
     --> mesh/retries.yaml:5:5
      |
    5 |   - retries: {attempts: 3, perTryTimeout: 1s, retryOn: 5xx}
      |     ^^^^^^^
      |
      = in: a VirtualService without name, spec.http[0]
      = help: say where requests go: route: [{destination: {host: ...}}]; or give redirect, directResponse or delegate
      = more: tulle explain TL0105

    3 errors; 0 objects that take effect in 1 file; hosts were not checked: none of the files declares a service
    "#);
}
