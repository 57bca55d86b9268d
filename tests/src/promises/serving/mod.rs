//! When a node serves, when it stops, and what it says about it.

mod alarms;
mod boot;
mod caller;
mod lease;
mod load;
mod sealing;
