//! Questions to the loop, which alone has the index: what is enforced, and who is who.
//!
//! A question is a function of the index. It runs between two events, on the loop's own time, so it
//! must be short; what is slow works on the answer.

use std::time::Duration;

use selvage_policy_core::index::Index;
use thiserror::Error;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Questions that wait for the loop; who asks more waits.
const WAITING_MAX: usize = 16;

/// How long an answer may take. The loop turns every few milliseconds, unless something is wrong.
const DEADLINE: Duration = Duration::from_secs(1);

/// Something to do with the index.
pub type Question = Box<dyn FnOnce(&mut Index) + Send>;

/// The loop did not answer: it has ended, or stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the loop did not answer within {DEADLINE:?}")]
pub struct NoAnswer;

/// Asks the loop.
#[derive(Debug, Clone)]
pub struct Asker {
    questions: Sender<Question>,
}

/// Somebody who asks, and what the loop answers from.
#[must_use]
pub fn channel() -> (Asker, Receiver<Question>) {
    let (questions, asked) = mpsc::channel(WAITING_MAX);
    (Asker { questions }, asked)
}

impl Asker {
    /// What `question` makes of the index.
    ///
    /// *Errors*: [`NoAnswer`] after a second.
    ///
    /// *Cost*: the question's own, on the loop.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Index) -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        let question: Question = Box::new(move |index| {
            // Who asked may have given up.
            let _ = reply.send(question(index));
        });
        let asked = async {
            self.questions.send(question).await.map_err(|_| NoAnswer)?;
            answer.await.map_err(|_| NoAnswer)
        };
        timeout(DEADLINE, asked).await.map_err(|_| NoAnswer)?
    }
}
