//! Chains made to keep a verifier busy: many authorities of one name, each signed by another, and none by the root.

use std::time::Duration;

use identity::tls::{self, ClientAuth, ClientSettings, Credentials, KeySlot, NameCheck, SanMatcher, ServerSettings};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType,
};

use crate::handshake::shake;
use crate::pki::{Authority, Leaf, cpu};

const WEB: &str = "spiffe://mesh.test/ns/shop/sa/web";

/// The processor time that one handshake may cost, whatever the chain.
const MOST: Duration = Duration::from_millis(20);

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// A leaf and `count` authorities that all have the name of its issuer.
fn bomb(count: usize) -> (String, String) {
    let authority = || {
        let mut params = named("bomb");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params, KeyPair::generate().unwrap())
    };
    let (params, key) = authority();
    let mut issuer = Issuer::new(params, key);
    let mut leaf = named("leaf");
    leaf.subject_alt_names = vec![SanType::URI(WEB.try_into().unwrap())];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let mut chain = leaf.signed_by(&key, &issuer).unwrap().pem();
    let mut above = Vec::new();
    for _ in 0..count {
        let (params, next) = authority();
        let next_issuer = Issuer::new(params.clone(), next);
        let (own, own_key) = authority();
        above.push(own.signed_by(&own_key, &next_issuer).unwrap().pem());
        issuer = next_issuer;
    }
    let _ = issuer;
    chain.extend(above);
    (chain, key.serialize_pem())
}

#[test]
fn a_chain_that_leads_nowhere_costs_little() {
    let ca = Authority::new("root");
    let server = ServerSettings {
        keys: ca.slot(&Leaf::spiffe("spiffe://mesh.test/ns/shop/sa/cart")),
        client_auth: ClientAuth::Require,
        trust: vec![ca.bundle("mesh.test")],
        ..ServerSettings::default()
    };
    for count in [1, 10, 80] {
        let (chain, key) = bomb(count);
        let client = ClientSettings {
            keys: Some(KeySlot::with(Credentials::from_pem(chain.as_bytes(), key.as_bytes()).unwrap())),
            trust: vec![ca.bundle("mesh.test")],
            names: NameCheck::OneOf(vec![SanMatcher::uri("spiffe://mesh.test/ns/shop/sa/cart")]),
            ..ClientSettings::default()
        };
        let took = (0..5).map(|_| {
            let (client, server) = (tls::client_config(&client).unwrap(), tls::server_config(&server).unwrap());
            let (took, outcome) = cpu(|| shake(client, server, "web.test"));
            assert!(matches!(outcome, Err(("server", _))), "a chain without a root is taken");
            took
        });
        let least = took.min().unwrap();
        println!("{count} authorities: {least:?}");
        assert!(least < MOST, "{count} authorities: {least:?}");
    }
}
