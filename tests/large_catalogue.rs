//! A catalogue of many pages over real connections: a node that fetches it ahead must not ask so much at once that its
//! origin takes it for dead. Runs on loopback.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use swarmfs::driver::{self, Client};
use swarmfs::origin::{StateDir, Tree};
use swarmfs::settings::{CacheSettings, NetSettings};
use swarmfs::stream::Embedded;
use swarmfs::wire::head::TreeName;

const FILES: usize = 60_000;
const PATIENCE: Duration = Duration::from_secs(30);

/// The node ends with the test, also where that fails.
struct Ends(Client);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn tree(dir: &Path) {
    for index in 0..FILES {
        let name = format!("a file with a name that is long enough for many pages {index:08} {index:08} {index:08}");
        std::fs::File::create(dir.join(name)).expect("the disk takes an empty file");
    }
}

#[tokio::test]
async fn a_large_catalogue_comes_ahead_without_the_link_breaking() {
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree(dir.path());
    // A range of its own, so that other nodes of this host are not met.
    let port = 20_000 + (std::process::id() % 2_000) as u16 * 16;
    let net = NetSettings { interfaces: vec!["lo".to_owned()], port: Some(port), ..NetSettings::default() };
    let cache = CacheSettings { budget_bytes: 256 << 20 };
    let state = StateDir::at(state.path().join("state")).unwrap();
    let name: TreeName = "large".parse().unwrap();
    let tree = Tree::open(dir.path(), name.clone(), &state, state.key().unwrap()).unwrap();
    let origin = Ends(driver::serve(Arc::new(tree), &net, &cache).unwrap());
    let found = driver::discover(&net, Some(&name), Duration::from_secs(5)).unwrap();
    let reader = Ends(driver::join(found, &net, &cache).unwrap());
    let mut seen = 0;
    let files = Embedded::new(reader.0.clone()).with_patience(PATIENCE);
    files.list("", |part| seen += part.len()).await.unwrap();
    assert_eq!(seen, FILES);
    let counter = |client: &Client, name: &str| {
        let counters = client.snapshot().counters;
        counters.into_iter().find(|(known, _)| *known == name).map_or(0, |(_, count)| count)
    };
    // The first greeting took one; a link that broke would have taken more.
    let begin = Instant::now();
    while counter(&reader.0, "pages_held") < 200 {
        assert!(begin.elapsed() < PATIENCE, "{} pages only", counter(&reader.0, "pages_held"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(counter(&reader.0, "joins") <= 2, "the link to the origin broke {} times", counter(&reader.0, "joins"));
    drop((reader, origin));
}
