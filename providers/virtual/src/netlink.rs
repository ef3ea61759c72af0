//! Links, addresses and routes of the network namespace that the calling thread is in, over a netlink socket (rtnetlink(7)).

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::range::Range;

/// One datagram of a dump; the kernel's are at most 32 KiB.
const DATAGRAM: usize = 64 << 10;

pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// A link as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub is_up: bool,
    /// What it was made for, as its maker wrote it.
    pub alias: Option<String>,
    /// The index of the bridge that it is in.
    pub bridge: Option<u32>,
}

/// Both ends of a node's link.
pub struct Veth<'a> {
    pub host: &'a str,
    pub alias: &'a str,
    /// The index of the bridge that the host's end is put into.
    pub bridge: u32,
    pub node: &'a str,
    pub mac: [u8; 6],
    /// A process in the network namespace of the node's end.
    pub process: u32,
}

impl Netlink {
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Every link of the namespace.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let answers = self.send(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        let link = |answer| if let RouteNetlinkMessage::NewLink(message) = answer { Some(read_link(&message)) } else { None };
        Ok(answers.into_iter().filter_map(link).collect())
    }

    /// A link by its name; none if there is none.
    pub fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.send(RouteNetlinkMessage::GetLink(message), 0) {
            Ok(answers) => {
                let link = |answer: &_| if let RouteNetlinkMessage::NewLink(message) = answer { Some(read_link(message)) } else { None };
                Ok(answers.iter().find_map(link))
            }
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a bridge that is up. It learns and forwards at once, without looking for loops.
    pub fn add_bridge(&mut self, name: &str, alias: &str, mac: [u8; 6]) -> io::Result<()> {
        let data = InfoData::Bridge(vec![InfoBridge::ForwardDelay(0), InfoBridge::MulticastSnooping(false)]);
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(data)]),
        ];
        self.send(RouteNetlinkMessage::NewLink(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)?;
        self.set_alias(name, alias)
    }

    /// Makes a pair of links at once: the host's end in the bridge and up, the node's end in the node's namespace.
    pub fn add_veth(&mut self, veth: &Veth<'_>) -> io::Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(veth.node.to_owned()),
            LinkAttribute::Address(veth.mac.to_vec()),
            LinkAttribute::NetNsPid(veth.process),
        ];
        let data = InfoData::Veth(InfoVeth::Peer(peer));
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName(veth.host.to_owned()),
            LinkAttribute::Controller(veth.bridge),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(data)]),
        ];
        self.send(RouteNetlinkMessage::NewLink(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)?;
        self.set_alias(veth.host, veth.alias)
    }

    fn set_alias(&mut self, name: &str, alias: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::IfAlias(alias.to_owned())];
        self.send(RouteNetlinkMessage::SetLink(message), NLM_F_ACK).map(drop)
    }

    /// Switches a link on or off.
    pub fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        message.header.change_mask = LinkFlags::Up;
        self.send(RouteNetlinkMessage::SetLink(message), NLM_F_ACK).map(drop)
    }

    /// Removes a link, and with it the other end of a pair. One that is missing is fine.
    pub fn remove_link(&mut self, name: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.send(RouteNetlinkMessage::DelLink(message), NLM_F_ACK) {
            Err(error) if !is_missing(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// The IPv4 addresses of all links, each with its link's index and the length of its prefix.
    pub fn addresses(&mut self) -> io::Result<Vec<(u32, Ipv4Addr, u8)>> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        let answers = self.send(RouteNetlinkMessage::GetAddress(message), NLM_F_DUMP)?;
        let address = |answer: RouteNetlinkMessage| {
            let RouteNetlinkMessage::NewAddress(message) = answer else { return None };
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                _ => None,
            });
            Some((message.header.index, local?, message.header.prefix_len))
        };
        Ok(answers.into_iter().filter_map(address).collect())
    }

    /// Gives a link an address. One that it has is fine.
    pub fn add_address(&mut self, index: u32, address: Ipv4Addr, range: Range) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.index = index;
        message.header.prefix_len = range.prefix();
        message.attributes = vec![
            AddressAttribute::Local(address.into()),
            AddressAttribute::Address(address.into()),
            AddressAttribute::Broadcast(range.broadcast()),
        ];
        self.send(RouteNetlinkMessage::NewAddress(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    /// Takes an address from a link.
    pub fn remove_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.index = index;
        message.header.prefix_len = prefix;
        message.attributes = vec![AddressAttribute::Local(address.into())];
        match self.send(RouteNetlinkMessage::DelAddress(message), NLM_F_ACK) {
            // Somebody else took it meanwhile.
            Err(error) if error.raw_os_error() == Some(nix::libc::EADDRNOTAVAIL) => Ok(()),
            result => result.map(drop),
        }
    }

    /// Sends what has no way of its own to a gateway.
    pub fn add_default_route(&mut self, gateway: Ipv4Addr) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
        self.send(RouteNetlinkMessage::NewRoute(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    /// The destinations of all IPv4 routes but the default one, and the links that default routes lead to.
    pub fn routes(&mut self) -> io::Result<Routes> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        let mut routes = Routes::default();
        for answer in self.send(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP)? {
            let RouteNetlinkMessage::NewRoute(message) = answer else { continue };
            if message.header.table != RouteHeader::RT_TABLE_MAIN {
                continue;
            }
            let (mut to, mut out) = (None, None);
            for attribute in &message.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(address)) => to = Some(*address),
                    RouteAttribute::Oif(index) => out = Some(*index),
                    _ => {}
                }
            }
            match to {
                Some(address) => routes.destinations.push((address, message.header.destination_prefix_length, out)),
                None => routes.default_links.extend(out),
            }
        }
        Ok(routes)
    }

    /// Sends a request and collects what is answered before the end of the dump, the acknowledgement or the first answer.
    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut buffer = vec![0; packet.buffer_len()];
        packet.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;
        let mut answers = Vec::new();
        loop {
            let mut received = Vec::with_capacity(DATAGRAM);
            self.socket.recv(&mut received, 0)?;
            let mut rest = received.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                // Each message is padded to four bytes.
                let length = (answer.header.length as usize).next_multiple_of(4).min(rest.len());
                if length == 0 {
                    return Err(io::Error::from(io::ErrorKind::InvalidData));
                }
                rest = &rest[length..];
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok(answers),
                        Some(_) => return Err(error.to_io()),
                    },
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::InnerMessage(message) => {
                        answers.push(message);
                        if flags & (NLM_F_DUMP | NLM_F_ACK) == 0 {
                            return Ok(answers);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The routes of the main table.
#[derive(Debug, Default)]
pub struct Routes {
    /// Address, length of the prefix, link.
    pub destinations: Vec<(Ipv4Addr, u8, Option<u32>)>,
    pub default_links: Vec<u32>,
}

fn read_link(message: &LinkMessage) -> Link {
    let is_up = message.header.flags.contains(LinkFlags::Up);
    let mut link = Link { index: message.header.index, name: String::new(), is_up, alias: None, bridge: None };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(bridge) => link.bridge = Some(*bridge),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            _ => {}
        }
    }
    link
}

/// Whether the kernel says that there is no such link.
fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::ENODEV)
}
