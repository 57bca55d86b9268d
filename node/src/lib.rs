//! The daemon of Quorate.
