//! Worlds to test in: recording backends, plain clients, behaviour tables, and meshes of real proxies around them.
//!
//! For developers; nothing that ships depends on it.

pub mod ads;
pub mod checked;
pub mod client;
pub mod frames;
pub mod head;
pub mod issue;
pub mod names;
pub mod oracle;
pub mod recorder;
pub mod redirection;
pub mod single;
pub mod table;
pub mod token;
pub mod topology;
pub mod world;
pub mod xds;
