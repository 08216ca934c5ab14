//! Networks and ports as they are configured.

use std::net::IpAddr;

use ipnet::IpNet;

/// A list of networks.
#[derive(Clone, Debug, Default)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    pub(super) const fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// CIDRs separated by commas, none as well.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let networks: Result<Vec<IpNet>, _> = items(text).map(str::parse).collect();
        let networks = networks.map_err(|_| "each must be a network like 10.0.0.0/8 or fd00::/8".to_owned())?;
        // Addresses are judged as IPv4 when they are: such a network would never hold one.
        if networks.iter().any(|network| {
            network.prefix_len() >= 96 && network.addr().to_canonical().is_ipv4() && !network.addr().is_ipv4()
        }) {
            return Err("IPv4 networks must be written as IPv4, like 10.0.0.0/8".to_owned());
        }
        Ok(Self(networks))
    }

    /// Whether an address, canonical, is in one of them.
    pub(super) fn contain(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// A list of ports; none means any.
#[derive(Clone, Debug, Default)]
pub struct Ports(Vec<u16>);

impl Ports {
    /// Numbers separated by commas, none as well.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let ports: Result<Vec<u16>, _> = items(text).map(str::parse).collect();
        match ports {
            Ok(ports) if !ports.contains(&0) => Ok(Self(ports)),
            _ => Err("each must be a port from 1 to 65535".to_owned()),
        }
    }

    pub(super) fn allow(&self, port: u16) -> bool {
        self.0.is_empty() || self.0.contains(&port)
    }
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_as_a_list_that_may_be_empty() {
        for (text, count) in [("", 0), ("10.0.0.0/8", 1), ("10.0.0.0/8, fd00::/8,", 2), ("::/0", 1)] {
            assert_eq!(Networks::parse(text).expect(text).0.len(), count);
        }
        for wrong in ["10.0.0.0/8,everything", "10.0.0.0", "10.0.0.0/33", "::ffff:10.0.0.0/104"] {
            assert!(Networks::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ports_are_read_as_a_list_and_an_empty_one_allows_all() {
        assert!(Ports::parse("").expect("none is fine").allow(22));
        let ports = Ports::parse("443, 8443,").expect("a list");
        assert!(ports.allow(443) && ports.allow(8443) && !ports.allow(22));
        for wrong in ["0", "65536", "https", "-1", "443-445"] {
            assert!(Ports::parse(wrong).is_err(), "{wrong}");
        }
    }
}
