//! Whole errors, as a person sees them.

use crate::{codes, drawn, parse};

#[test]
fn what_is_missing_is_named() {
    let text = r#"apiVersion: networking.istio.io/v1beta1
kind: VirtualService
spec:
  http:
    - retries:
        attempts: 3
        perTryTimeout: 2s
        retryOn: 5xx,reset,connect-failure
"#;
    insta::assert_snapshot!(drawn(text), @r#"
    error[TL0008]: `metadata.name` is missing, and is required
     --> mesh.yaml:1:1
      |
    1 | apiVersion: networking.istio.io/v1beta1
      | ^^^^^^^^^^
      |
      = in: a VirtualService without name, metadata.name
      = help: name the object: metadata: {name: ...}
      = more: tulle explain TL0008

    error[TL0008]: `spec.hosts` is missing, and is required
     --> mesh.yaml:3:1
      |
    3 | spec:
      | ^^^^
      |
      = in: a VirtualService without name, spec.hosts
      = help: say which hosts the rules are for: hosts: [NAME]
      = more: tulle explain TL0008

    error[TL0105]: the rule has no action: `route` is missing
     --> mesh.yaml:5:7
      |
    5 |     - retries:
      |       ^^^^^^^
      |
      = in: a VirtualService without name, spec.http[0]
      = help: say where requests go: route: [{destination: {host: ...}}]; or give redirect, directResponse or delegate
      = more: tulle explain TL0105
    "#);
}

#[test]
fn weights_that_do_not_add_up() {
    let text = r#"apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http:
    - route:
        - destination: {host: catalog, subset: v1}
          weight: 90
        - destination: {host: catalog, subset: v2}
          weight: 20
"#;
    insta::assert_snapshot!(drawn(text), @r#"
    warning[TL0107]: weights of this route add up to 110, not 100
      --> mesh.yaml:11:19
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
    "#);
}

#[test]
fn misspelt_fields_and_words() {
    let text = r#"apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
    - route: [{destination: {host: web}}]
      retries: {atempts: 2}
      timout: 3s
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec:
  mtls:
    mode: strict
---
apiVersion: networking.istio.io/v1
kind: DestinationRul
metadata: {name: web}
spec: {host: web}
"#;
    insta::assert_snapshot!(drawn(text), @r#"
    error[TL0009]: unknown field `atempts`
     --> mesh.yaml:8:17
      |
    8 |       retries: {atempts: 2}
      |                 ^^^^^^^
      |
      = in: VirtualService default/web, spec.http[0].retries.atempts
      = help: did you mean `attempts`?
      = more: tulle explain TL0009

    error[TL0009]: unknown field `timout`
     --> mesh.yaml:9:7
      |
    9 |       timout: 3s
      |       ^^^^^^
      |
      = in: VirtualService default/web, spec.http[0].timout
      = help: did you mean `timeout`?
      = more: tulle explain TL0009

    error[TL0011]: `strict` is none of UNSET, DISABLE, PERMISSIVE, STRICT
      --> mesh.yaml:16:11
       |
    16 |     mode: strict
       |           ^^^^^^
       |
       = in: PeerAuthentication default/default, spec.mtls.mode
       = help: did you mean STRICT?
       = more: tulle explain TL0011

    error[TL0005]: no kind DestinationRul is known
      --> mesh.yaml:19:7
       |
    19 | kind: DestinationRul
       |       ^^^^^^^^^^^^^^
       |
       = in: DestinationRul default/web, kind
       = help: did you mean DestinationRule?
       = more: tulle explain TL0005
    "#);
}

#[test]
fn values_of_the_wrong_shape() {
    let text = r#"apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: web
  http:
    - match:
        - uri: {regex: "(?!x)y"}
          port: "80"
      route:
        - destination: {host: http://web, port: {number: 99999}}
      timeout: 5
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web}
spec:
  rules:
    - to: [{operation: {ports: [8080]}}]
"#;
    insta::assert_snapshot!(drawn(text), @r#"
    error[TL0010]: expected a list, found a text
     --> mesh.yaml:5:10
      |
    5 |   hosts: web
      |          ^^^
      |
      = in: VirtualService default/web, spec.hosts
      = help: begin each item with `- ` on a line of its own
      = more: tulle explain TL0010

    error[TL0021]: `(?!x)y` is no RE2 expression: look-around, including look-ahead and look-behind, is not supported
     --> mesh.yaml:8:24
      |
    8 |         - uri: {regex: "(?!x)y"}
      |                        ^^^^^^^^
      |
      = in: VirtualService default/web, spec.http[0].match[0].uri.regex
      = help: RE2 runs in linear time and knows no look-around and no back-references: list the wanted texts, or use a second rule
      = more: tulle explain TL0021

    error[TL0010]: expected a whole number, found a text
     --> mesh.yaml:9:17
      |
    9 |           port: "80"
      |                 ^^^^
      |
      = in: VirtualService default/web, spec.http[0].match[0].port
      = help: write 80 without quotes
      = more: tulle explain TL0010

    error[TL0023]: host `http://web` is no host name: each part may hold a-z, 0-9 and `-` only, and must begin and end with a letter or digit
      --> mesh.yaml:11:31
       |
    11 |         - destination: {host: http://web, port: {number: 99999}}
       |                               ^^^^^^^^^^
       |
       = in: VirtualService default/web, spec.http[0].route[0].destination.host
       = more: tulle explain TL0023

    error[TL0012]: `number` is 99999, but must be 1 to 65535
      --> mesh.yaml:11:58
       |
    11 |         - destination: {host: http://web, port: {number: 99999}}
       |                                                          ^^^^^
       |
       = in: VirtualService default/web, spec.http[0].route[0].destination.port.number
       = more: tulle explain TL0012

    error[TL0013]: `5` is no duration
      --> mesh.yaml:12:16
       |
    12 |       timeout: 5
       |                ^
       |
       = in: VirtualService default/web, spec.http[0].timeout
       = help: name the unit: 5s or 5ms
       = more: tulle explain TL0013

    error[TL0010]: expected a text, found a number
      --> mesh.yaml:19:33
       |
    19 |     - to: [{operation: {ports: [8080]}}]
       |                                 ^^^^
       |
       = in: AuthorizationPolicy default/web, spec.rules[0].to[0].operation.ports[0]
       = help: put it in quotes: "8080"
       = more: tulle explain TL0010
    "#);
}

#[test]
fn fields_that_exclude_each_other() {
    let text = r#"apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web, web]
  http:
    - match:
        - uri: {exact: /a, prefix: /b}
      redirect: {uri: /x}
      route: [{destination: {host: web}}]
"#;
    insta::assert_snapshot!(drawn(text), @r#"
    error[TL0102]: host `web` stands twice
     --> mesh.yaml:5:16
      |
    5 |   hosts: [web, web]
      |           --- first here
      |                ^^^
      |
      = in: VirtualService default/web, spec.hosts[1]
      = more: tulle explain TL0102

    error[TL0019]: `exact` and `prefix` exclude each other
     --> mesh.yaml:8:28
      |
    8 |         - uri: {exact: /a, prefix: /b}
      |                 ----- given here as well
      |                            ^^^^^^
      |
      = in: VirtualService default/web, spec.http[0].match[0].uri.prefix
      = more: tulle explain TL0019

    error[TL0105]: a rule cannot have both `route` and `redirect`
      --> mesh.yaml:9:7
       |
     9 |       redirect: {uri: /x}
       |       ^^^^^^^^
    10 |       route: [{destination: {host: web}}]
       |       ----- given here as well
       |
       = in: VirtualService default/web, spec.http[0].redirect
       = help: keep one of them, or make two rules
       = more: tulle explain TL0105
    "#);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let text = r#"apiVersion: networking.istio.io/v1
kind: EnvoyFilter
metadata: {name: patch, namespace: shop}
spec: {}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: attached, namespace: shop}
spec:
  targetRef: {kind: Service, name: web}
  rules:
    - when: [{key: "experimental.envoy.filters.x[y]", values: [x]}]
"#;
    insta::assert_snapshot!(drawn(text), @r#"
    error[TL0006]: EnvoyFilter of networking.istio.io is not supported yet
     --> mesh.yaml:2:7
      |
    2 | kind: EnvoyFilter
      |       ^^^^^^^^^^^
      |
      = in: EnvoyFilter shop/patch, kind
      = help: keep it out of this directory; the other objects take effect
      = more: tulle explain TL0006

    error[TL0014]: `targetRef` is not supported yet: policies are attached to workloads by selector
      --> mesh.yaml:10:3
       |
    10 |   targetRef: {kind: Service, name: web}
       |   ^^^^^^^^^
       |
       = in: AuthorizationPolicy shop/attached, spec.targetRef
       = help: the object takes no effect as long as the field is there
       = more: tulle explain TL0014

    error[TL0014]: the condition key `experimental.envoy.filters.x[y]` is not supported yet: attributes of other filters are not read
      --> mesh.yaml:12:20
       |
    12 |     - when: [{key: "experimental.envoy.filters.x[y]", values: [x]}]
       |                    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
       |
       = in: AuthorizationPolicy shop/attached, spec.rules[0].when[0].key
       = more: tulle explain TL0014
    "#);
}

#[test]
fn syntax_errors_cost_one_document() {
    let text = r#"apiVersion: v1
kind: Service
metadata: {name: one
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: two}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
kind: Service
metadata: {name: three}
"#;
    insta::assert_snapshot!(drawn(text), @r#"
    error[TL0001]: while parsing a flow mapping, did not find expected ',' or '}'
     --> mesh.yaml:4:5
      |
    4 | spec: {ports: [{port: 80}]}
      |     ^
      |
      = more: tulle explain TL0001

    error[TL0002]: the key `kind` stands twice in this mapping
      --> mesh.yaml:13:1
       |
    12 | kind: Service
       | ---- first here
    13 | kind: Service
       | ^^^^
       |
       = more: tulle explain TL0002
    "#);
}

#[test]
fn what_is_no_object() {
    let text = r#"- just
- a list
---
apiVersion: v1
metadata: {name: x}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{port: 81}]}
"#;
    insta::assert_snapshot!(drawn(text), @r#"
    error[TL0004]: expected an object, found a list
     --> mesh.yaml:1:1
      |
    1 | - just
      | ^
      |
      = help: an object begins with apiVersion, kind and metadata
      = more: tulle explain TL0004

    error[TL0008]: `kind` is missing, and is required
     --> mesh.yaml:4:1
      |
    4 | apiVersion: v1
      | ^^^^^^^^^^
      |
      = more: tulle explain TL0008

    error[TL0017]: Service default/web is declared twice in this file
      --> mesh.yaml:13:7
       |
    13 | kind: Service
       |       ^^^^^^^
       |
       = in: Service default/web, kind
       = help: the first one takes effect; remove or rename this one
       = more: tulle explain TL0017
    "#);
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: \"a\\e[31mb\"}\nspec: {ports: [{port: 80}]}\n";
    let drawn = drawn(text);
    assert!(drawn.contains("TL0015") && !drawn.contains('\x1b'), "{drawn}");
}

#[test]
fn colours_are_for_terminals() {
    let text = "kind: x\n";
    let parsed = parse(text);
    let colored = resources::render(&parsed.diagnostics[0], Some(text), true);
    assert!(colored.starts_with("\x1b[1;31merror[TL0008]\x1b[0m"), "{colored:?}");
    let plain = resources::render(&parsed.diagnostics[0], None, false);
    assert_eq!(plain.lines().count(), 3, "without the text there is no snippet: {plain}");
}

#[test]
fn a_finding_of_others_is_moved_to_its_field() {
    let text = "# two\nkind: VirtualService\nmetadata: {name: web}\nspec:\n  http:\n  - route:\n    - destination: {host: nowhere}\n";
    let parsed = parse(&format!("apiVersion: networking.istio.io/v1\n{text}"));
    let mut finding = parsed.diagnostics.into_iter().next().unwrap_or_else(|| {
        // The text is right as it stands; only the key matters here.
        parse("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web}\nspec: {}\n")
            .diagnostics
            .remove(0)
    });
    finding.field = "http[0].route[0].destination.host".to_owned();
    resources::Places::of(text).sharpen(&mut finding);
    let label = &finding.labels[0];
    assert_eq!((label.start.line, label.start.column, label.length), (7, 27, 7));
}

#[test]
fn each_code_is_explained_once() {
    for text in ["kind: x\n", "[", "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{}]}\n"] {
        for code in parse(text).diagnostics.iter().map(|finding| finding.code) {
            assert!(resources::codes::explanation(code).is_some(), "{code}");
        }
    }
    assert_eq!(codes("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n"), ["TL0006"]);
}

#[test]
fn places_that_mean_nothing() {
    for (setting, code) in [
        ("distribute: [{from: eu/*, to: {eu/*: 60, us/*: 30}}]", "TL0107"),
        ("distribute: [{from: eu/*, to: {eu/*: 0, us/*: 100}}]", "TL0012"),
        ("distribute: [{from: eu/*/1, to: {eu/*: 100}}]", "TL0305"),
        ("distribute: [{from: eu/*, to: {eu/*: 60, eu/a/*: 40}}]", "TL0305"),
        ("distribute: [{from: eu/a/1/x, to: {eu/*: 100}}]", "TL0305"),
        ("failover: [{from: eu, to: eu}]", "TL0305"),
        ("failover: [{from: eu/a, to: us}]", "TL0305"),
        ("failover: [{from: eu, to: us}]\n        distribute: [{from: eu, to: {us: 100}}]", "TL0019"),
        ("failover: [{from: eu, to: us}]\n        failoverPriority: [topology.kubernetes.io/zone]", "TL0019"),
        ("failover: [{from: eu, to: us}]", "TL0027"),
    ] {
        let text = format!(
            "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: catalog, namespace: shop}}
spec:
  host: catalog
  trafficPolicy:
    loadBalancer:
      localityLbSetting:
        {setting}
"
        );
        let found = codes(&text);
        assert!(found.iter().any(|found| found.contains(code)), "{setting}: {found:?}");
    }
}
