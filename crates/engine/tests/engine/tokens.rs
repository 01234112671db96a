//! Tokens: which are good, what is answered to the others, and what policies behind see.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256};
use aws_lc_rs::{hmac, rsa};
use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use engine::decide::{Guard, Question, Step, World as Around, begin};
use engine::jwt::{KeySet, Status, parse};
use engine::{Dice, Moment, Outcome};
use serde_json::json;

use crate::world::{Ask, World};

const SECRET: &[u8] = b"a secret that only the issuer knows";
const NOW: u64 = 1_000_000;

fn text(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A token with this header and these claims, signed with the secret.
fn token(header: &str, claims: &str) -> String {
    let signed = format!("{}.{}", text(header), text(claims));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), signed.as_bytes());
    format!("{signed}.{}", text(signature))
}

fn good(claims: &str) -> String {
    token(r#"{"alg":"HS256"}"#, claims)
}

fn secret_set() -> String {
    json!({"keys": [{"kty": "oct", "k": text(SECRET)}]}).to_string()
}

/// A filter with one provider `p` and more fields for it; `needs`: the requirement.
fn filter(provider: &str, needs: &str) -> String {
    let set = secret_set();
    format!(
        "- name: envoy.filters.http.jwt_authn
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication
    providers:
      p:
        issuer: me
        payload_in_metadata: payload
        local_jwks: {{inline_string: '{set}'}}
{provider}
    rules:
      - match: {{prefix: /open}}
      - match: {{prefix: /}}
        requires: {needs}
"
    )
}

const ROUTES: &str = r#"
- name: v
  domains: ["*"]
  routes: [{match: {prefix: /}, route: {cluster: a}}]
"#;

fn bearer(path: &str, token: &str) -> Ask {
    Ask::new(&format!("GET x{path}")).with("authorization", &format!("Bearer {token}")).at(NOW)
}

#[test]
fn tokens_are_judged_by_claims_and_signature() {
    let world = World::new(ROUTES, &filter("        audiences: [https://shop.test/]", "{provider_name: p}"));
    let answer = |token: &str| world.decide(&bearer("/", token), &mut Dice::new(1)).1;
    let denied =
        |status: u16, why: Status| format!("{status} jwt_authn_access_denied{{{}}}", why.text().replace(' ', "_"));
    let claims = |more: &str| format!(r#"{{"iss":"me","sub":"amy","aud":"shop.test"{more}}}"#);
    assert_eq!(answer(&good(&claims(""))), "a");
    for (more, wanted) in [
        (r#","exp":1000000"#, Status::Ok),
        (r#","exp":999940"#, Status::Ok),
        (r#","exp":999939"#, Status::Expired),
        (r#","exp":0"#, Status::Expired),
        (r#","nbf":1000060"#, Status::Ok),
        (r#","nbf":1000061"#, Status::NotYetValid),
        (r#","exp":"1000000""#, Status::BadExp),
        (r#","exp":-1"#, Status::ExpOutOfRange),
        (r#","exp":1e300"#, Status::ExpOutOfRange),
        (r#","exp":1e999"#, Status::PayloadBadJson),
        (r#","nbf":true"#, Status::BadNbf),
        (r#","iat":"x""#, Status::BadIat),
        (r#","jti":7"#, Status::BadJti),
        (r#","sub":"twice""#, Status::PayloadBadJson),
    ] {
        let answered = answer(&good(&claims(more)));
        let wanted = if wanted == Status::Ok { "a".to_owned() } else { denied(401, wanted) };
        assert_eq!(answered, wanted, "{more}");
    }
    for (claims, status, wanted) in [
        (r#"{"iss":"you","aud":"shop.test"}"#, 401, Status::UnknownIssuer),
        (r#"{"aud":"shop.test"}"#, 401, Status::UnknownIssuer),
        (r#"{"iss":7,"aud":"shop.test"}"#, 401, Status::BadIss),
        (r#"{"iss":"me","sub":[]}"#, 401, Status::BadSub),
        (r#"{"iss":"me"}"#, 403, Status::AudienceNotAllowed),
        (r#"{"iss":"me","aud":["other"]}"#, 403, Status::AudienceNotAllowed),
        (r#"{"iss":"me","aud":[1]}"#, 401, Status::BadAud),
        ("[]", 401, Status::PayloadBadJson),
    ] {
        assert_eq!(answer(&good(claims)), denied(status, wanted), "{claims}");
    }
    assert_eq!(answer(&good(r#"{"iss":"me","aud":["other","http://shop.test"]}"#)), "a", "without scheme and slash");
    let mut forged = good(&claims(""));
    forged.replace_range(forged.len() - 4.., "AAAA");
    assert_eq!(answer(&forged), denied(401, Status::VerificationFail));
}

#[test]
fn forms_and_headers_that_deceive_are_refused() {
    let claims = r#"{"iss":"me"}"#;
    let status = |text: &str| parse(text).err().unwrap_or(Status::Ok);
    let header = |header: &str| status(&token(header, claims));
    assert_eq!(header(r#"{"alg":"HS256","typ":"JWT","kid":"x"}"#), Status::Ok);
    assert_eq!(header(r#"{"alg":"none"}"#), Status::HeaderUnknownAlg);
    assert_eq!(header(r#"{"alg":"hs256"}"#), Status::HeaderUnknownAlg);
    assert_eq!(header(r#"{"alg":["HS256"]}"#), Status::HeaderBadAlg);
    assert_eq!(header(r#"{}"#), Status::HeaderBadAlg);
    assert_eq!(header(r#"{"alg":"none","alg":"HS256"}"#), Status::HeaderBadJson);
    assert_eq!(header(r#"{"alg":"HS256","kid":7}"#), Status::HeaderBadKid);
    assert_eq!(header(r#"{"alg":"HS256","crit":["exp"]}"#), Status::VerificationFail);
    let sound = good(claims);
    let parts: Vec<&str> = sound.split('.').collect();
    let [head, body, signature] = parts.as_slice() else { panic!("three parts") };
    for bad in [
        String::new(),
        "...".to_owned(),
        format!("{head}.{body}"),
        format!("{head}.{body}."),
        format!("{head}..{signature}"),
        format!(".{head}.{body}.{signature}"),
        format!("{sound}.x"),
        "a".repeat(70_000),
    ] {
        assert_eq!(status(&bad), Status::BadFormat, "{bad:.80}");
    }
    assert_eq!(status(&format!("{head}=.{body}.{signature}")), Status::HeaderBadBase64);
    assert_eq!(
        status(&format!("{head}.{}.{signature}", URL_SAFE.encode(claims))),
        Status::Ok,
        "no padding needed here"
    );
    assert_eq!(status(&format!("{head}.{body}=.{signature}")), Status::PayloadBadBase64);
    assert_eq!(status(&format!("{head}.{body}.{signature}+")), Status::SignatureBadBase64);
    assert_eq!(status(&format!("{}.{body}.{signature}", text("\u{feff}{}"))), Status::HeaderBadJson);
}

#[test]
fn a_key_serves_its_own_kind_of_algorithm_only() {
    let random = SystemRandom::new();
    let rsa = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).expect("key");
    let der = rsa.public_key().as_ref().to_vec();
    // A key of 2048 bits in DER: 9 bytes, modulus, 5 bytes.
    let (n, e) = (&der[9..9 + 256], &der[der.len() - 3..]);
    let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("key");
    let (x, y) = ec.public_key().as_ref()[1..].split_at(32);
    let ed = Ed25519KeyPair::generate().expect("key");
    let set = json!({"keys": [
        {"kty": "RSA", "kid": "r", "n": text(n), "e": text(e)},
        {"kty": "EC", "kid": "e", "crv": "P-256", "x": text(x), "y": text(y)},
        {"kty": "OKP", "kid": "o", "crv": "Ed25519", "x": text(ed.public_key())},
        {"kty": "RSA", "kid": "enc", "use": "enc", "n": text(n), "e": text(e)},
        {"kty": "RSA", "kid": "ps", "alg": "PS256", "n": text(n), "e": text(e)},
        {"kty": "EC", "kid": "off", "crv": "P-256", "x": text(x), "y": text(x)},
        {"kty": "RSA", "kid": "odd", "n": text(n), "e": text([2])},
        {"kty": "what"}, 7,
    ]});
    let keys = KeySet::parse(set.to_string().as_bytes()).expect("keys");
    assert_eq!(keys.len(), 4);
    let sign = |header: &str, how: &dyn Fn(&[u8]) -> Vec<u8>| {
        let signed = format!("{}.{}", text(header), text("{}"));
        let signature = how(signed.as_bytes());
        keys.verify(&parse(&format!("{signed}.{}", text(signature))).expect("token").signed)
    };
    let by_rsa = |message: &[u8]| {
        let mut signature = vec![0; rsa.public_modulus_len()];
        rsa.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).expect("signature");
        signature
    };
    let by_ec = |message: &[u8]| ec.sign(&random, message).expect("signature").as_ref().to_vec();
    let by_ed = |message: &[u8]| ed.sign(message).as_ref().to_vec();
    let by_modulus = |message: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, n), message).as_ref().to_vec();
    assert_eq!(sign(r#"{"alg":"RS256","kid":"r"}"#, &by_rsa), Status::Ok);
    assert_eq!(sign(r#"{"alg":"RS256"}"#, &by_rsa), Status::Ok, "without kid every key is tried");
    assert_eq!(sign(r#"{"alg":"ES256","kid":"e"}"#, &by_ec), Status::Ok);
    assert_eq!(sign(r#"{"alg":"EdDSA","kid":"o"}"#, &by_ed), Status::Ok);
    assert_eq!(sign(r#"{"alg":"HS256","kid":"r"}"#, &by_modulus), Status::KidAlgMismatch, "a public key is no secret");
    assert_eq!(sign(r#"{"alg":"RS256","kid":"e"}"#, &by_rsa), Status::KidAlgMismatch);
    assert_eq!(sign(r#"{"alg":"RS256","kid":"ps"}"#, &by_rsa), Status::KidAlgMismatch);
    assert_eq!(sign(r#"{"alg":"RS256","kid":"enc"}"#, &by_rsa), Status::KidAlgMismatch);
    assert_eq!(sign(r#"{"alg":"RS256","kid":"who"}"#, &by_rsa), Status::KidAlgMismatch);
    assert_eq!(sign(r#"{"alg":"RS384","kid":"r"}"#, &by_rsa), Status::VerificationFail);
    assert_eq!(sign(r#"{"alg":"ES256","kid":"e"}"#, &|_| vec![0; 64]), Status::VerificationFail);
    assert_eq!(sign(r#"{"alg":"ES256","kid":"e"}"#, &|_| Vec::from([1])), Status::VerificationFail);
}

#[test]
fn key_sets_without_a_usable_key_are_told_apart() {
    let wrong = |set: &str| KeySet::parse(set.as_bytes()).expect_err("no keys");
    assert_eq!(wrong("{"), "Jwks is an invalid JSON");
    assert_eq!(wrong(r#"{"keys":[],"keys":[]}"#), "Jwks is an invalid JSON");
    assert_eq!(wrong("{}"), "Jwks does not have [keys] field");
    assert_eq!(wrong(r#"{"keys":{}}"#), "[keys] in Jwks is not an array");
    assert_eq!(wrong(r#"{"keys":[]}"#), Status::NoValidKeys.text());
    assert_eq!(wrong(r#"{"keys":[{"kty":"oct","k":""}]}"#), Status::NoValidKeys.text());
    assert_eq!(wrong(r#"{"keys":[{"kty":"oct","k":"c2hvcnQ"}]}"#), Status::NoValidKeys.text());
    let secret = json!({"kty": "oct", "kid": "s", "k": text(SECRET)});
    let public = json!({"kty": "OKP", "kid": "s", "crv": "Ed25519", "x": text([7; 32])});
    let set = |keys: &[&serde_json::Value]| json!({ "keys": keys }).to_string();
    assert_eq!(wrong(&set(&[&secret, &public])), "Jwks mixes secrets with public keys");
    assert_eq!(wrong(&set(&[&secret, &secret])), "Jwks has two keys of one kind with the same [kid]");
}

#[test]
fn requirements_combine_as_in_envoy() {
    let optional =
        World::new(ROUTES, &filter("", "{requires_any: {requirements: [{provider_name: p}, {allow_missing: {}}]}}"));
    let line = |world: &World, ask: Ask| world.decide(&ask, &mut Dice::new(1)).1;
    let missing = || Ask::new("GET x/").at(NOW);
    assert_eq!(line(&optional, missing()), "a");
    assert!(line(&optional, bearer("/", "no.token.here")).starts_with("401"));
    assert_eq!(line(&optional, bearer("/", &good(r#"{"iss":"me"}"#))), "a");
    let lenient = "{requires_any: {requirements: [{provider_name: p}, {allow_missing_or_failed: {}}]}}";
    let lenient = World::new(ROUTES, &filter("", lenient));
    assert_eq!(line(&lenient, bearer("/", "no.token.here")), "a");
    let needed = World::new(ROUTES, &filter("", "{provider_name: p}"));
    assert_eq!(line(&needed, missing()), "401 jwt_authn_access_denied{Jwt_is_missing}");
    assert_eq!(line(&needed, Ask::new("GET x/open/a")), "a", "the first rule needs nothing");
    let twice = bearer("/", &good(r#"{"iss":"me"}"#)).with("authorization", "Bearer no.token.here");
    assert!(line(&needed, twice).starts_with("401"), "one bad token spoils the good one");
    let other = "{provider_and_audiences: {provider_name: p, audiences: [tea]}}";
    let other = World::new(ROUTES, &filter("        audiences: [coffee]", other));
    assert_eq!(line(&other, bearer("/", &good(r#"{"iss":"me","aud":"tea"}"#))), "a");
    assert!(line(&other, bearer("/", &good(r#"{"iss":"me","aud":"coffee"}"#))).starts_with("403"));
}

#[test]
fn a_refusal_says_why_and_where() {
    let world = World::new(ROUTES, &filter("", "{provider_name: p}"));
    let refusal = |ask: Ask| {
        let (decision, _) = world.decide(&ask, &mut Dice::new(1));
        assert_eq!(decision.guards(), [Guard::TokenDenied]);
        let Outcome::Reply(reply) = decision.outcome else { panic!("reply") };
        let (name, value) = reply.headers.first().cloned().expect("a challenge");
        assert_eq!(name, "www-authenticate");
        (String::from_utf8_lossy(&reply.body).into_owned(), value.to_str().expect("text").to_owned())
    };
    let (body, challenge) = refusal(Ask::new("GET shop.test/a?b=c").at(NOW));
    assert_eq!((body.as_str(), challenge.as_str()), ("Jwt is missing", r#"Bearer realm="http://shop.test/a?b=c""#));
    let (body, challenge) = refusal(bearer("/a", "x.y.z"));
    assert_eq!(body, Status::HeaderBadBase64.text());
    assert_eq!(challenge, r#"Bearer realm="http://x/a", error="invalid_token""#);
    let (_, challenge) = refusal(Ask::new(&format!("GET x/{}", "p".repeat(400))).at(NOW));
    assert_eq!(challenge.len(), r#"Bearer realm="http://x""#.len() + 256);
}

#[test]
fn tokens_come_from_where_the_provider_says() {
    let places = "        from_headers: [{name: x-token, value_prefix: 'Token '}]
        from_params: [t]
        from_cookies: [c]";
    let world = World::new(ROUTES, &filter(places, "{provider_name: p}"));
    let token = good(r#"{"iss":"me"}"#);
    let line = |ask: Ask| world.decide(&ask.at(NOW), &mut Dice::new(1)).1;
    assert_eq!(line(Ask::new("GET x/").with("x-token", &format!("Token {token}"))), "a");
    assert!(line(Ask::new("GET x/").with("x-token", &token)).starts_with("401"));
    assert_eq!(line(Ask::new(&format!("GET x/?a=b&t={token}"))), "a");
    assert_eq!(line(Ask::new("GET x/").with("cookie", &format!("a=b; c={token}"))), "a");
    assert!(line(bearer("/", &token)).starts_with("401"), "named places replace the usual ones");
}

#[test]
fn a_good_token_changes_the_request_and_a_forged_header_goes() {
    let more = "        forward_payload_header: x-claims
        claim_to_headers: [{header_name: x-who, claim_name: sub}, {header_name: x-team, claim_name: org.team},
                           {header_name: x-age, claim_name: age}, {header_name: x-list, claim_name: list}]";
    let world =
        World::new(ROUTES, &filter(more, "{requires_any: {requirements: [{provider_name: p}, {allow_missing: {}}]}}"));
    let claims = r#"{"iss":"me","sub":"amy","org":{"team":"red"},"age":41,"list":[1]}"#;
    let ask = bearer("/a?q=1", &good(claims)).with("x-claims", "forged").with("x-who", "root");
    let (decision, line) = world.decide(&ask, &mut Dice::new(1));
    assert_eq!(line, "a");
    let changed = decision.changed.expect("changes");
    let header = |name: &str| {
        let all: Vec<_> = changed.headers.get_all(name).iter().map(|v| v.to_str().expect("text").to_owned()).collect();
        all.join("|")
    };
    assert_eq!(header("authorization"), "", "the token is not handed on");
    assert_eq!(header("x-who"), "amy");
    assert_eq!(header("x-team"), "red");
    assert_eq!(header("x-age"), "41");
    assert_eq!(header("x-list"), "WzFd");
    assert_eq!(header("x-claims"), text(claims));
    let found = changed.metadata.find(engine::jwt::SPACE, ["payload", "org", "team"]);
    assert_eq!(found.and_then(|datum| datum.text()), Some("red"));
    let (decision, _) = world.decide(&Ask::new("GET x/").with("x-who", "root"), &mut Dice::new(1));
    let changed = decision.changed.expect("changes");
    assert!(!changed.headers.contains_key("x-who"), "nobody may say it without a token");
    let token = good(claims);
    let (decision, _) =
        world.decide(&Ask::new(&format!("GET x/a?q=1&access_token={token}&r=2")).at(NOW), &mut Dice::new(1));
    assert_eq!(decision.changed.and_then(|changed| changed.path).as_deref(), Some("/a?q=1&r=2"));
}

#[test]
fn policies_behind_see_the_claims() {
    let spaced = "        normalize_payload_in_metadata: {space_delimited_claims: [scope]}";
    let filters = filter(spaced, "{requires_any: {requirements: [{provider_name: p}, {allow_missing: {}}]}}")
        + r#"- name: envoy.filters.http.rbac
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
    rules:
      action: ALLOW
      policies:
        writers:
          permissions: [{any: true}]
          principals:
            - metadata:
                filter: envoy.filters.http.jwt_authn
                path: [{key: payload}, {key: scope}]
                value: {list_match: {one_of: {string_match: {exact: write}}}}
"#;
    let world = World::new(ROUTES, &filters);
    let line = |ask: Ask| world.decide(&ask, &mut Dice::new(1)).1;
    assert_eq!(line(bearer("/", &good(r#"{"iss":"me","scope":"read write"}"#))), "a");
    let denied = "403 rbac_access_denied_matched_policy[none]";
    assert_eq!(line(bearer("/", &good(r#"{"iss":"me","scope":"rewrite"}"#))), denied);
    assert_eq!(line(Ask::new("GET x/").at(NOW)), denied);
}

#[test]
fn routes_may_say_otherwise() {
    let routes = r#"
- name: v
  domains: ["*"]
  routes:
    - match: {prefix: /free}
      route: {cluster: a}
      typed_per_filter_config:
        envoy.filters.http.jwt_authn:
          "@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig
          disabled: true
    - match: {prefix: /named}
      route: {cluster: b}
      typed_per_filter_config:
        envoy.filters.http.jwt_authn:
          "@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig
          requirement_name: any
    - match: {prefix: /nowhere}
      route: {cluster: b}
      typed_per_filter_config:
        envoy.filters.http.jwt_authn:
          "@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig
          requirement_name: gone
    - {match: {prefix: /}, route: {cluster: c}}
"#;
    let filters = filter("", "{provider_name: p}")
        + "    requirement_map: {any: {allow_missing_or_failed: {}}}\n    bypass_cors_preflight: true\n";
    World::new(routes, &filters).check(
        "GET x/free -> a
         GET x/named -> b
         GET x/nowhere -> 403 jwt_authn_access_denied{Wrong_requirement_name:_gone._It_should_be_one_of_[any]}
         GET x/ -> 401 jwt_authn_access_denied{Jwt_is_missing}
         OPTIONS x/ origin=a access-control-request-method=GET -> c
         OPTIONS x/ origin=a -> 401 jwt_authn_access_denied{Jwt_is_missing}",
    );
}

#[test]
fn keys_that_are_fetched_are_asked_for_once_and_fail_closed() {
    let filters = "- name: envoy.filters.http.jwt_authn
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication
    providers:
      p:
        issuer: me
        remote_jwks: {http_uri: {uri: 'https://keys.test:8443/all?x=1', cluster: a, timeout: 1s}, cache_duration: 60s}
    rules: [{match: {prefix: /}, requires: {provider_name: p}}]
";
    let world = World::new(ROUTES, filters);
    let ask = bearer("/", &good(r#"{"iss":"me"}"#));
    let (facts, manager) = (ask.facts(), world.manager());
    let at = |seconds| Moment::at(std::time::Duration::from_secs(seconds));
    let around = |now| Around { plan: &world.plan, manager: &manager, facts: &facts, now };
    let Step::Ask(pending) = begin(around(at(5)), &mut Dice::new(1)) else { panic!("keys are needed") };
    let Question::Keys(keys) = &pending.question else { panic!("keys are needed") };
    let (keys, source) = (keys.clone(), keys.source.clone());
    assert_eq!((&*source.authority, &*source.path), ("keys.test:8443", "/all?x=1"));
    let failed = "jwt_authn_access_denied{Jwks_remote_fetch_is_failed}";
    let done = |step: Step| match step {
        Step::Done(decision) => match decision.outcome {
            Outcome::Forward(forward) => forward.cluster.name().to_string(),
            Outcome::Reply(reply) => reply.details.into_owned(),
        },
        Step::Ask(_) => "asks".to_owned(),
    };
    keys.fail(at(5));
    let step = pending.go_on(around(at(5)), engine::decide::Answered::Keys, &mut Dice::new(1));
    assert_eq!(done(step), failed);
    assert_eq!(done(begin(around(at(5)), &mut Dice::new(1))), failed, "not again at once");
    let Step::Ask(pending) = begin(around(at(7)), &mut Dice::new(1)) else { panic!("a new try") };
    keys.put(KeySet::parse(secret_set().as_bytes()).expect("keys"), at(7));
    let step = pending.go_on(around(at(7)), engine::decide::Answered::Keys, &mut Dice::new(1));
    assert_eq!(done(step), "a");
    assert_eq!(done(begin(around(at(60)), &mut Dice::new(1))), "a", "from the cache");
    let Step::Done(stale) = begin(around(at(70)), &mut Dice::new(1)) else { panic!("the last good keys") };
    assert_eq!(stale.asked.map_or(0, |asked| asked.outdated.len()), 1, "to be fetched in the background");
    assert_eq!(
        done(begin(around(at(7 + 60 + 3600)), &mut Dice::new(1))),
        "asks",
        "beyond the bound nothing is believed"
    );
}
