//! What a program does for each of its requests, counted from outside: instructions and allocations by callgrind, calls of the
//! system by strace. `cargo xtask cost` and `cargo xtask bench` count alike.

pub(crate) mod callgrind;
pub(crate) mod strace;
