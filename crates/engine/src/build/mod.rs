//! From xDS messages to running data; every fault with the path of its field.
