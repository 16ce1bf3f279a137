//! One request loop for everything: many requests in a send, answers told apart by sequence number.
//!
//! Only the last request of a send asks for an acknowledgement: the kernel handles a send in order, before
//! it returns, and reports errors without being asked. No error before the last acknowledgement is success.

use std::io;
use std::time::{Duration, Instant};

use rtnetlink::packet_core::{
    Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NlasIterator,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::Error;

/// Messages in one send: their errors must fit in the receive buffer (about 1 KiB each of 208 KiB).
const BATCH: usize = 64;
/// A single answer is at most a few kilobytes, so a socket starts with this: the plugin lives for a
/// millisecond, and each page that it touches costs 2 µs of it.
const ANSWER: usize = 8 * 1024;
/// The longest datagram that the kernel makes for a dump; it makes none longer than what it is offered.
const DUMP: usize = 32 * 1024;
/// Length of a netlink message header.
const HEADER: usize = 16;
/// How often a dump is tried again when objects came or went under it.
const DUMP_TRIES: u32 = 16;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// The kernel's own words about an error.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// One request, the words for its errors, and which refusals mean that nothing was to be done.
#[derive(Debug, Clone)]
pub struct Request {
    what: String,
    payload: Payload,
    flags: u16,
    fine: &'static [Errno],
}

/// What a request says, behind its header.
#[derive(Debug, Clone)]
enum Payload {
    /// Of rtnetlink.
    Route(RouteNetlinkMessage),
    /// Of any other family, written already.
    Raw { kind: u16, body: Vec<u8> },
}

impl Request {
    /// `flags` beside `NLM_F_REQUEST`; `fine` are the refusals that mean "it is so already".
    pub(crate) fn new(
        what: String,
        message: RouteNetlinkMessage,
        flags: u16,
        fine: &'static [Errno],
    ) -> Self {
        Request {
            what,
            payload: Payload::Route(message),
            flags,
            fine,
        }
    }

    /// The same, of another family than rtnetlink: `kind` and `body`, of whole words, as they are sent.
    pub(crate) fn raw(what: String, kind: u16, body: Vec<u8>, fine: &'static [Errno]) -> Self {
        Request {
            what,
            payload: Payload::Raw { kind, body },
            flags: 0,
            fine,
        }
    }

    /// What it asks for, in words: `add route 10.0.0.7/32`.
    pub fn what(&self) -> &str {
        &self.what
    }

    fn write(&self, sequence: u32, more: u16, out: &mut Vec<u8>) {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | self.flags | more;
        header.sequence_number = sequence;
        let start = out.len();
        match &self.payload {
            Payload::Route(message) => {
                let mut message =
                    NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message.clone()));
                message.finalize();
                out.resize(start + message.buffer_len(), 0);
                message.serialize(&mut out[start..]);
            }
            Payload::Raw { kind, body } => {
                header.message_type = *kind;
                header.length = u32::try_from(HEADER + body.len()).expect("a request is short");
                out.resize(start + HEADER, 0);
                header.emit(&mut out[start..]);
                out.extend(body);
            }
        }
    }
}

/// One object in an answer: the message type and the body, undecoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `RTM_NEWLINK` and so on.
    pub kind: u16,
    /// What follows the netlink header.
    pub body: Vec<u8>,
}

/// What came of a request that was not refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// False if things were already as asked for.
    pub changed: bool,
    /// The objects that the kernel sent, for requests that ask for some.
    pub messages: Vec<Message>,
}

/// A netlink socket in the network namespace where it was opened, whatever its thread does later.
///
/// *Shape*: one at a time: a call returns when all its answers are in.
pub struct Socket {
    socket: sys::Socket,
    sequence: u32,
    out: Vec<u8>,
    buffer: Vec<u8>,
}

impl Socket {
    /// How long a call waits for answers. The kernel works inside `send`, which no deadline can cut short;
    /// once that returns the answers are there, so this is reached only if they are lost.
    pub const DEADLINE: Duration = Duration::from_secs(5);

    /// Opens a socket in the calling thread's network namespace.
    ///
    /// *Errors*: [`Error::Socket`]. *Cost*: four system calls.
    pub fn open() -> Result<Self, Error> {
        Self::open_for(sys::protocols::NETLINK_ROUTE)
    }

    /// The same for another family than rtnetlink, `NETLINK_…` of linux/netlink.h.
    pub(crate) fn open_for(protocol: isize) -> Result<Self, Error> {
        let wrap = |doing| move |reason| Error::Socket { doing, reason };
        let socket = sys::Socket::new(protocol).map_err(wrap("open"))?;
        socket
            .set_ext_ack(true)
            .map_err(wrap("ask for the kernel's words"))?;
        // An error then carries the request's header only, not all of it.
        socket
            .set_cap_ack(true)
            .map_err(wrap("ask for short errors"))?;
        socket
            .set_netlink_get_strict_chk(true)
            .map_err(wrap("ask for strict checking"))?;
        Ok(Socket {
            socket,
            sequence: 0,
            out: Vec::with_capacity(4096),
            buffer: vec![0; ANSWER],
        })
    }

    /// Sends all requests, and tells for each what came of it, in order. One that is refused does not keep
    /// those behind it from being tried.
    ///
    /// *Errors*: the outer one if the socket itself fails (what was done is then unknown); inside
    /// [`Error::Kernel`]. *Cost*: a send and a receive for 64 requests, one more receive for each refusal.
    pub fn run(&mut self, requests: &[Request]) -> Result<Vec<Result<Reply, Error>>, Error> {
        let mut results = Vec::with_capacity(requests.len());
        for batch in requests.chunks(BATCH) {
            self.run_batch(batch, &mut results)?;
        }
        Ok(results)
    }

    /// As [`Socket::run`]; the first refusal is the error.
    pub fn run_all(&mut self, requests: &[Request]) -> Result<Vec<Reply>, Error> {
        self.run(requests)?.into_iter().collect()
    }

    /// Sends one request.
    pub fn run_one(&mut self, request: Request) -> Result<Reply, Error> {
        let mut results = Vec::with_capacity(1);
        self.run_batch(&[request], &mut results)?;
        results.pop().expect("one result for each request")
    }

    fn run_batch(
        &mut self,
        batch: &[Request],
        results: &mut Vec<Result<Reply, Error>>,
    ) -> Result<(), Error> {
        let Some(last) = batch.len().checked_sub(1) else {
            return Ok(());
        };
        let first = self.sequence.wrapping_add(1);
        self.out.clear();
        for (at, request) in batch.iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            let more = if at == last { NLM_F_ACK } else { 0 };
            request.write(self.sequence, more, &mut self.out);
        }
        self.send()?;

        let start = results.len();
        results.extend(batch.iter().map(|_| {
            Ok(Reply {
                changed: true,
                messages: Vec::new(),
            })
        }));
        let deadline = Instant::now() + Self::DEADLINE;
        let mut done = false;
        while !done {
            let length = self.receive(&batch[last].what, deadline)?;
            for (header, body) in split(&self.buffer[..length]) {
                let at = header.sequence.wrapping_sub(first) as usize;
                let Some(request) = batch.get(at) else {
                    continue; // an answer to an earlier call that gave up waiting
                };
                let result = &mut results[start + at];
                match header.kind {
                    NLMSG_ERROR => {
                        match error_of(request, body) {
                            Some(Ok(())) => {
                                if let Ok(reply) = result {
                                    reply.changed = false;
                                }
                            }
                            Some(Err(error)) => *result = Err(error),
                            None => {}
                        }
                        done |= at == last;
                    }
                    kind => {
                        if let Ok(reply) = result {
                            reply.messages.push(Message {
                                kind,
                                body: body.to_vec(),
                            });
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// All objects that a request matches, as one consistent picture.
    ///
    /// *Errors*: [`Error::Interrupted`] if objects kept coming and going for 16 tries.
    /// *Cost*: linear in the objects; about one system call for 32 KiB of them.
    pub fn dump(&mut self, request: &Request) -> Result<Vec<Message>, Error> {
        for _ in 0..DUMP_TRIES {
            let mut messages = Vec::new();
            let whole = self.walk(request, |kind, body| {
                messages.push(Message {
                    kind,
                    body: body.to_vec(),
                });
            })?;
            if whole {
                return Ok(messages);
            }
        }
        Err(Error::Interrupted {
            what: request.what.clone(),
            tries: DUMP_TRIES,
        })
    }

    /// Shows `take` all objects that a request matches, one by one; false if objects came and went meanwhile, so that
    /// some may have been left out or shown twice.
    pub(crate) fn walk(
        &mut self,
        request: &Request,
        mut take: impl FnMut(u16, &[u8]),
    ) -> Result<bool, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        self.out.clear();
        request.write(sequence, NLM_F_DUMP, &mut self.out);
        self.send()?;
        self.buffer.resize(DUMP, 0);
        let deadline = Instant::now() + Self::DEADLINE;
        let mut consistent = true;
        loop {
            let length = self.receive(&request.what, deadline)?;
            for (header, body) in split(&self.buffer[..length]) {
                if header.sequence != sequence {
                    continue;
                }
                consistent &= header.flags & NLM_F_DUMP_INTR == 0;
                match header.kind {
                    // The code of a "done" says how the dump ended, in the form of an error.
                    NLMSG_DONE | NLMSG_ERROR => {
                        return match error_of(request, body) {
                            Some(Err(error)) => Err(error),
                            Some(Ok(())) | None => Ok(consistent),
                        };
                    }
                    kind => take(kind, body),
                }
            }
        }
    }

    fn send(&self) -> Result<(), Error> {
        let sent = self
            .socket
            .send_to(&self.out, &sys::SocketAddr::new(0, 0), 0);
        sent.map(drop).map_err(|reason| Error::Socket {
            doing: "send",
            reason,
        })
    }

    /// Fills the buffer with one datagram. Looks before it waits: the kernel has usually answered.
    fn receive(&mut self, what: &str, deadline: Instant) -> Result<usize, Error> {
        let wrap = |doing| {
            move |errno: Errno| Error::Socket {
                doing,
                reason: errno.into(),
            }
        };
        loop {
            match rustix::net::recv(&self.socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((length, _)) => return Ok(length),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Error::Timeout {
                            what: what.to_owned(),
                            after: Self::DEADLINE,
                        });
                    }
                    let left = Timespec {
                        tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                        tv_nsec: left.subsec_nanos().into(),
                    };
                    let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
                    match poll(&mut fds, Some(&left)) {
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(errno) => return Err(wrap("wait")(errno)),
                    }
                }
                Err(errno) => return Err(wrap("receive")(errno)),
            }
        }
    }
}

/// The parts of a netlink header that tell answers apart.
pub(crate) struct Header {
    pub(crate) kind: u16,
    flags: u16,
    sequence: u32,
}

/// The messages of a datagram. Stops at one whose length cannot be.
pub(crate) fn split(mut datagram: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = datagram.split_first_chunk::<HEADER>()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let body = datagram.get(HEADER..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        let header = Header {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
        };
        Some((header, body))
    })
}

/// `None` for success, `Some(Ok)` for a refusal that means "it is so already".
fn error_of(request: &Request, body: &[u8]) -> Option<Result<(), Error>> {
    let Some((code, rest)) = body.split_first_chunk::<4>() else {
        return Some(Err(Error::Decode {
            what: request.what.clone(),
            reason: "error without a code".into(),
        }));
    };
    let code = i32::from_ne_bytes(*code);
    if code == 0 {
        return None;
    }
    let errno = Errno::from_raw_os_error(code.wrapping_neg());
    if request.fine.contains(&errno) {
        return Some(Ok(()));
    }
    let detail = rest.get(HEADER..).and_then(kernels_words);
    Some(Err(Error::Kernel {
        what: request.what.clone(),
        reason: io::Error::from_raw_os_error(code.wrapping_neg()),
        detail,
    }))
}

/// The text among the attributes behind an error.
fn kernels_words(attributes: &[u8]) -> Option<String> {
    NlasIterator::new(attributes)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .map(|attribute| {
            let text = String::from_utf8_lossy(attribute.value());
            text.trim_end_matches('\0').to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32, kind: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(0u16.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn a_datagram_splits_into_its_messages_whatever_their_padding() {
        let mut datagram = message(19, 16, 1, &[1, 2, 3, 0]);
        datagram.extend(message(20, 24, 2, &[4, 5, 6, 7]));
        let seen: Vec<_> = split(&datagram)
            .map(|(header, body)| (header.kind, header.sequence, body.to_vec()))
            .collect();
        assert_eq!(seen, [(16, 1, vec![1, 2, 3]), (24, 2, vec![4, 5, 6, 7])]);
    }

    #[test]
    fn a_message_that_claims_more_or_less_than_there_is_ends_the_datagram() {
        for length in [0, 8, 15, 21, u32::MAX] {
            assert_eq!(
                split(&message(length, 16, 1, &[0; 4])).count(),
                0,
                "{length}"
            );
        }
    }
}
