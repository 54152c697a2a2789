//! A program that reads a file of a tree by itself: it runs a node, needs neither root nor a mount, and hands on to
//! its neighbours what it has read.
//!
//! `cargo run --example embed -- TREE PATH` says what the file begins with, how it ends and how long it is.

use std::error::Error;
use std::io::SeekFrom;
use std::time::Duration;

use swarmfs::driver;
use swarmfs::settings::{CacheSettings, NetSettings};
use swarmfs::stream::Embedded;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

/// Bytes shown of either end.
const SHOWN: u64 = 16;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(tree), Some(path), None) = (args.next(), args.next(), args.next()) else {
        return Err("usage: embed TREE PATH".into());
    };
    let net = NetSettings::default();
    let cache = CacheSettings::parse("64M")?;
    let found = driver::discover(&net, Some(&tree.parse()?), Duration::from_secs(5))?;
    let node = driver::join(found, &net, &cache)?;

    let mut file = Embedded::new(node.clone()).open(&path).await?;
    let size = file.size();
    let mut beginning = Vec::new();
    (&mut file).take(SHOWN).read_to_end(&mut beginning).await?;
    let mut end = Vec::new();
    file.seek(SeekFrom::Start(size.saturating_sub(SHOWN))).await?;
    file.read_to_end(&mut end).await?;
    println!("{path}: {size} bytes, from \"{}\" to \"{}\"", beginning.escape_ascii(), end.escape_ascii());

    // The node serves its neighbours until here.
    node.stop();
    Ok(())
}
