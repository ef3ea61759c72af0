//! Addresses in text.

use std::fmt::Display;
use std::net::Ipv6Addr;

/// An address or a host name as it stands in front of a port and in a URI: an IPv6 address is put in brackets.
pub fn host(address: &str) -> String {
    if address.parse::<Ipv6Addr>().is_ok() { format!("[{address}]") } else { address.to_owned() }
}

/// `host:port`.
pub fn with_port(address: &str, port: impl Display) -> String {
    format!("{}:{port}", host(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_is_put_in_brackets_before_a_port() {
        assert_eq!(with_port("fd00::7", 7070), "[fd00::7]:7070");
        assert_eq!(with_port("::1", 80).parse(), Ok(std::net::SocketAddr::from((Ipv6Addr::LOCALHOST, 80))));
        for plain in ["10.0.0.7", "w1.internal", "[fd00::7]"] {
            assert_eq!(host(plain), plain);
        }
    }
}
