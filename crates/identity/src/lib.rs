//! Identities: keys, certificates, the certificate authority, tokens, rotation.
