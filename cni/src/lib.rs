//! The CNI plugin: gives a pod the VPC address that ipamd leased for it.
//!
//! A runtime starts it once for each thing it wants of a pod's sandbox, with the request in the environment
//! and on stdin, and reads JSON from stdout. ADD asks ipamd for an address, makes a veth from inside the pod
//! with its other end straight on the host, gives the pod the address, and the host a route and rules for it.
//! DEL gives the address back and removes route and rules. Between the two nothing of the plugin runs.
//!
//! ```text
//! environment + stdin -> request -> Request --> lease (ipamd) -> Lease
//!                   |                                |
//!              plan_veth -> [Step]             plan_address -> [Step]                     pure
//!                   |                                |
//!              apply: steps by netlink, the first while ipamd works; undone unless committed
//!                                                   |
//!                                       spec: result or error -> stdout
//! ```
//!
//! | module | subject |
//! |---|---|
//! | [`spec`] | CNI's wire: versions, results, numbered errors |
//! | [`request`] | environment and stdin, checked |
//! | [`name`] | the veth's name |
//! | [`lease`] | the calls to ipamd |
//! | [`plan`] | the steps of ADD and their inverses |
//! | [`apply`] | running them; [`apply::Host::wire`] is all that ADD does to the kernel |
//! | [`policy_ready`] | waiting for the enforcement half, if the configuration says so |
//! | [`teardown`] | the steps of DEL; what an earlier result tells |
//! | [`check`] | what CHECK compares |
//! | [`log`] | a file, rotated by size |

pub mod apply;
pub mod check;
pub mod lease;
pub mod log;
pub mod name;
pub mod plan;
pub mod policy_ready;
pub mod request;
pub mod spec;
pub mod teardown;

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use selvage_nodenet::{Error as NetError, NetNs};

use crate::apply::{Host, PodSide, WireError};
use crate::lease::{Ipamd, LeaseError};
use crate::log::{Level, Log};
use crate::request::{
    AddRequest, CheckRequest, DelRequest, Environment, GcRequest, Parsed, Pod, Request, Sandbox,
};
use crate::spec::{AddResult, CniError, Code};

/// How long an ADD waits for another one of its sandbox. Of two at once the later one would take away the veth of the other,
/// which would fail and give back the lease that is both's. Longer than an ADD waits for an address.
const TURN: Duration = Duration::from_secs(40);

/// What the process ends with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// JSON, or nothing.
    pub stdout: String,
    /// Exit code 0.
    pub success: bool,
}

/// Answers one request.
///
/// *Needs*: for ADD, DEL and CHECK `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`; ADD and STATUS the daemon's socket.
pub fn run(environment: &Environment, stdin: io::Result<&[u8]>) -> Answer {
    let parsed = request::parse(environment, stdin.as_ref().copied().unwrap_or_default());
    if let (Ok(_), Ok(Request::Version(asked))) = (&stdin, &parsed.request) {
        // Without a line in the log, and what the clock and the line's text would cost of a start.
        return Answer {
            stdout: spec::versions_json(asked),
            success: true,
        };
    }
    answer(environment, stdin, parsed)
}

/// All that is worth a line.
// Not inlined, as the commands below: with its buffers on the stack, VERSION too would touch pages for them.
#[inline(never)]
fn answer(environment: &Environment, stdin: io::Result<&[u8]>, parsed: Parsed) -> Answer {
    let start = Instant::now();
    let mut log = Log::new(parsed.log);
    log.with("command", &environment.command);
    log.with("container", &environment.container_id);
    let outcome = match stdin {
        Ok(_) => parsed.request,
        Err(error) => Err(CniError::new(
            Code::Io,
            "the network configuration on stdin cannot be read",
            error.to_string(),
        )),
    };
    // What changes the node is worth a line; the kubelet's questions are not.
    let level = match &outcome {
        Ok(Request::Add(_) | Request::Del(_) | Request::Gc(_)) => Level::Info,
        Ok(Request::Check(_) | Request::Status | Request::Version(_)) | Err(_) => Level::Debug,
    };
    let outcome = outcome.and_then(|request| match request {
        Request::Add(add) => run_add(&add, &mut log).map(|result| result.to_json(parsed.version)),
        Request::Check(check) => run_check(&check).map(|()| String::new()),
        Request::Del(del) => run_del(&del, &mut log).map(|()| String::new()),
        Request::Status => run_status().map(|()| String::new()),
        Request::Gc(gc) => run_gc(&gc, &mut log).map(|()| String::new()),
        Request::Version(asked) => Ok(spec::versions_json(&asked)),
    });
    let took = format!("{:?}", start.elapsed());
    match outcome {
        Ok(stdout) => {
            log.line(level, "done", &[("took", &took)]);
            Answer {
                stdout,
                success: true,
            }
        }
        Err(error) => {
            log.line(
                Level::Error,
                &error.msg,
                &[("cause", &error.details), ("took", &took)],
            );
            Answer {
                stdout: error.to_json(parsed.version),
                success: false,
            }
        }
    }
}

// No command is inlined into `run`: with the buffers of all on its stack, VERSION too would touch pages for them.
#[inline(never)]
fn run_add(add: &AddRequest, log: &mut Log) -> Result<AddResult, CniError> {
    let AddRequest { sandbox, pod, .. } = add;
    log.with("pod", format!("{}/{}", pod.namespace, pod.name));
    // All that can fail without ipamd is tried before it is asked.
    let mut host = Host::open().map_err(|error| kernel_error("open the host's network", &error))?;
    let mut side = open_pod(&host, sandbox, Some(TURN))?;
    let not_wired = |with: &str, error: WireError| {
        CniError::new(
            Code::Io,
            format!(
                "attach {} to pod {}/{}{with}",
                sandbox.if_name, pod.namespace, pod.name
            ),
            error.to_string(),
        )
    };
    let facts = host
        .facts(&add.host_veth)
        .map_err(|error| not_wired("", error))?;
    let ipamd = Ipamd::default();
    // The veth is made while ipamd looks for an address. An older pod's link of that name is left alone
    // until there is one.
    let mut unprepared = Some((&mut host, &mut side));
    let mut prepared = None;
    let meanwhile = || {
        if facts.stale_link.is_none() {
            prepared = unprepared
                .take()
                .map(|(host, side)| host.prepare(side, add, &facts));
        }
    };
    let lease = match ipamd.lease(sandbox, pod, meanwhile) {
        Ok(lease) => lease,
        Err(error) => {
            drop(prepared);
            let code = if matches!(error, LeaseError::Unsupported(_)) {
                give_back(&ipamd, sandbox, pod, log);
                Code::UnsupportedField
            } else {
                Code::TryAgainLater
            };
            return Err(CniError::new(
                code,
                format!("no address for pod {}/{}", pod.namespace, pod.name),
                error.to_string(),
            ));
        }
    };
    let wired = prepared
        .or_else(|| unprepared.map(|(host, side)| host.prepare(side, add, &facts)))
        .expect("prepared meanwhile, or else now");
    let completed = wired.and_then(|mut wired| {
        wired.complete(add, &facts, &lease)?;
        Ok(wired)
    });
    match completed {
        Ok(wired) => {
            if let Err(error) = policy_ready::wait(add, log) {
                drop(wired);
                give_back(&ipamd, sandbox, pod, log);
                return Err(error);
            }
            wired.commit();
        }
        Err(error) => {
            // Whose interface that is cannot be told from here: that of an ADD of this very sandbox, perhaps, whose host's end
            // somebody has renamed. The DEL that follows gives the lease back.
            if !matches!(error, WireError::Occupied(_)) {
                give_back(&ipamd, sandbox, pod, log);
            }
            return Err(not_wired(&format!(" with {}", lease.address), error));
        }
    }
    log.with("address", lease.address);
    log.with("table", lease.table);
    log.with("veth", &add.host_veth);
    Ok(AddResult {
        host_veth: add.host_veth.clone(),
        if_name: sandbox.if_name.clone(),
        netns: sandbox.netns.clone(),
        table: lease.table.0,
        dummy: name::dummy(&pod.namespace, &pod.name),
        device: lease.device,
        address: lease.address,
    })
}

/// After a failed ADD. If this fails too the runtime's DEL does it: one follows every failure.
fn give_back(ipamd: &Ipamd, sandbox: &Sandbox, pod: &Pod, log: &mut Log) {
    if let Err(error) = ipamd.refuse(sandbox, pod) {
        log.line(Level::Warn, "lease not given back", &[("cause", &error)]);
    }
}

#[inline(never)]
fn run_del(del: &DelRequest, log: &mut Log) -> Result<(), CniError> {
    let DelRequest { sandbox, pod, .. } = del;
    log.with("pod", format!("{}/{}", pod.namespace, pod.name));
    let leases = match Ipamd::default().release(sandbox, pod) {
        Ok(leases) => leases,
        // Deleted before, or never added; or by a DEL that was killed between giving back and removing.
        Err(LeaseError::Unknown) => {
            log.line(Level::Info, "no lease to give back", &[]);
            return del_as_told(del, log);
        }
        Err(error) if error.is_absence() => {
            // A pod must be able to end without the daemon, which finds out at its next start.
            log.line(Level::Warn, "deleted without ipamd", &[("cause", &error)]);
            return del_as_told(del, log);
        }
        Err(error) => {
            return Err(CniError::new(
                Code::TryAgainLater,
                format!(
                    "give back the address of pod {}/{}",
                    pod.namespace, pod.name
                ),
                error.to_string(),
            ));
        }
    };
    let failed = |error: NetError| kernel_error("remove the pod's route and rules", &error);
    let mut host = Host::open().map_err(failed)?;
    teardown::unwire(host.socket(), &leases).map_err(failed)?;
    for lease in &leases {
        log.with("address", lease.address);
    }
    Ok(())
}

/// DEL by what ADD told, if that is still this sandbox's.
fn del_as_told(del: &DelRequest, log: &mut Log) -> Result<(), CniError> {
    let Some(told) = del.prev_result.as_ref().and_then(teardown::told) else {
        return Ok(());
    };
    let failed = |error: NetError| kernel_error("remove the pod's route and rules", &error);
    let mut host = Host::open().map_err(failed)?;
    if !teardown::is_ours(&mut host, &told, &del.sandbox.netns).map_err(failed)? {
        log.line(Level::Warn, "left alone: not this sandbox's any more", &[]);
        return Ok(());
    }
    teardown::unwire(host.socket(), &told.leases).map_err(failed)
}

#[inline(never)]
fn run_check(check: &CheckRequest) -> Result<(), CniError> {
    let wrong = |details: String| {
        CniError::new(
            Code::NotAsMade,
            "the pod's network is not as it was made",
            details,
        )
    };
    let told = teardown::told(&check.prev_result)
        .ok_or_else(|| wrong("prevResult is not one of this plugin's".into()))?;
    let failed = |error: NetError| kernel_error("look at the pod's network", &error);
    let mut host = Host::open().map_err(failed)?;
    let mut side = open_pod(&host, &check.sandbox, None)?;
    let found = check::differences(&mut host, &mut side, &told).map_err(failed)?;
    if found.is_empty() {
        Ok(())
    } else {
        Err(wrong(found.join("; ")))
    }
}

#[inline(never)]
fn run_gc(gc: &GcRequest, log: &mut Log) -> Result<(), CniError> {
    let collected = Ipamd::default().collect(gc).map_err(|error| {
        CniError::new(
            Code::TryAgainLater,
            "give back the addresses of sandboxes that are gone",
            error.to_string(),
        )
    })?;
    let Some(leases) = collected else {
        // The one of before, or AWS's, in the middle of a swap: it looks for what is gone when it starts.
        log.line(Level::Warn, "this ipamd cannot collect garbage", &[]);
        return Ok(());
    };
    for lease in &leases {
        log.line(Level::Info, "collected", &[("address", &lease.address)]);
    }
    let failed = |error: NetError| kernel_error("remove routes and rules of pods", &error);
    let mut host = Host::open().map_err(failed)?;
    teardown::unwire(host.socket(), &leases).map_err(failed)
}

#[inline(never)]
fn run_status() -> Result<(), CniError> {
    Ipamd::default().health().map_err(|error| {
        CniError::new(
            Code::NotAvailable,
            "no addresses can be given to pods",
            error.to_string(),
        )
    })
}

/// `turn`: waits so long until no other ADD works there, and keeps others out as long as the side lives.
fn open_pod(host: &Host, sandbox: &Sandbox, turn: Option<Duration>) -> Result<PodSide, CniError> {
    let gone = |error: &NetError| match error {
        NetError::Namespace { reason, .. } if reason.kind() != io::ErrorKind::NotFound => {
            kernel_error("open the pod's network", error)
        }
        NetError::Namespace { .. } | NetError::NotNamespace { .. } => CniError::new(
            Code::UnknownContainer,
            "the pod's network namespace is gone",
            error.to_string(),
        ),
        NetError::Held { .. } => CniError::new(
            Code::TryAgainLater,
            "another ADD of this sandbox is under way",
            error.to_string(),
        ),
        NetError::Socket { .. }
        | NetError::Kernel { .. }
        | NetError::Timeout { .. }
        | NetError::Interrupted { .. }
        | NetError::Decode { .. }
        | NetError::Sysctl { .. }
        | NetError::Missing { .. } => kernel_error("open the pod's network", error),
    };
    let netns = NetNs::open(Path::new(&sandbox.netns)).map_err(|error| gone(&error))?;
    if let Some(turn) = turn {
        netns.hold(turn).map_err(|error| gone(&error))?;
    }
    host.enter(netns)
        .map_err(|error| gone(&error))?
        .ok_or_else(|| {
            CniError::new(
                Code::InvalidEnvironment,
                "invalid environment",
                format!("CNI_NETNS {} is the host's own network", sandbox.netns),
            )
        })
}

fn kernel_error(doing: &str, error: &NetError) -> CniError {
    CniError::new(Code::Io, doing, error.to_string())
}
