//! The interfaces that broadcasts go out on.

use std::net::Ipv4Addr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;

/// Bridges that container and virtual machine managers make: a LAN is never behind them.
const CONTAINER_BRIDGES: [&str; 10] =
    ["docker", "br-", "virbr", "cni", "podman", "lxcbr", "lxdbr", "incusbr", "flannel", "cali"];

/// An IPv4 address that a broadcast can be sent from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    pub name: String,
    pub address: Ipv4Addr,
    /// Where a broadcast goes that leaves by this interface.
    pub broadcast: Ipv4Addr,
    pub loopback: bool,
}

/// Those named, or, if none are, each that is up and has carrier and broadcast but containers' bridges; and always
/// loopback, by which the nodes of one host hear each other.
pub fn usable(named: &[String]) -> std::io::Result<Vec<Interface>> {
    let mut found = Vec::new();
    for entry in getifaddrs()? {
        let Some(address) = entry.address.as_ref().and_then(|address| address.as_sockaddr_in()) else { continue };
        let loopback = entry.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        let live = entry.flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING);
        let wanted = if named.is_empty() {
            entry.flags.contains(InterfaceFlags::IFF_BROADCAST) && !is_container_bridge(&entry.interface_name)
        } else {
            named.contains(&entry.interface_name)
        };
        if live && (wanted || loopback) {
            found.push(Interface {
                name: entry.interface_name,
                address: address.ip(),
                // The kernel sends a limited broadcast by the interface that its source address belongs to; loopback
                // has none and takes its network's.
                broadcast: if loopback { Ipv4Addr::new(127, 255, 255, 255) } else { Ipv4Addr::BROADCAST },
                loopback,
            });
        }
    }
    Ok(found)
}

/// The mask of the network in which this host has an address.
pub fn mask_of(address: Ipv4Addr) -> Option<Ipv4Addr> {
    let ip = |end: Option<&SockaddrStorage>| end.and_then(|end| end.as_sockaddr_in()).map(|end| end.ip());
    let mut entries = getifaddrs().ok()?;
    entries.find(|entry| ip(entry.address.as_ref()) == Some(address)).and_then(|entry| ip(entry.netmask.as_ref()))
}

/// The interfaces named that do not exist, for an error.
pub fn missing(named: &[String]) -> std::io::Result<Vec<String>> {
    let known: Vec<String> = getifaddrs()?.map(|entry| entry.interface_name).collect();
    Ok(named.iter().filter(|name| !known.contains(name)).cloned().collect())
}

fn is_container_bridge(name: &str) -> bool {
    CONTAINER_BRIDGES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridges_of_containers_are_left_out_and_a_host_bridge_is_not() {
        assert!(
            is_container_bridge("docker0") && is_container_bridge("br-0a1b2c3d4e5f") && is_container_bridge("virbr0")
        );
        assert!(!is_container_bridge("br0") && !is_container_bridge("eth0") && !is_container_bridge("bridge"));
    }

    #[test]
    fn an_address_has_the_mask_of_its_interface_and_a_stranger_none() {
        assert_eq!(mask_of(Ipv4Addr::LOCALHOST), Some(Ipv4Addr::new(255, 0, 0, 0)));
        assert_eq!(mask_of(Ipv4Addr::new(192, 0, 2, 1)), None);
    }

    #[test]
    fn an_interface_that_does_not_exist_is_named() {
        let named = ["lo".to_owned(), "no-such-if".to_owned()];
        assert_eq!(missing(&named).unwrap(), ["no-such-if"]);
    }
}
