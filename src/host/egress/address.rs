//! Which addresses a sandbox may be connected to. Whoever runs an allowed name's DNS chooses where it points; none of
//! these choices may lead into this machine, its networks or its cloud's metadata service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// Special-purpose networks (IANA's registry), each as address and prefix length, and one lone address that a cloud
/// gives a special meaning.
const SPECIAL_V4: &[(Ipv4Addr, u32)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8),        // this network
    (Ipv4Addr::new(10, 0, 0, 0), 8),       // private
    (Ipv4Addr::new(100, 64, 0, 0), 10),    // carrier-grade NAT; Alibaba's metadata
    (Ipv4Addr::new(127, 0, 0, 0), 8),      // loopback
    (Ipv4Addr::new(168, 63, 129, 16), 32), // Azure's host agent
    (Ipv4Addr::new(169, 254, 0, 0), 16),   // link-local; metadata of most clouds
    (Ipv4Addr::new(172, 16, 0, 0), 12),    // private
    (Ipv4Addr::new(192, 0, 0, 0), 24),     // protocol assignments
    (Ipv4Addr::new(192, 0, 2, 0), 24),     // documentation
    (Ipv4Addr::new(192, 88, 99, 0), 24),   // 6to4 relays
    (Ipv4Addr::new(192, 168, 0, 0), 16),   // private
    (Ipv4Addr::new(198, 18, 0, 0), 15),    // benchmarks: the sandboxes' synthetic addresses
    (Ipv4Addr::new(198, 51, 100, 0), 24),  // documentation
    (Ipv4Addr::new(203, 0, 113, 0), 24),   // documentation
    (Ipv4Addr::new(224, 0, 0, 0), 4),      // multicast
    (Ipv4Addr::new(240, 0, 0, 0), 4),      // reserved; broadcast
];

/// All of IPv6 outside this is special: loopback, v4-mapped and -translated, NAT64, unique local, link-local,
/// multicast and what is not assigned.
const GLOBAL_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Special networks within [`GLOBAL_V6`].
const SPECIAL_V6: &[(Ipv6Addr, u32)] = &[
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23), // protocol assignments, with Teredo's tunnelled v4
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32), // documentation
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16), // 6to4: a v4 address inside
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20), // documentation
];

/// Whether the address belongs to the public internet.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !SPECIAL_V4.iter().any(|&(net, bits)| {
            let mask = u32::MAX << (32 - bits);
            v4.to_bits() & mask == net.to_bits()
        }),
        IpAddr::V6(v6) => {
            let within = |&(net, bits): &(Ipv6Addr, u32)| v6.to_bits() & (u128::MAX << (128 - bits)) == net.to_bits();
            within(&GLOBAL_V6) && !SPECIAL_V6.iter().any(within)
        }
    }
}

/// Whether the address is one of this machine's own, on any interface, so that dialling it would reach a service here.
///
/// Asks the kernel, which knows them all at this moment, in two ways: a packet to an own address gets that address as
/// its source, except within a whole prefix that is local (127.9.9.9 gets 127.0.0.1); and only own addresses can be
/// bound, except where an administrator allowed binding any (`ip_nonlocal_bind`). Nothing is sent.
pub(super) fn is_own(address: IpAddr) -> bool {
    let (any, nobodys): (IpAddr, IpAddr) = match address {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    };
    // Without a socket nothing can be told, and dialling would fail as well: such an address is not for use.
    let Ok(socket) = UdpSocket::bind((any, 0)) else { return true };
    const DISCARD: u16 = 9;
    let source = socket.connect((address, DISCARD)).and_then(|()| socket.local_addr());
    let can_bind = |address: IpAddr| UdpSocket::bind((address, 0)).is_ok();
    source.is_ok_and(|source| source.ip() == address) || (can_bind(address) && !can_bind(nobodys))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_ends_of_every_special_network_are_refused_and_the_addresses_beside_them_are_not() {
        let v4 = [
            "0.0.0.0 0.255.255.255",
            "10.0.0.0 10.255.255.255",
            "100.64.0.0 100.127.255.255",
            "127.0.0.1 127.255.255.255",
            "168.63.129.16 168.63.129.16",
            "169.254.0.0 169.254.255.255",
            "169.254.169.254 169.254.170.2",
            "172.16.0.0 172.31.255.255",
            "192.0.0.0 192.0.0.255",
            "192.0.2.0 192.0.2.255",
            "192.88.99.0 192.88.99.255",
            "192.168.0.0 192.168.255.255",
            "198.18.0.0 198.19.255.255",
            "198.51.100.0 198.51.100.255",
            "203.0.113.0 203.0.113.255",
            "224.0.0.0 239.255.255.255",
            "240.0.0.0 255.255.255.255",
        ];
        let v6 = [
            ":: ::1",
            "::ffff:0:0 ::ffff:255.255.255.255",
            "::ffff:127.0.0.1 ::ffff:8.8.8.8",
            "::8.8.8.8 ::10.0.0.1",
            "::ffff:0:8.8.8.8 ::ffff:0:10.0.0.1",
            "64:ff9b:: 64:ff9b::ffff:ffff",
            "64:ff9b:1:: 64:ff9b:1:ffff::",
            "100:: 100::ffff",
            "2001:: 2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff",
            "2001:db8:: 2001:db8:ffff::1",
            "2002:: 2002:ffff::1",
            "3fff:: 3fff:fff::1",
            "5f00:: 5f00:ffff::1",
            "fc00:: fdff:ffff::1",
            "fd00:ec2::254 fd20:ce::254",
            "fe80:: febf:ffff::1",
            "fec0:: feff:ffff::1",
            "ff00:: ffff:ffff::1",
        ];
        for pair in v4.iter().chain(&v6) {
            for address in pair.split(' ') {
                assert!(!is_public(address.parse().unwrap()), "{address}");
            }
        }
        let public = [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "168.63.129.15",
            "168.63.129.17",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "8.8.8.8",
            "2000::1",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2001:db9::1",
            "2003::1",
            "2606:4700::1111",
            "3fff:1000::1",
        ];
        for address in public {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn the_kernel_knows_which_addresses_are_ours() {
        assert!(is_own("127.0.0.1".parse().unwrap()));
        assert!(is_own("127.9.9.9".parse().unwrap()), "within a prefix that is local as a whole");
        assert!(!is_own("192.0.2.1".parse().unwrap()));
        assert!(!is_own("2606:4700::1111".parse().unwrap()));
    }

    /// In a network of its own, which only this test's thread enters.
    #[test]
    fn public_addresses_of_an_interface_are_ours_even_where_any_address_can_be_bound() {
        let ip =
            |args: &str| std::process::Command::new("ip").args(args.split(' ')).status().is_ok_and(|s| s.success());
        let check = move || {
            // SAFETY: leaves the network namespace only; no file descriptor table or memory is shared or lost by that.
            if unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.is_err() {
                return println!("skipped: a network namespace needs root");
            }
            let setup = [
                "link set lo up",
                "addr add 5.5.5.5/32 dev lo",
                "addr add 6.6.6.0/24 dev lo",
                "addr add 2606::5/128 dev lo nodad",
            ];
            if !setup.into_iter().all(ip) {
                return println!("skipped: the ip program is missing or can't set addresses");
            }
            for ours in ["5.5.5.5", "6.6.6.0", "6.6.6.7", "2606::5"] {
                assert!(is_own(ours.parse().unwrap()), "{ours}");
            }
            assert!(!is_own("5.5.5.6".parse().unwrap()));
            // Of this namespace, as all below /proc/sys/net.
            let allow_any = |version| std::fs::write(format!("/proc/sys/net/{version}/ip_nonlocal_bind"), "1").is_ok();
            if !["ipv4", "ipv6"].into_iter().all(allow_any) {
                return println!("skipped: /proc/sys can't be written");
            }
            assert!(UdpSocket::bind("192.0.2.1:0").is_ok() && UdpSocket::bind("[2001:db8::1]:0").is_ok());
            assert!(is_own("5.5.5.5".parse().unwrap()));
            assert!(is_own("2606::5".parse().unwrap()));
            assert!(!is_own("5.5.5.6".parse().unwrap()));
        };
        std::thread::spawn(check).join().unwrap();
    }

    proptest! {
        #[test]
        fn std_finds_nothing_special_in_what_passes(bits: u32) {
            let v4 = Ipv4Addr::from_bits(bits);
            if is_public(v4.into()) {
                prop_assert!(!(v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_broadcast()
                    || v4.is_documentation() || v4.is_multicast() || v4.is_unspecified()));
            }
            prop_assert!(!is_public(v4.to_ipv6_mapped().into()));
            prop_assert!(!is_public(v4.to_ipv6_compatible().into()));
        }
    }
}
