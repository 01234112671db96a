//! Delta and state-of-the-world xDS sessions, their gRPC server and client.
