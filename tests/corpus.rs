//! What fuzzing found and what it got far with, again: the committed corpus of every target (`fuzz/src/lib.rs` says how it
//! is made), and random sequences into a node beside it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

#[test]
fn every_case_of_the_corpus_passes() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in fuzz::TARGETS {
        let listed =
            std::fs::read_dir(corpus.join(name)).unwrap_or_else(|error| panic!("no corpus of {name}: {error}"));
        let mut cases: Vec<_> = listed.map(|entry| entry.unwrap().path()).collect();
        cases.sort();
        assert!(!cases.is_empty(), "the corpus of {name} is empty");
        for case in cases {
            let data = std::fs::read(&case).unwrap();
            let passed = catch_unwind(AssertUnwindSafe(|| target(&data)));
            assert!(passed.is_ok(), "{name} fails on {}", case.display());
        }
    }
}

#[test]
fn random_sequences_of_inputs_keep_a_node_within_its_limits() {
    let seeds = match std::env::var("SWARMFS_FUZZ_SEED").ok().and_then(|text| text.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..300u64,
    };
    for seed in seeds {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut data = vec![0; random.usize(50..8000)];
        random.fill(&mut data);
        let passed = catch_unwind(AssertUnwindSafe(|| fuzz::node::node(&data)));
        let again = format!("SWARMFS_FUZZ_SEED={seed} cargo test --test corpus random");
        assert!(passed.is_ok(), "seed {seed} fails; again by: {again}");
    }
}
