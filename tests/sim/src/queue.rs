//! What happens when: events in order of time, those of one moment in the order in which they were put in.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use selvage_ipamd_core::ids::Timestamp;

struct Due<T> {
    order: Reverse<(Timestamp, u64)>,
    event: T,
}

impl<T> PartialEq for Due<T> {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl<T> Eq for Due<T> {}

impl<T> PartialOrd for Due<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Due<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order.cmp(&other.order)
    }
}

/// Events to come.
pub struct Queue<T> {
    heap: BinaryHeap<Due<T>>,
    serial: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            serial: 0,
        }
    }
}

impl<T> Queue<T> {
    /// Puts an event in.
    pub fn put(&mut self, at: Timestamp, event: T) {
        self.serial += 1;
        self.heap.push(Due {
            order: Reverse((at, self.serial)),
            event,
        });
    }

    /// Takes the next one out.
    pub fn take(&mut self) -> Option<(Timestamp, T)> {
        self.heap.pop().map(|due| (due.order.0.0, due.event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_then_of_arrival() {
        let mut queue = Queue::default();
        for (at, event) in [(2, 'c'), (1, 'a'), (2, 'd'), (1, 'b')] {
            queue.put(Timestamp::from_unix_nanos(at), event);
        }
        let order: String = std::iter::from_fn(|| queue.take())
            .map(|(_, e)| e)
            .collect();
        assert_eq!(order, "abcd");
    }
}
