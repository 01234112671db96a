//! Memory that only the start needs, given back once the proxy runs: what the allocator keeps of the parsed
//! configuration, and the pages of code that read it. Code that is needed again comes back from the page cache.

use std::time::Duration;

/// From readiness to giving back: the first connections and the first scrape should not be slowed.
pub const AFTER: Duration = Duration::from_secs(2);

/// Gives back what it can; the process goes on as before.
pub fn settle() {
    trim();
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

#[allow(unsafe_code, reason = "the allocators' own functions; they touch nothing that is in use")]
fn trim() {
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
    fn the_process_goes_on() {
        settle();
        assert!(!own_mappings().is_empty());
    }
}
