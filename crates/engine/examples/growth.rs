//! Asks one question so and so often, so that `cargo xtask growth` can count the instructions of each.
//!
//! `growth SUBJECT SIZE TIMES`

#[path = "../tests/engine/sizes.rs"]
mod sizes;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().unwrap_or_default();
    let (subject, size, times) = (next(), next().parse(), next().parse::<u32>());
    let (true, Ok(size), Ok(times)) = (sizes::SUBJECTS.contains(&subject.as_str()), size, times) else {
        eprintln!("usage: growth {} SIZE TIMES", sizes::SUBJECTS.join("|"));
        std::process::exit(2);
    };
    let mut ask = sizes::question(&subject, size);
    (0..times).for_each(|_| ask());
}
