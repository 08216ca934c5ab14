//! Which addresses are public: everything else is somebody's private network, or nothing at all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use ipnet::{Ipv4Net, Ipv6Net};

/// Whether an address, canonical, is one of the public Internet.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !NOT_PUBLIC_V4.iter().any(|network| network.contains(&address)),
        IpAddr::V6(address) => {
            GLOBAL_UNICAST_V6.contains(&address) && !NOT_PUBLIC_V6.iter().any(|network| network.contains(&address))
        }
    }
}

const fn v4(a: u8, b: u8, c: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), prefix)
}

const fn v6(a: u16, b: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix)
}

/// IANA IPv4 Special-Purpose Address Registry, with multicast and the reserved block.
static NOT_PUBLIC_V4: LazyLock<[Ipv4Net; 15]> = LazyLock::new(|| {
    [
        v4(0, 0, 0, 8),
        v4(10, 0, 0, 8),
        v4(100, 64, 0, 10),
        v4(127, 0, 0, 8),
        v4(169, 254, 0, 16),
        v4(172, 16, 0, 12),
        v4(192, 0, 0, 24),
        v4(192, 0, 2, 24),
        v4(192, 88, 99, 24),
        v4(192, 168, 0, 16),
        v4(198, 18, 0, 15),
        v4(198, 51, 100, 24),
        v4(203, 0, 113, 24),
        v4(224, 0, 0, 4),
        v4(240, 0, 0, 4),
    ]
});

/// The only IPv6 block that IANA has given out as global unicast.
const GLOBAL_UNICAST_V6: Ipv6Net = v6(0x2000, 0, 3);

/// What is not public within it: protocol assignments (Teredo among them), documentation, 6to4.
const NOT_PUBLIC_V6: [Ipv6Net; 4] = [v6(0x2001, 0, 23), v6(0x2001, 0x0db8, 32), v6(0x2002, 0, 16), v6(0x3fff, 0, 20)];
