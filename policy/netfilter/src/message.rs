//! Nfnetlink messages as bytes: written here, and taken apart without trusting their lengths.
//!
//! ```text
//!  nlmsghdr (16)                    nfgenmsg (4)               attributes
//!  length | type | flags | seq | 0  family | version | res_id  (length | type | value | padding)*
//! ```

/// `NLM_F_REQUEST`.
pub(crate) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`: say when done, also when all went well.
pub(crate) const ACK: u16 = 0x4;
/// `NLM_F_EXCL`: refuse what exists already.
pub(crate) const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_DUMP`: answer with many messages.
pub(crate) const DUMP: u16 = 0x300;

/// `NLA_F_NESTED`: the value is attributes itself.
const NESTED: u16 = 0x8000;
/// `NLA_F_NET_BYTEORDER`: ipset insists on it for its numbers.
const NETWORK_ORDER: u16 = 0x4000;
/// The bits of an attribute's type that are no flags.
const TYPE_MASK: u16 = 0x3fff;

/// `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// `struct nfgenmsg`.
const NFGENMSG: usize = 4;
/// The length field of an attribute has 16 bits.
pub(crate) const ATTRIBUTE_MAX: usize = u16::MAX as usize;

/// `AF_UNSPEC`, for messages about no family.
pub(crate) const NO_FAMILY: u8 = 0;

/// A message being written. The socket fills in its length and sequence number.
#[derive(Debug, Clone)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// A message of an nfnetlink subsystem.
    pub(crate) fn new(subsystem: u8, command: u8, flags: u16, family: u8) -> Self {
        Self::with_resource(u16::from_be_bytes([subsystem, command]), flags, family, 0)
    }

    /// A message of another kind than nfnetlink's, with a header of its own.
    pub(crate) fn plain(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut message = Self::with_resource(kind, flags, NO_FAMILY, 0);
        message.0.truncate(HEADER);
        message.0.extend_from_slice(header);
        message
    }

    /// A message with a resource id, which a batch uses to name its subsystem.
    pub(crate) fn with_resource(kind: u16, flags: u16, family: u8, resource: u16) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&[family, 0]);
        bytes.extend_from_slice(&resource.to_be_bytes());
        Self(bytes)
    }

    fn raw(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).expect("an attribute fits its length field");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(crate) fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.raw(kind, &[value]);
        self
    }

    /// In network order, with the flag that says so.
    pub(crate) fn net_u16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.raw(kind | NETWORK_ORDER, &value.to_be_bytes());
        self
    }

    /// In network order, with the flag that says so.
    pub(crate) fn net_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.raw(kind | NETWORK_ORDER, &value.to_be_bytes());
        self
    }

    /// In network order without the flag, as nftables wants it.
    pub(crate) fn u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.raw(kind, &value.to_be_bytes());
        self
    }

    /// As it is.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.raw(kind, value);
        self
    }

    /// An address, in network order.
    pub(crate) fn address(&mut self, kind: u16, octets: &[u8]) -> &mut Self {
        self.raw(kind | NETWORK_ORDER, octets);
        self
    }

    /// Ends in NUL.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.raw(kind, &bytes);
        self
    }

    /// Attributes inside an attribute. The caller keeps them below [`ATTRIBUTE_MAX`].
    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        fill(self);
        let length = u16::try_from(self.0.len() - start).expect("the nest was kept small enough");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&(kind | NESTED).to_ne_bytes());
        self
    }

    /// Sets more of the header's flags.
    pub(crate) fn add_flags(&mut self, more: u16) {
        let flags = u16::from_ne_bytes([self.0[6], self.0[7]]) | more;
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The finished bytes.
    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("a message is far smaller than 4 GiB");
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// A received message: its header, and what follows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// Everything behind the header.
    pub(crate) body: &'a [u8],
}

impl<'a> Received<'a> {
    /// Its attributes, if it is an nfnetlink message.
    pub(crate) fn attributes(&self) -> Attributes<'a> {
        Attributes(self.body.get(NFGENMSG..).unwrap_or_default())
    }
}

/// The messages in one datagram. Ends at the first whose length makes no sense.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let received = parse_header(datagram)?;
        let length = HEADER + received.body.len();
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        Some(received)
    })
}

fn parse_header(bytes: &[u8]) -> Option<Received<'_>> {
    let length = usize::try_from(u32_ne(bytes, 0)?).ok()?;
    Some(Received {
        kind: u16_ne(bytes, 4)?,
        flags: u16_ne(bytes, 6)?,
        sequence: u32_ne(bytes, 8)?,
        body: bytes.get(HEADER..length)?,
    })
}

/// The attributes in a stretch of bytes: type without flags, and value. Ends at the first whose
/// length makes no sense.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The first of a type.
    pub(crate) fn find(self, kind: u16) -> Option<&'a [u8]> {
        let mut all = self;
        all.find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// The first of a type, as attributes.
    pub(crate) fn nested(self, kind: u16) -> Option<Attributes<'a>> {
        self.find(kind).map(Attributes)
    }

    /// The first of a type, as text without its NUL.
    pub(crate) fn text(self, kind: u16) -> Option<&'a str> {
        self.find(kind).and_then(text)
    }

    /// The first of a type, a number in network order.
    pub(crate) fn u32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }

    /// The first of a type, a number in network order.
    pub(crate) fn u64(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }

    /// The first of a type, a number in network order.
    pub(crate) fn u16(self, kind: u16) -> Option<u16> {
        Some(u16::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }

    /// The first of a type, one byte.
    pub(crate) fn u8(self, kind: u16) -> Option<u8> {
        self.find(kind)?.first().copied()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_ne(self.0, 0)?);
        let kind = u16_ne(self.0, 2)? & TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// Text up to its NUL.
pub(crate) fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).ok()
}

fn u16_ne(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_ne(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{Attributes, DUMP, Message, messages};

    #[test]
    fn what_is_written_is_read_back() {
        let mut message = Message::new(6, 9, DUMP, 2);
        message.u8(1, 7).text(2, "selvage-a").nested(7, |nest| {
            nest.net_u32(9, 5).net_u16(4, 80);
        });
        let bytes = message.finish(42);
        let received: Vec<_> = messages(&bytes).collect();
        assert_eq!(received.len(), 1);
        assert_eq!(received[0].kind, 6 << 8 | 9);
        assert_eq!(received[0].sequence, 42);
        let attributes = received[0].attributes();
        assert_eq!(attributes.u8(1), Some(7));
        assert_eq!(attributes.text(2), Some("selvage-a"));
        let nest = attributes.nested(7).unwrap();
        assert_eq!(nest.u32(9), Some(5));
        assert_eq!(nest.u16(4), Some(80));
        assert_eq!(attributes.find(8), None);
    }

    #[test]
    fn lengths_that_lie_end_the_reading_and_nothing_else() {
        for bytes in [
            &[0, 0, 0, 0][..],
            &[3, 0, 1, 0, 9, 9, 9, 9],
            &[255, 255, 1, 0, 9],
            &[4],
        ] {
            assert_eq!(Attributes(bytes).count(), 0, "{bytes:?}");
            assert_eq!(messages(bytes).count(), 0, "{bytes:?}");
        }
    }

    #[test]
    fn a_message_that_claims_more_than_arrived_is_not_read() {
        let mut bytes = Message::new(6, 9, 0, 2).finish(1);
        bytes.truncate(18);
        assert_eq!(messages(&bytes).count(), 0);
    }
}
