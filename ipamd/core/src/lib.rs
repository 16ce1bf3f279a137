//! The address pool and its planner: pure, no clock, no I/O.
