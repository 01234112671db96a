//! One integration-test program: the verbs as people run them, with their whole output.

mod joining;
