//! Hosts with firewalls: the ports that are documented are all that a swarm needs.

use std::time::Duration;

mod lab;

use lab::swarm::{self, MOUNT, complaint, swarmfs};
use lab::{Host, Lab, Link};

const LONG: Duration = Duration::from_secs(60);

/// What a careful administrator's host lets in before swarmfs is installed there.
const CAREFUL: &str = "table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        iif lo accept
        ct state established,related accept
    }
}
";

/// Answers to a broadcast once came to a port of the system's choice. No firewall takes them for answers, since they come
/// from another address than the question went to: behind one that followed connections a mount found nobody, with all
/// ports open that the manual names.
#[test]
fn the_file_for_nftables_is_all_that_careful_hosts_need() {
    let Some(lab) = Lab::shared(3, Link::unlimited()) else { return };
    let tree = lab.scratch().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("hello"), "hello\n").unwrap();
    for host in lab.hosts() {
        load(&lab, host, CAREFUL);
    }
    let origin = swarm::start(lab.origin(), &["serve", tree.to_str().unwrap(), "--name", "images"]);
    swarm::wait_until(swarm::SOON, "the origin serves", || origin.log().contains("key ").then_some(()));
    let shut = swarmfs(lab.host(1), &["mount", "images", MOUNT, "-o", "retry=1s"]);
    assert!(complaint(&shut).contains("firewalls of both hosts"), "{}", complaint(&shut));
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/mount/nftables-swarmfs.nft");
    for host in lab.hosts() {
        load(&lab, host, &std::fs::read_to_string(file).unwrap());
    }
    for node in lab.nodes() {
        let _mount = swarm::mount(node, "images", &[]);
        assert_eq!(node.sh(LONG, &format!("cat {MOUNT}/hello")), "hello\n");
    }
}

fn load(lab: &Lab, host: &Host, rules: &str) {
    let file = lab.scratch().join("rules.nft");
    std::fs::write(&file, rules).unwrap();
    host.sh(LONG, &format!("nft -f {}", file.display()));
}
