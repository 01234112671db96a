//! Memory that only the start needs, given back once the proxy runs: what the allocator keeps of the parsed
//! configuration, and the pages of code that read it. Code that is needed again comes back from the page cache.
//!
//! The same again for what the allocator keeps after a time of work: of the exchanges that were under way, between the
//! connections that stay.

use std::time::Duration;

/// From readiness to giving back: the first connections and the first scrape should not be slowed.
pub const AFTER: Duration = Duration::from_secs(2);

/// Between two looks at whether the process rests.
pub const LOOK: Duration = Duration::from_secs(1);
/// Time on processors between two looks (of all threads together) from which on the process works.
const WORK: Duration = Duration::from_millis(40);
/// So many looks without work are rest.
const LOOKS: u32 = 2;

/// Tells when a time of work is over.
#[derive(Debug, Default)]
pub struct Rest {
    spent: Duration,
    worked: bool,
    quiet: u32,
}

impl Rest {
    /// At each look: the time on processors so far. True once after work, when it has rested long enough.
    pub fn begins(&mut self, spent: Duration) -> bool {
        let works = spent.saturating_sub(self.spent) >= WORK;
        self.spent = spent;
        self.quiet = if works { 0 } else { self.quiet.saturating_add(1) };
        self.worked |= works;
        let begins = self.worked && self.quiet >= LOOKS;
        self.worked &= !begins;
        begins
    }
}

/// The time that this process has spent on processors, in steps of 10 ms.
pub fn spent() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is the program's name in brackets, and may hold anything. `utime` and `stime` are 14 and 15.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 =
        fields.split_ascii_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks.saturating_mul(10))
}

/// Gives back the pages of the program's code; the process goes on as before.
pub fn release_code() {
    for mapping in own_mappings() {
        release(mapping);
    }
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mapping {
    begin: usize,
    end: usize,
}

fn own_mappings() -> Vec<Mapping> {
    let (Ok(smaps), Ok(program)) = (std::fs::read_to_string("/proc/self/smaps"), std::fs::read_link("/proc/self/exe"))
    else {
        return Vec::new();
    };
    let program = program.to_string_lossy();
    clean_mappings(&smaps, program.trim_end_matches(" (deleted)"))
}

/// Mappings of the program's own file, which is never unmapped, that cannot be written to and of which no page is a private copy: whatever is released of them is
/// read again from the file as it was.
fn clean_mappings(smaps: &str, program: &str) -> Vec<Mapping> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        if let Some(mapping) = header(line, program) {
            candidate = mapping;
        } else if let Some(rest) = line.strip_prefix("Anonymous:")
            && rest.trim() == "0 kB"
            && let Some(mapping) = candidate.take()
        {
            found.push(mapping);
        }
    }
    found
}

/// `None`: no header of a mapping; `Some(None)`: of one that is left alone.
fn header(line: &str, program: &str) -> Option<Option<Mapping>> {
    let mut words = line.split_ascii_whitespace();
    let (begin, end) = words.next()?.split_once('-')?;
    let (begin, end) = (usize::from_str_radix(begin, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let permissions = words.next()?;
    let own = words.nth(3) == Some(program);
    let clean = matches!(permissions, "r-xp" | "r--p") && own && begin < end;
    Some(clean.then_some(Mapping { begin, end }))
}

/// Gives back what the allocators keep free: of this thread, and of the C library for all threads.
#[allow(unsafe_code, reason = "the allocators' own functions; they touch nothing that is in use")]
pub fn trim() {
    // SAFETY: takes no pointer and may be called at any time from any thread, whichever allocator the program has.
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
    // Cryptography asks the C library.
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[allow(unsafe_code, reason = "no safe crate releases pages; that it is safe here follows from `clean_mappings`")]
fn release(mapping: Mapping) {
    // SAFETY: a private mapping of a file without write permission and without private copies: the next access reads the
    // same bytes from the file. The program's own mappings last as long as the process.
    unsafe {
        libc::madvise(
            std::ptr::without_provenance_mut(mapping.begin),
            mapping.end - mapping.begin,
            libc::MADV_DONTNEED,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0-55e0 r-xp 00001000 08:01 42 /usr/bin/tulle
Rss:                  64 kB
Anonymous:             0 kB
55e0-55f0 r--p 00002000 08:01 42 /usr/bin/tulle
Anonymous:             4 kB
55f0-5600 rw-p 00003000 08:01 42 /usr/bin/tulle
Anonymous:             0 kB
7f00-7f10 r--p 00000000 00:00 0
Anonymous:             0 kB
7f10-7f20 r-xp 00000000 00:00 0 [vdso]
Anonymous:             0 kB
7f20-7f30 r--p 00000000 08:01 43 /lib/libc.so.6
Anonymous:             0 kB
";

    #[test]
    fn only_unchanged_pages_of_files_are_released() {
        let mapping = |begin, end| Mapping { begin, end };
        assert_eq!(clean_mappings(SMAPS, "/usr/bin/tulle"), [mapping(0x55d0, 0x55e0)]);
    }

    #[test]
    fn rest_begins_once_after_work() {
        let mut rest = Rest::default();
        let mut spent = Duration::ZERO;
        let mut look = |work: u64| {
            spent += Duration::from_millis(work);
            rest.begins(spent)
        };
        let seen = [900, 0, 1, 0, 0, 700, 3, 800, 2, 5, 0].map(&mut look);
        let at = |look| seen.iter().enumerate().filter(|(_, begins)| **begins).map(|(at, _)| at).eq(look);
        assert!(at([2, 9].into_iter()), "{seen:?}");
    }

    #[test]
    fn the_process_goes_on() {
        trim();
        release_code();
        assert!(!own_mappings().is_empty());
    }
}
