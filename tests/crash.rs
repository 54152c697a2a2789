//! What a crash may leave of the state directory: any file cut, torn or changed anywhere. Whoever starts next reads it or
//! throws it away; what it says and serves is right either way.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use swarmfs::catalogue::{Page, Pages, View};
use swarmfs::chunk::{BLOCK, ObjectId, SegmentId};
use swarmfs::keys::{OriginKey, PublicKey};
use swarmfs::origin::{StateDir, Tree};
use swarmfs::wire::head::{PageHash, TreeName};

const CONTENT: &[u8] = b"an image";

fn name() -> TreeName {
    "images".parse().unwrap()
}

fn stranger() -> PublicKey {
    OriginKey::from_seed(&[9; 32]).public()
}

/// A served directory and a state directory that has one file of each kind.
struct Host {
    dir: tempfile::TempDir,
    key: PublicKey,
    sequence: u64,
}

impl Host {
    fn new() -> Host {
        let dir = tempfile::tempdir().unwrap();
        let served = dir.path().join("served");
        fs::create_dir(&served).unwrap();
        fs::write(served.join("file"), CONTENT).unwrap();
        let old = SystemTime::now() - Duration::from_secs(60);
        fs::File::open(served.join("file")).unwrap().set_modified(old).unwrap();
        let mut host = Host { dir, key: stranger(), sequence: 0 };
        StateDir::at(host.state()).unwrap().remember(&"theirs".parse().unwrap(), stranger()).unwrap();
        (host.key, host.sequence) = host.serves();
        host
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Starts an origin, reads all that it serves, and checks that. Its key and its head's sequence.
    fn serves(&self) -> (PublicKey, u64) {
        let state = StateDir::at(self.state()).unwrap();
        let key = state.key().unwrap();
        let public = key.public();
        let tree = Tree::open(&self.dir.path().join("served"), name(), &state, key).unwrap();
        let head = tree.head();
        assert_eq!(head.key, public);
        let object = the_object(&tree);
        let mut bytes = Vec::new();
        let header = tree.segment(SegmentId { object, index: 0 }, &mut bytes).unwrap();
        assert_eq!(bytes, CONTENT);
        let mut padded = bytes.clone();
        padded.truncate(BLOCK as usize);
        assert!(header.matches(0, &padded), "signed is what is there");
        (public, head.sequence)
    }

    /// What the files are, in an order that stays.
    fn files(&self) -> Vec<PathBuf> {
        let files = ["origin.key", "trees/images/head", "trees/images/headers", "trees/theirs/trusted"];
        files.iter().map(|file| self.state().join(file)).collect()
    }
}

struct Served<'a>(&'a Tree);

impl Pages for Served<'_> {
    fn page(&self, hash: &PageHash) -> Option<std::sync::Arc<Page>> {
        Some(std::sync::Arc::new(Page::parse(self.0.page(hash)?).unwrap()))
    }
}

/// The one file of the tree.
fn the_object(tree: &Tree) -> ObjectId {
    let head = tree.head();
    let view = View::new(head.root, head.root_level);
    (0..head.totals.rows)
        .find_map(|rank| view.at(&Served(tree), rank).unwrap()?.row.object())
        .expect("one file is listed")
}

/// What a crash does to a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Cut,
    /// The rest is zeros: its blocks were allotted and never written.
    Torn,
    Flip(u8),
    Tail,
}

fn damaged(bytes: &[u8], at: usize, how: Damage) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    match how {
        Damage::Cut => bytes.truncate(at),
        Damage::Torn => bytes[at..].fill(0),
        Damage::Flip(bit) => bytes[at] ^= 1 << bit,
        Damage::Tail => bytes.extend_from_slice(b"more"),
    }
    bytes
}

fn some_damage() -> impl Strategy<Value = Damage> {
    prop_oneof![Just(Damage::Cut), Just(Damage::Torn), (0u8..8).prop_map(Damage::Flip), Just(Damage::Tail)]
}

fn put_back(host: &Host, whole: &[(PathBuf, Vec<u8>)]) {
    fs::remove_dir_all(host.state()).unwrap();
    for (path, bytes) in whole {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

#[test]
fn whatever_a_crash_leaves_of_the_state_is_read_or_thrown_away() {
    let host = Host::new();
    let whole: Vec<(PathBuf, Vec<u8>)> =
        host.files().into_iter().map(|path| (path.clone(), fs::read(&path).unwrap())).collect();
    let damage = proptest::collection::vec((0usize..4, 0.0f64..1.0, some_damage()), 1..3);
    proptest!(ProptestConfig::with_cases(200), |(damage in damage)| {
        put_back(&host, &whole);
        for (file, at, how) in &damage {
            let (path, bytes) = &whole[*file];
            fs::write(path, damaged(bytes, (at * bytes.len() as f64) as usize, *how)).unwrap();
        }
        // A write that was under way.
        fs::write(host.state().join(".new.1"), "half").unwrap();
        let touched = |file: usize| fs::read(&whole[file].0).unwrap() != whole[file].1;
        let (key_touched, head_touched, trust_touched) = (touched(0), touched(1), touched(3));
        let (key, sequence) = host.serves();
        prop_assert_eq!(key == host.key, !key_touched);
        prop_assert!(sequence >= host.sequence, "readers never see an older head");
        prop_assert!(head_touched || sequence == host.sequence, "an unchanged tree keeps its head");
        if key_touched {
            prop_assert!(is_aside(&host.state()), "a key is never thrown away");
        }
        let known = StateDir::at(host.state()).unwrap().known(&"theirs".parse().unwrap()).unwrap();
        prop_assert_eq!(known.map(|known| known.key), (!trust_touched).then(stranger));
        // And once more: what was made anew lasts.
        prop_assert_eq!(host.serves(), (key, sequence));
    });
}

fn is_aside(state: &Path) -> bool {
    state.join("origin.key.damaged").exists()
}

#[test]
fn a_lost_state_directory_is_a_new_key_and_nothing_remembered() {
    let host = Host::new();
    fs::remove_dir_all(host.state()).unwrap();
    let (key, sequence) = host.serves();
    assert!(key != host.key && sequence > host.sequence);
    assert_eq!(StateDir::at(host.state()).unwrap().all_known().unwrap(), []);
}
