//! Readers at once on a network as slow as a real one: how long the last takes, and how often the file leaves the
//! origin. Times are ratios to the file over the link's payload rate.

use std::time::Duration;

mod lab;

use lab::swarm::{self, Read};
use lab::{Host, Lab, Link, samples};

const MIB: u64 = 1 << 20;

#[test]
fn one_reader_gets_the_whole_rate_of_its_link() {
    let link = Link::mbit(100);
    let Some(lab) = Lab::timed(2, link) else { return };
    let len = 64 * MIB;
    let file = lab.scratch().join("tree/random");
    std::fs::create_dir(file.parent().unwrap()).unwrap();
    samples::random_file(&file, len, 1);
    let run = read_on_all(&lab, &file, Duration::from_secs(60));
    assert!(run.ratio(link, len) <= 1.03, "{:.3} x ideal", run.ratio(link, len));
}

#[test]
fn three_readers_at_once_take_little_longer_than_one_and_share() {
    let link = Link::mbit(100);
    let Some(lab) = Lab::timed(4, link) else { return };
    let len = 128 * MIB;
    let file = lab.scratch().join("tree/random");
    std::fs::create_dir(file.parent().unwrap()).unwrap();
    samples::random_file(&file, len, 2);
    let run = read_on_all(&lab, &file, Duration::from_secs(120));
    let copies = run.left_origin as f64 / len as f64;
    assert!(run.ratio(link, len) <= 1.3, "{:.3} x ideal", run.ratio(link, len));
    assert!(copies <= 1.5, "{copies:.2} copies left the origin");
}

#[test]
fn holes_do_not_travel() {
    let link = Link::mbit(100);
    let Some(lab) = Lab::timed(2, link) else { return };
    let len = 256 * MIB;
    let file = lab.scratch().join("tree/image");
    std::fs::create_dir(file.parent().unwrap()).unwrap();
    samples::file_with_holes(&file, len, 3);
    let run = read_on_all(&lab, &file, Duration::from_secs(120));
    assert!(run.ratio(link, len) <= 0.3, "{:.3} x ideal", run.ratio(link, len));
}

#[test]
fn everyone_finishes_on_a_network_that_loses_one_packet_in_a_hundred() {
    let link = Link::mbit(100);
    let Some(lab) = Lab::timed(4, link) else { return };
    let file = lab.scratch().join("tree/random");
    std::fs::create_dir(file.parent().unwrap()).unwrap();
    samples::random_file(&file, 32 * MIB, 4);
    lab.lose(0.01);
    read_on_all(&lab, &file, Duration::from_secs(120));
}

struct Run {
    reads: Vec<Read>,
    /// Bytes on the origin's link meanwhile, headers included.
    left_origin: u64,
}

impl Run {
    /// The last reader's time over the ideal one.
    fn ratio(&self, link: Link, len: u64) -> f64 {
        let last = self.reads.iter().map(|read| read.took).max().expect("somebody read");
        last.as_secs_f64() / link.ideal(len).as_secs_f64()
    }
}

/// Serves the file's directory, mounts it on every other host, reads the file on all of them at once and checks bytes.
fn read_on_all(lab: &Lab, file: &std::path::Path, limit: Duration) -> Run {
    let expected = samples::digest_of(file);
    let name = file.file_name().unwrap().to_str().unwrap();
    let _origin = swarm::serve(lab.origin(), file.parent().unwrap(), "images", &[]);
    let _mounts: Vec<_> = lab.nodes().iter().map(|host| swarm::mount(host, "images", &[])).collect();
    let before = lab.sent_by(lab.origin());
    let readings: Vec<_> = lab.nodes().iter().map(|host: &Host| swarm::read(host, name, &[])).collect();
    let reads: Vec<Read> = readings.into_iter().map(|reading| reading.finish(limit)).collect();
    let left_origin = lab.sent_by(lab.origin()) - before;
    for read in &reads {
        read.must_be(expected);
    }
    let run = Run { reads, left_origin };
    println!(
        "{} readers: last {:.3} x ideal, {:.2} copies left the origin",
        run.reads.len(),
        run.ratio(lab.link, expected.len),
        left_origin as f64 / expected.len as f64
    );
    run
}
