//! Fixtures, end-to-end suites and benches on a real kernel and a real cluster.
