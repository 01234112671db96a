//! Every input in `corpus/`, as it is and in many broken forms: the short run of the fuzz targets.

use std::path::Path;

/// Each input: cut at many places, and with single bytes changed.
fn forms(input: &[u8]) -> Vec<Vec<u8>> {
    let step = (input.len() / 64).max(1);
    let cuts = (0..=input.len()).step_by(step).map(|end| input[..end].to_vec());
    let changed = (0..input.len()).step_by(step).flat_map(|at| {
        [0, b'\n', b'"', 0x7f, 0x80, 0xff].map(|byte| {
            let mut form = input.to_vec();
            form[at] = byte;
            form
        })
    });
    std::iter::once(input.to_vec()).chain(cuts).chain(changed).collect()
}

#[test]
fn every_corpus_runs_without_a_finding() {
    for (name, target) in fuzz::TARGETS {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let mut inputs = 0;
        for entry in std::fs::read_dir(&directory).unwrap_or_else(|_| panic!("{name} has no corpus")) {
            let path = entry.unwrap().path();
            let input = std::fs::read(&path).unwrap();
            inputs += 1;
            for form in forms(&input) {
                let shown = String::from_utf8_lossy(&form).into_owned();
                let caught = std::panic::catch_unwind(|| target(&form));
                assert!(caught.is_ok(), "{name} fails on a form of {}: {shown:?}", path.display());
            }
        }
        assert!(inputs >= 3, "{name} has only {inputs} inputs");
    }
}

#[test]
fn nothing_and_noise_are_no_findings() {
    let mut state = 1_u64;
    for (name, target) in fuzz::TARGETS {
        target(&[]);
        for length in 0..200 {
            let noise: Vec<u8> = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 33) as u8
                })
                .collect();
            let caught = std::panic::catch_unwind(|| target(&noise));
            assert!(caught.is_ok(), "{name} fails on {noise:?}");
        }
    }
}
