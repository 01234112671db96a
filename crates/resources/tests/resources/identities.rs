//! Issuers of tokens, and authorizers.

use crate::{codes, parse};

#[test]
fn issuers_of_tokens() {
    let text = r#"
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: login, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  jwtRules:
    - issuer: https://login.test
      audiences: [shop]
      jwksUri: https://login.test/keys
      fromHeaders: [{name: X-Token, prefix: "Token "}]
      fromParams: [ticket]
      fromCookies: [session]
      outputPayloadToHeader: x-claims
      outputClaimToHeaders: [{header: x-user, claim: sub}]
      forwardOriginalToken: true
      timeout: 2s
      spaceDelimitedClaims: [roles]
    - {issuer: inside, jwks: '{"keys": [{"kty": "oct", "k": "eA"}]}'}
"#;
    let parsed = parse(text);
    assert!(parsed.diagnostics.is_empty(), "{:?}", parsed.diagnostics);
    let [model::Declaration::RequestAuthentication(policy)] = parsed.entries[0].declarations.as_slice() else {
        panic!("one RequestAuthentication");
    };
    let [first, second] = policy.rules.as_slice() else { panic!("two issuers") };
    let model::security::JwtKeys::Remote(uri) = &first.keys else { panic!("a URI") };
    assert_eq!((uri.tls, uri.host.as_str(), uri.port), (true, "login.test", 443));
    assert_eq!(first.from_headers, [("x-token".to_owned(), "Token ".to_owned())]);
    assert_eq!(first.claim_headers, [("x-user".to_owned(), "sub".to_owned())]);
    assert!(first.forward && first.timeout == std::time::Duration::from_secs(2));
    assert!(matches!(&second.keys, model::security::JwtKeys::Inline(text) if text.contains("oct")));
    assert_eq!(second.timeout, std::time::Duration::from_secs(5));
}

#[test]
fn issuers_that_cannot_be_believed() {
    let rule = |rule: &str| {
        let head = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: a, namespace: b}";
        codes(&format!("{head}\nspec: {{jwtRules: [{{{rule}}}]}}\n"))
    };
    for (text, wanted) in [
        ("issuer: a", &["TL0409"][..]),
        ("jwksUri: https://a.test/k", &["TL0008"]),
        ("issuer: '', jwksUri: https://a.test/k", &["TL0018"]),
        ("issuer: a, jwksUri: ftp://a.test/k", &["TL0409"]),
        ("issuer: a, jwksUri: https://", &["TL0409"]),
        ("issuer: a, jwksUri: http://user@a.test/", &["TL0409"]),
        ("issuer: a, jwksUri: http://127.0.0.1/k", &["TL0409"]),
        ("issuer: a, jwksUri: 'http://[::1]:80/k'", &["TL0409"]),
        ("issuer: a, jwksUri: http://169.254.169.254/k", &["TL0409"]),
        ("issuer: a, jwksUri: https://a.test/k, jwks: '{}'", &["TL0019", "TL0409"]),
        ("issuer: a, jwks: '{'", &["TL0409"]),
        ("issuer: a, jwks: '{\"keys\": []}'", &["TL0409"]),
        ("issuer: a, jwksUri: https://a.test/k, fromHeaders: [{prefix: x}]", &["TL0008"]),
        ("issuer: a, jwksUri: https://a.test/k, fromCookies: ['']", &["TL0018"]),
        ("issuer: a, jwksUri: https://a.test/k, outputClaimToHeaders: [{header: 'a b', claim: c}]", &["TL0026"]),
        ("issuer: a, jwksUri: https://a.test/k, timeout: 0s", &["TL0012"]),
        ("issuer: a, jwksUri: https://a.test/k, presence: REQUIRED", &["TL0014"]),
    ] {
        assert_eq!(rule(text), wanted, "{text}");
    }
}

#[test]
fn authorizers_and_their_policies() {
    let text = r#"
extensionProviders:
  - name: guard
    envoyExtAuthzHttp:
      service: tools/guard.tools.svc.cluster.local
      port: 8000
      failOpen: true
      statusOnError: "503"
      pathPrefix: /check
      includeRequestHeadersInCheck: [Authorization, x-team-*]
      includeRequestBodyInCheck: {maxRequestBytes: 64, allowPartialMessage: true}
  - {name: traces, zipkin: {service: zipkin, port: 9411}}
  - {name: rpc, envoyExtAuthzGrpc: {service: rpc.tools.svc.cluster.local, port: 9000, timeout: 1s}}
"#;
    let (mesh, findings) = resources::parse_mesh(text, &Default::default());
    let codes_of: Vec<_> = findings.iter().map(|finding| finding.code.to_string()).collect();
    assert_eq!(codes_of, ["TL0027"], "telemetry is not called, and that is said");
    let authorizers = mesh.expect("a mesh").authorizers;
    let [guard, rpc] = authorizers.as_slice() else { panic!("two authorizers") };
    assert_eq!((guard.namespace.as_deref(), guard.port, guard.status_on_error), (Some("tools"), 8000, Some(503)));
    assert!(guard.fail_open && guard.body.is_some_and(|body| body.partial && body.max_bytes == 64));
    assert_eq!(guard.request_headers.len(), 2);
    assert!(rpc.http.is_none() && rpc.timeout == std::time::Duration::from_secs(1));
    let twice = "extensionProviders: [{name: a, envoyExtAuthzGrpc: {service: x, port: 1}}, {name: a, zipkin: {}}]";
    assert_eq!(resources::parse_mesh(twice, &Default::default()).0, None);
    let policy = |spec: &str| {
        let head = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: b}";
        codes(&format!("{head}\nspec: {{{spec}}}\n"))
    };
    assert_eq!(policy("action: CUSTOM, provider: {name: guard}, rules: [{}]"), Vec::<String>::new());
    assert_eq!(policy("action: CUSTOM, rules: [{}]"), ["TL0406"]);
    assert_eq!(policy("action: CUSTOM, provider: {name: guard}"), ["TL0402"]);
    assert_eq!(policy("action: DENY, provider: {name: guard}, rules: [{}]"), ["TL0406"]);
    let when = |key: &str| policy(&format!("rules: [{{when: [{{key: '{key}', values: [x]}}]}}]"));
    for key in ["request.auth.principal", "request.auth.claims[a]", "request.auth.claims[a][b.c]"] {
        assert_eq!(when(key), Vec::<String>::new(), "{key}");
    }
    for key in ["request.auth.claims", "request.auth.claims[]", "request.auth.claims[a]b", "request.auth.claims[a][]"] {
        assert_eq!(when(key), ["TL0403"], "{key}");
    }
}
