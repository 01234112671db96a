//! Asks one question so and so often, so that `cargo xtask growth` can count the instructions of each.
//!
//! `growth SUBJECT SIZE TIMES`; without arguments it tells the subjects, each with the size that counts as large.

#[path = "../tests/engine/sizes.rs"]
mod sizes;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() {
        return sizes::SUBJECTS.iter().for_each(|(subject, large)| println!("{subject} {large}"));
    }
    let [subject, size, times] = arguments.as_slice() else { usage() };
    let known = sizes::SUBJECTS.iter().any(|(known, _)| known == subject);
    let (true, Ok(size), Ok(times)) = (known, size.parse(), times.parse::<u32>()) else { usage() };
    let mut ask = sizes::question(subject, size);
    (0..times).for_each(|_| ask());
}

fn usage() -> ! {
    eprintln!("usage: growth [SUBJECT SIZE TIMES]");
    std::process::exit(2);
}
