//! The two questions that x_tables answers to anybody who may ask: how large is a table, and what
//! is in it. They are socket options, whose lengths the kernel checks against the table's.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use selvage_policy_core::ruleset::Family;

use crate::error::Error;
use crate::socket::READINGS;

/// `IPT_SO_GET_INFO`, `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES`, `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: libc::c_int = 65;

/// `XT_TABLE_MAXNAMELEN`.
const NAME: usize = 32;
/// `NF_INET_NUMHOOKS`.
const HOOKS: usize = 5;
/// `struct ipt_getinfo`: name, valid hooks, hook entries, underflows, number of entries, size.
const INFO: usize = NAME + 4 + 4 * HOOKS + 4 * HOOKS + 4 + 4;
/// `struct ipt_get_entries` before its entries, which begin at a multiple of 8.
const ENTRIES: usize = 40;

/// A table as the kernel handed it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawTable {
    /// Where the chain of each hook begins and where its policy stands: offsets into `entries`, by
    /// hook number; `None` for a hook that the table doesn't have.
    pub(super) hooks: [Option<(usize, usize)>; HOOKS],
    pub(super) entries: Vec<u8>,
}

/// Reads a table, which must exist: asking for one that doesn't would create it.
///
/// *Errors*: [`Error::Socket`]; [`Error::Restless`] when it is replaced during each reading.
///
/// *Cost*: linear in the table, 60 ns a rule.
pub(super) fn read(family: Family, table: &str) -> Result<RawTable, Error> {
    let failed = |what| move |source| Error::Socket { what, source };
    let domain = match family {
        Family::V4 => AddressFamily::INET,
        Family::V6 => AddressFamily::INET6,
    };
    let socket = socket_with(domain, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_err(io::Error::from)
        .map_err(failed("open, to read a legacy table"))?;
    for _ in 0..READINGS {
        let mut info = vec![0; INFO];
        put_name(&mut info, table);
        ask(&socket, family, GET_INFO, &mut info).map_err(failed("ask a legacy table's size"))?;
        let number = |at: usize| {
            let bytes = info[at..at + 4].try_into().expect("four bytes");
            u32::from_ne_bytes(bytes)
        };
        let valid = number(NAME);
        let hooks = std::array::from_fn(|hook| {
            let start = number(NAME + 4 + 4 * hook) as usize;
            let policy = number(NAME + 4 + 4 * HOOKS + 4 * hook) as usize;
            (valid & (1 << hook) != 0).then_some((start, policy))
        });
        let size = number(INFO - 4);
        let mut answer = vec![0; ENTRIES + size as usize];
        put_name(&mut answer, table);
        answer[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
        match ask(&socket, family, GET_ENTRIES, &mut answer) {
            // It has another size meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(source) => {
                return Err(Error::Socket {
                    what: "read a legacy table",
                    source,
                });
            }
            Ok(()) => {
                answer.drain(..ENTRIES);
                return Ok(RawTable {
                    hooks,
                    entries: answer,
                });
            }
        }
    }
    Err(Error::Restless {
        object: format!("read {family} legacy table {table}"),
        attempts: READINGS,
    })
}

fn put_name(question: &mut [u8], table: &str) {
    let name = table.as_bytes();
    assert!(name.len() < NAME, "a table's name comes from the kernel");
    question[..name.len()].copy_from_slice(name);
}

/// The buffer holds the question and is overwritten by the answer, which is as long.
#[expect(
    unsafe_code,
    reason = "no safe wrapper takes an option of another's making"
)]
fn ask(socket: &OwnedFd, family: Family, option: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
    let level = match family {
        Family::V4 => libc::SOL_IP,
        Family::V6 => libc::SOL_IPV6,
    };
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for as long as `socket` is borrowed. The kernel reads and
    // writes at most `length` bytes at the pointer, which is what the buffer holds, and writes
    // nothing but bytes, any of which are a valid u8. Both pointers live until the call is over.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
