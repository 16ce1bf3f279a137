//! What a thread takes of a processor.

use std::time::Duration;

use rustix::process::setpriority_process;
use rustix::time::{ClockId, clock_gettime};
use tracing::debug;

/// How far a thread steps back; one of the usual priority gets nine times as much time.
const NICE: i32 = 10;

/// What the calling thread has used of a processor so far.
pub(crate) fn thread_cpu() -> Duration {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(used).unwrap_or_default()
}

/// Lets other threads go before the calling one from now on: for one that keeps a processor busy in the
/// kernel and is in no hurry. It never gets its priority back.
pub(crate) fn step_back() {
    if let Err(error) = setpriority_process(None, NICE) {
        debug!(%error, "the calling thread keeps its priority");
    }
}
