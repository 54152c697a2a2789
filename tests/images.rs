//! An image on the mount serves whoever serves images: fsck, loop mounts, mmap, and a plain `dd`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

mod lab;

use lab::{Lab, Link, Running, samples, swarm};

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(120);

/// An ext4 image with real files on the origin, mounted on one node.
fn mounted() -> Option<(Lab, PathBuf, [Running; 2])> {
    let lab = Lab::timed(2, Link::unlimited())?;
    let (tree, files) = (lab.scratch().join("tree"), lab.scratch().join("files"));
    std::fs::create_dir(&tree).unwrap();
    samples::machine_files(&files, 64 * MIB);
    samples::ext4_image(&tree.join("disk.img"), 128, &files);
    let origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    let mount = swarm::mount(lab.host(1), "images", &["--cache", "256M"]);
    Some((lab, files, [origin, mount]))
}

#[test]
fn the_image_has_the_same_sha_256_and_e2fsck_finds_it_clean() {
    let Some((lab, _files, _nodes)) = mounted() else { return };
    let (node, image) = (lab.host(1), format!("{}/disk.img", swarm::MOUNT));
    let sum = |path: &str| node.sh(LONG, &format!("sha256sum < {path}"));
    assert_eq!(sum(&image), sum(&lab.scratch().join("tree/disk.img").display().to_string()));
    node.sh(LONG, &format!("e2fsck -fn {image}"));
}

#[test]
fn the_image_can_be_mounted_from_the_mount() {
    let Some((lab, files, _nodes)) = mounted() else { return };
    let node = lab.host(1);
    node.sh(LONG, "mkdir /run/loop");
    let mounted = node.run(LONG, "mount", &["-o", "ro,loop", &format!("{}/disk.img", swarm::MOUNT), "/run/loop"]);
    if std::env::var_os("CI").is_none() && !is_root_of_the_machine() {
        eprintln!("SKIPPED: a user namespace may not mount ext4: {}", swarm::complaint(&mounted));
        return;
    }
    assert!(mounted.status.success(), "{}", swarm::complaint(&mounted));
    node.sh(LONG, &format!("diff -r --no-dereference --exclude=lost+found {} /run/loop", files.display()));
    node.sh(LONG, "umount /run/loop");
}

/// Root of the machine itself, not of a user namespace: only there are all users mapped.
fn is_root_of_the_machine() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[test]
fn the_image_can_be_mapped_into_memory() {
    let Some((lab, _files, _nodes)) = mounted() else { return };
    let original = std::fs::read(lab.scratch().join("tree/disk.img")).unwrap();
    let file = File::open(lab.host(1).path(swarm::MOUNT).join("disk.img")).unwrap();
    for flags in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
        // SAFETY: a fresh mapping of the whole file, read-only; the file is immutable while it is mapped.
        let mapped = unsafe {
            let at = libc::mmap(std::ptr::null_mut(), original.len(), libc::PROT_READ, flags, file.as_raw_fd(), 0);
            assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
            std::slice::from_raw_parts(at.cast::<u8>(), original.len())
        };
        // Backwards and in steps that are no multiple of a page first: faults, not read-ahead, bring these.
        for at in (0..original.len()).rev().step_by(1_234_567) {
            assert_eq!(mapped[at], original[at], "byte {at}");
        }
        assert!(mapped == original, "the mapping has other bytes than the image");
        // SAFETY: unmaps exactly what was mapped above; no reference to it is used afterwards.
        unsafe { libc::munmap(mapped.as_ptr().cast_mut().cast(), mapped.len()) };
    }
}

#[test]
fn dd_without_a_block_size_reads_200_mb_a_second_from_the_nodes_cache() {
    let Some((lab, _files, _nodes)) = mounted() else { return };
    let (node, image) = (lab.host(1), format!("{}/disk.img", swarm::MOUNT));
    let len = std::fs::metadata(lab.scratch().join("tree/disk.img")).unwrap().len();
    node.sh(LONG, &format!("cat {image} > /dev/null"));
    let received = lab.sent_to(node);
    let rates = (0..3).map(|_| {
        // The kernel forgets its pages of the file: what is measured is the node, not the page cache.
        node.sh(LONG, &format!("dd if={image} iflag=nocache count=0 status=none"));
        let start = Instant::now();
        node.sh(LONG, &format!("dd if={image} of=/dev/null status=none"));
        len as f64 / start.elapsed().as_secs_f64() / 1e6
    });
    let best = rates.fold(0.0, f64::max);
    println!("dd with 512-byte reads: {best:.0} MB/s");
    assert!(lab.sent_to(node) - received < len / 16, "the node fetched again what it should have held");
    assert!(best > 200.0, "{best:.0} MB/s");
}
