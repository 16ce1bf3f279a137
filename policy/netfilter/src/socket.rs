//! One blocking nfnetlink socket: a request, its replies, an acknowledgement, within a deadline.

use std::io;
use std::time::{Duration, Instant};

use rtnetlink::sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::error::{Error, Refusal};
use crate::message::{ACK, Attributes, HEADER, Message, NO_FAMILY, Received, messages, u32_ne};

/// `NLMSG_ERROR`: also the acknowledgement, with number 0.
const MSG_ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
const MSG_DONE: u16 = 3;
/// `NLM_F_DUMP_INTR`: what was dumped changed meanwhile.
const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLM_F_CAPPED`: an error repeats the header of the request, not the request.
const CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`: an error carries attributes of its own.
const ACK_ATTRIBUTES: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`.
const ERROR_WORDS: u16 = 1;
/// Independent requests in one datagram ([`Nfnetlink::each`]). The answers to as many that are refused fit
/// the smallest receive buffer, and the kernel serves other sockets in between.
pub(crate) const TOGETHER: usize = 128;

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// Longer than any datagram of a dump (32 KiB) and than an error that repeats a full batch of
/// members (64 KiB and some).
const RECEIVE: usize = 256 * 1024;

/// `MSG_TRUNC`.
const TRUNCATED: i32 = 0x20;

/// A request and what came of it is read again this often when it changed during the reading.
pub(crate) const READINGS: u32 = 8;

/// A reply: the parts of a message that its readers need.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    flags: u16,
    body: Vec<u8>,
}

impl Reply {
    pub(crate) fn of(message: &Received<'_>) -> Self {
        Self {
            flags: message.flags,
            body: message.body.to_vec(),
        }
    }

    fn message(&self) -> Received<'_> {
        Received {
            kind: 0,
            flags: self.flags,
            sequence: 0,
            body: &self.body,
        }
    }

    pub(crate) fn attributes(&self) -> Attributes<'_> {
        self.message().attributes()
    }
}

/// An nfnetlink socket that waits.
///
/// *Needs*: `CAP_NET_ADMIN` in the user namespace that owns the network namespace of the thread
/// that opens it; that is the namespace it works in for ever.
pub(crate) struct Nfnetlink {
    socket: Socket,
    sequence: u32,
    patience: Duration,
    buffer: Vec<u8>,
}

impl Nfnetlink {
    /// Opens a socket. `patience` bounds each request, from sending to the last reply.
    ///
    /// *Errors*: [`Error::Socket`].
    pub(crate) fn open(patience: Duration) -> Result<Self, Error> {
        Self::open_for(NETLINK_NETFILTER, patience)
    }

    /// The same for links and routes, whose requests and answers have the same frame.
    ///
    /// *Errors*: [`Error::Socket`].
    pub(crate) fn open_routes(patience: Duration) -> Result<Self, Error> {
        Self::open_for(NETLINK_ROUTE, patience)
    }

    fn open_for(protocol: isize, patience: Duration) -> Result<Self, Error> {
        let failed = |what| move |source| Error::Socket { what, source };
        let mut socket = Socket::new(protocol).map_err(failed("open"))?;
        socket.bind_auto().map_err(failed("bind"))?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(failed("connect"))?;
        socket.set_ext_ack(true).map_err(failed("extended acks"))?;
        socket.set_cap_ack(true).map_err(failed("capped acks"))?;
        Ok(Self {
            socket,
            sequence: 0,
            patience,
            buffer: Vec::with_capacity(RECEIVE),
        })
    }

    /// [`crate::listen::make_room`], for what will come unasked.
    pub(crate) fn make_room(&self, size: usize) -> Result<(), Error> {
        crate::listen::make_room(&self.socket, size)
    }

    /// The bare socket, for one that only listens from now on.
    pub(crate) fn into_socket(self) -> Socket {
        self.socket
    }

    /// Sends a request and collects its replies up to the acknowledgement.
    ///
    /// *Errors*: [`Error::Refused`] with `object` named, [`Error::Silence`], [`Error::Socket`].
    pub(crate) fn request(
        &mut self,
        object: &dyn Fn() -> String,
        message: Message,
    ) -> Result<Vec<Reply>, Error> {
        let sequence = self.send(vec![message])?;
        let (replies, _) = self.collect(object, sequence, sequence)?;
        Ok(replies)
    }

    /// Sends a dump request and collects everything; reads again when it changed meanwhile.
    ///
    /// *Errors*: as [`Nfnetlink::request`], and [`Error::Restless`].
    pub(crate) fn dump(
        &mut self,
        object: &dyn Fn() -> String,
        message: &Message,
    ) -> Result<Vec<Reply>, Error> {
        for _ in 0..READINGS {
            let sequence = self.send(vec![message.clone()])?;
            let (replies, steady) = self.collect(object, sequence, sequence)?;
            if steady {
                return Ok(replies);
            }
        }
        Err(Error::Restless {
            object: object(),
            attempts: READINGS,
        })
    }

    /// Sends messages of one subsystem as one transaction: all are done or none.
    ///
    /// *Errors*: as [`Nfnetlink::request`]; the first refusal.
    pub(crate) fn batch(
        &mut self,
        object: &dyn Fn() -> String,
        subsystem: u8,
        messages: &[Message],
    ) -> Result<(), Error> {
        let frame = |kind| Message::with_resource(kind, 0, NO_FAMILY, u16::from(subsystem));
        let mut all = vec![frame(BATCH_BEGIN)];
        all.extend_from_slice(messages);
        // Acknowledgements come after the commit, so one, on the last message, is enough. Not on
        // the end marker: kernels before 6.10 never acknowledge it.
        if let Some(last) = all.last_mut() {
            last.add_flags(ACK);
        }
        let last = u32::try_from(all.len() - 1).expect("a batch is far below 4 billion messages");
        all.push(frame(BATCH_END));
        let first = self.send(all)?;
        self.collect(object, first, first.wrapping_add(last))
            .map(drop)
    }

    /// Returns when every transaction of a subsystem that had begun is over.
    ///
    /// An empty one has to wait for its turn, which the kernel takes while the message is being
    /// sent; it changes nothing and is not answered.
    pub(crate) fn wait_for_turn(&mut self, subsystem: u8) -> Result<(), Error> {
        let frame = |kind| Message::with_resource(kind, 0, NO_FAMILY, u16::from(subsystem));
        self.send(vec![frame(BATCH_BEGIN), frame(BATCH_END)])
            .map(drop)
    }

    /// Sends messages in one datagram; returns the first one's sequence number.
    fn send(&mut self, messages: Vec<Message>) -> Result<u32, Error> {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::with_capacity(messages.iter().map(Message::len).sum());
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            datagram.extend(message.finish(self.sequence));
        }
        let sent = self.socket.send(&datagram, 0);
        match sent {
            Ok(_) => Ok(first),
            Err(source) => Err(Error::Socket {
                what: "send",
                source,
            }),
        }
    }

    /// Sends a dump request and hands each reply to `each` as it arrives: nothing is kept.
    ///
    /// What changes during the dump may be missed or come twice; whether the kernel says so is not
    /// looked at, because what was handed over cannot be taken back.
    ///
    /// *Errors*: as [`Nfnetlink::request`]. The socket is then in the middle of a dump: open another.
    pub(crate) fn stream(
        &mut self,
        object: &dyn Fn() -> String,
        message: Message,
        each: &mut dyn FnMut(&Received<'_>),
    ) -> Result<(), Error> {
        let sequence = self.send(vec![message])?;
        self.listen(object, sequence, sequence, each, &mut |_, refusal| {
            Some(refusal)
        })
        .map(drop)
    }

    /// Sends independent requests in one datagram and waits until all are done.
    ///
    /// `refused` is told which (from 0) was refused and why; what it returns ends the waiting.
    ///
    /// *Errors*: [`Error::Refused`] with what `refused` returned; [`Error::Silence`],
    /// [`Error::Socket`].
    pub(crate) fn each(
        &mut self,
        object: &dyn Fn() -> String,
        mut messages: Vec<Message>,
        refused: &mut dyn FnMut(u32, Refusal) -> Option<Refusal>,
    ) -> Result<(), Error> {
        let Some(last) = messages.last_mut() else {
            return Ok(());
        };
        last.add_flags(ACK);
        let last =
            u32::try_from(messages.len() - 1).expect("a datagram is far below 4 billion messages");
        let first = self.send(messages)?;
        self.listen(
            object,
            first,
            first.wrapping_add(last),
            &mut |_| {},
            refused,
        )
        .map(drop)
    }

    /// Reads until the request numbered `last` is answered for good.
    ///
    /// Whether nothing changed during a dump is the second value.
    fn collect(
        &mut self,
        object: &dyn Fn() -> String,
        first: u32,
        last: u32,
    ) -> Result<(Vec<Reply>, bool), Error> {
        let mut replies = Vec::new();
        let mut keep = |message: &Received<'_>| {
            replies.push(Reply::of(message));
        };
        let steady = self.listen(object, first, last, &mut keep, &mut |_, refusal| {
            Some(refusal)
        })?;
        Ok((replies, steady))
    }

    /// [`Nfnetlink::collect`], with the replies and refusals handed over one by one.
    fn listen(
        &mut self,
        object: &dyn Fn() -> String,
        first: u32,
        last: u32,
        each: &mut dyn FnMut(&Received<'_>),
        refused: &mut dyn FnMut(u32, Refusal) -> Option<Refusal>,
    ) -> Result<bool, Error> {
        let deadline = Instant::now() + self.patience;
        let mut steady = true;
        loop {
            self.receive(object, deadline)?;
            for message in messages(&self.buffer) {
                // Replies to an earlier request that was given up.
                let offset = message.sequence.wrapping_sub(first);
                if offset > last.wrapping_sub(first) {
                    continue;
                }
                steady &= message.flags & DUMP_INTERRUPTED == 0;
                match message.kind {
                    MSG_ERROR => {
                        let Some(refusal) = refusal(&message) else {
                            return Err(Error::Garbled {
                                object: object(),
                                problem: "an error message without an error",
                            });
                        };
                        if refusal.number != 0
                            && let Some(source) = refused(offset, refusal)
                        {
                            return Err(Error::Refused {
                                object: object(),
                                source,
                            });
                        }
                        if message.sequence == last {
                            return Ok(steady);
                        }
                    }
                    MSG_DONE => return Ok(steady),
                    _ => each(&message),
                }
            }
        }
    }

    /// Waits for one datagram and leaves it in the buffer.
    fn receive(&mut self, object: &dyn Fn() -> String, deadline: Instant) -> Result<(), Error> {
        let silence = || Error::Silence {
            object: object(),
            patience: self.patience,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(silence());
        }
        set_socket_timeout(&self.socket, Timeout::Recv, Some(left)).map_err(|errno| {
            Error::Socket {
                what: "set receive timeout",
                source: errno.into(),
            }
        })?;
        self.buffer.clear();
        let length = loop {
            // With this flag the length is the datagram's own, also when it didn't fit.
            match self.socket.recv(&mut self.buffer, TRUNCATED) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(silence()),
                Err(source) => {
                    return Err(Error::Socket {
                        what: "receive",
                        source,
                    });
                }
                Ok(length) => break length,
            }
        };
        if length > self.buffer.len() {
            return Err(Error::Garbled {
                object: object(),
                problem: "longer than any message should be",
            });
        }
        Ok(())
    }
}

/// What an `NLMSG_ERROR` says; number 0 is an acknowledgement.
fn refusal(message: &Received<'_>) -> Option<Refusal> {
    let number = i32::from_ne_bytes(message.body.get(0..4)?.try_into().ok()?);
    let request = message.body.get(4..)?;
    let repeated = usize::try_from(u32_ne(request, 0)?).ok()?;
    let capped = message.flags & CAPPED != 0;
    let words = (message.flags & ACK_ATTRIBUTES != 0)
        .then(|| {
            let end = if capped { HEADER } else { repeated };
            Attributes(request.get(end..)?)
                .text(ERROR_WORDS)
                .filter(|words| !words.is_empty())
                .map(str::to_owned)
        })
        .flatten();
    // A batch of members comes back whole, with the line that failed written into it.
    let line = (!capped)
        .then(|| Attributes(request.get(HEADER + 4..repeated)?).u32(crate::ipset::LINE))
        .flatten()
        .filter(|line| *line != 0);
    Some(Refusal {
        number: number.checked_neg()?,
        words,
        line,
    })
}

/// What is refused in a datagram, whoever made it up.
#[cfg(feature = "fuzzing")]
pub(crate) fn refusals(datagram: &[u8]) -> Vec<Refusal> {
    messages(datagram)
        .filter_map(|message| refusal(&message))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{ACK_ATTRIBUTES, CAPPED, ERROR_WORDS, MSG_ERROR, refusal};
    use crate::error::Refusal;
    use crate::message::{HEADER, Message, Received};

    /// An error as the kernel sends it: its number, then the request or only its header.
    fn error(number: i32, flags: u16, request: &[u8], more: &[u8]) -> Option<Refusal> {
        let body = [&number.to_ne_bytes(), request, more].concat();
        refusal(&Received {
            kind: MSG_ERROR,
            flags,
            sequence: 1,
            body: &body,
        })
    }

    fn request() -> Vec<u8> {
        let mut message = Message::new(6, 9, 0, 0);
        message.text(2, "selvage-a").net_u32(crate::ipset::LINE, 7);
        message.finish(1)
    }

    #[test]
    fn an_acknowledgement_is_number_0() {
        let answer = error(0, CAPPED, &request()[..HEADER], &[]).unwrap();
        assert_eq!((answer.number, answer.words, answer.line), (0, None, None));
    }

    #[test]
    fn the_kernels_words_are_kept() {
        let mut words = Message::new(0, 0, 0, 0);
        words.text(ERROR_WORDS, "Chain is in use");
        let words = &words.finish(0)[HEADER + 4..];
        let flags = CAPPED | ACK_ATTRIBUTES;
        let answer = error(-16, flags, &request()[..HEADER], words).unwrap();
        assert_eq!(answer.to_string(), "Chain is in use");
        assert_eq!(answer.number, 16);
    }

    #[test]
    fn an_error_with_empty_words_is_still_said_in_words() {
        let mut words = Message::new(0, 0, 0, 0);
        words.text(ERROR_WORDS, "");
        let words = &words.finish(0)[HEADER + 4..];
        let flags = CAPPED | ACK_ATTRIBUTES;
        let answer = error(-16, flags, &request()[..HEADER], words).unwrap();
        assert_eq!(answer.words, None);
        assert!(!answer.to_string().is_empty());
    }

    #[test]
    fn a_refused_member_is_named_by_its_line() {
        let answer = error(-4352, 0, &request(), &[]).unwrap();
        assert_eq!(answer.line, Some(7));
        assert_eq!(answer.to_string(), "member 7: ipset: the set is full");
    }

    #[test]
    fn an_error_cut_short_is_none() {
        assert_eq!(error(-22, CAPPED, &[], &[]), None);
        assert_eq!(error(i32::MIN, CAPPED, &request()[..HEADER], &[]), None);
    }
}
