//! What a packet's first bytes say: who to whom, by which protocol and ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocols whose header begins with two ports: TCP, DCCP, UDP, SCTP, UDP-Lite.
const WITH_PORTS: [u8; 5] = [6, 33, 17, 132, 136];

/// IPv6's extension headers: hop-by-hop options, routing, destination options, mobility, HIP, shim6.
const EXTENSIONS: [u8; 6] = [0, 43, 60, 135, 139, 140];
/// Two that measure themselves differently: fragment, authentication.
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;

/// The part of an IP packet's headers that says which flow it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Who sent it.
    pub source: IpAddr,
    /// Whom to, of the same family.
    pub destination: IpAddr,
    /// The number of the transport protocol, behind IPv6's extension headers.
    pub protocol: u8,
    /// Source and destination port; `None` of a protocol without, of a later fragment, and when
    /// the bytes end before.
    pub ports: Option<(u16, u16)>,
    /// Bytes of the whole packet, as its IP header says.
    pub length: u32,
}

/// Reads the headers at the beginning of an IP packet; `None` when it is none, or ends too early.
///
/// *Cost*: linear in IPv6's extension headers that are there.
#[must_use]
pub fn parse_header(packet: &[u8]) -> Option<Header> {
    match packet.first()? >> 4 {
        4 => parse_v4(packet),
        6 => parse_v6(packet),
        _ => None,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes(two.try_into().ok()?))
}

fn ports(protocol: u8, segment: Option<&[u8]>) -> Option<(u16, u16)> {
    let segment = segment.filter(|_| WITH_PORTS.contains(&protocol))?;
    Some((u16_at(segment, 0)?, u16_at(segment, 2)?))
}

fn parse_v4(packet: &[u8]) -> Option<Header> {
    let address = |at| {
        Some(Ipv4Addr::from(
            <[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?,
        ))
    };
    let protocol = *packet.get(9)?;
    let length = usize::from(packet.first()? & 0xf) * 4;
    let later_fragment = u16_at(packet, 6)? & 0x1fff != 0;
    let segment = packet.get(length.max(20)..).filter(|_| !later_fragment);
    Some(Header {
        source: address(12)?.into(),
        destination: address(16)?.into(),
        protocol,
        ports: ports(protocol, segment),
        length: u16_at(packet, 2)?.into(),
    })
}

fn parse_v6(packet: &[u8]) -> Option<Header> {
    let address = |at| {
        Some(Ipv6Addr::from(
            <[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?,
        ))
    };
    let (protocol, segment) = behind_extensions(*packet.get(6)?, packet.get(40..)?);
    Some(Header {
        source: address(8)?.into(),
        destination: address(24)?.into(),
        protocol,
        ports: ports(protocol, segment),
        length: u32::from(u16_at(packet, 4)?) + 40,
    })
}

/// The transport protocol and its bytes; no bytes for a later fragment. When the packet ends inside
/// the extension headers, the last one that could be read.
fn behind_extensions(mut protocol: u8, mut rest: &[u8]) -> (u8, Option<&[u8]>) {
    loop {
        let (Some(&next), Some(&units)) = (rest.first(), rest.get(1)) else {
            return (protocol, Some(rest));
        };
        let length = match protocol {
            FRAGMENT => {
                if u16_at(rest, 2).is_none_or(|offset| offset >> 3 != 0) {
                    return (next, None);
                }
                8
            }
            AUTHENTICATION => (usize::from(units) + 2) * 4,
            extension if EXTENSIONS.contains(&extension) => (usize::from(units) + 1) * 8,
            _ => return (protocol, Some(rest)),
        };
        let Some(behind) = rest.get(length..) else {
            return (next, None);
        };
        (protocol, rest) = (next, behind);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::parse_header;

    fn v4(fragment: u16, protocol: u8, options: usize, segment: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45 + u8::try_from(options).unwrap(), 0, 1, 44, 0, 0];
        packet.extend(fragment.to_be_bytes());
        packet.extend([64, protocol, 0, 0, 10, 40, 0, 1, 10, 40, 0, 2]);
        packet.extend(vec![1; 4 * options]);
        packet.extend(segment);
        packet
    }

    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 100, next, 64];
        for last in [1, 2] {
            packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        packet.extend(rest);
        packet
    }

    const PORTS: [u8; 4] = [0x10, 0, 0, 80];

    #[test]
    fn ports_are_read_where_they_are_and_only_there() {
        let hop = [60, 0, 0, 0, 0, 0, 0, 0];
        let options = [6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let behind_two = [&hop[..], &options, &PORTS].concat();
        let first = [&[17, 0, 0, 1, 0, 0, 0, 9][..], &PORTS].concat();
        let later = [&[17, 0, 0, 8, 0, 0, 0, 9][..], &PORTS].concat();
        let authenticated = [&[6, 4][..], &[0; 22], &PORTS].concat();
        let both = Some((0x1000, 80));
        for (what, packet, protocol, ports) in [
            ("TCP", v4(0x4000, 6, 0, &PORTS), 6, both),
            ("SCTP behind IP options", v4(0, 132, 3, &PORTS), 132, both),
            (
                "first of two fragments",
                v4(0x2000, 17, 0, &PORTS),
                17,
                both,
            ),
            ("second fragment", v4(0x0001, 17, 0, &PORTS), 17, None),
            ("ICMP", v4(0, 1, 0, &PORTS), 1, None),
            ("cut short", v4(0, 6, 0, &PORTS[..3]), 6, None),
            ("IPv6", v6(6, &PORTS), 6, both),
            ("IPv6, two extensions", v6(0, &behind_two), 6, both),
            ("IPv6, first fragment", v6(44, &first), 17, both),
            ("IPv6, later fragment", v6(44, &later), 17, None),
            ("IPv6, authenticated", v6(51, &authenticated), 6, both),
            ("IPv6, cut in an extension", v6(0, &hop[..4]), 60, None),
            ("ICMPv6", v6(58, &PORTS), 58, None),
        ] {
            let header = parse_header(&packet).unwrap();
            assert_eq!((header.protocol, header.ports), (protocol, ports), "{what}");
        }
    }

    #[test]
    fn addresses_and_length_are_the_headers() {
        let header = parse_header(&v4(0, 6, 0, &PORTS)).unwrap();
        assert_eq!(header.source.to_string(), "10.40.0.1");
        assert_eq!(header.destination.to_string(), "10.40.0.2");
        assert_eq!(header.length, 300);
        let header = parse_header(&v6(6, &PORTS)).unwrap();
        assert_eq!(header.source.to_string(), "fd00::1");
        assert_eq!(header.destination.to_string(), "fd00::2");
        assert_eq!(header.length, 140);
    }

    #[test]
    fn what_is_no_ip_packet_has_no_header() {
        for bytes in [
            &[][..],
            &[0x45],
            &[0x10; 60],
            &v4(0, 6, 0, &[])[..19],
            &v6(6, &[])[..39],
        ] {
            assert_eq!(parse_header(bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reading_panic(
            version in prop::sample::select(vec![0x45_u8, 0x4f, 0x40, 0x60]),
            next in prop::sample::select(vec![0_u8, 44, 51, 60, 6, 255]),
            mut bytes in prop::collection::vec(any::<u8>(), 0..128),
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = version;
            }
            if let Some(it) = bytes.get_mut(6) {
                *it = next;
            }
            let _ = parse_header(&bytes);
        }
    }
}
