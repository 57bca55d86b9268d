//! A Quorate cluster on one machine.
