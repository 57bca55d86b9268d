//! The promises of the README and what else is to hold, each on real daemons with real disks, on loopback.
//!
//! Nothing here is a fake, and nothing sleeps to be lucky: a test waits for a condition and says which one did not come.
//! A secrecy test has a positive control: the same tool, given enough disks, does recover the key.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod promises;

#[cfg(test)]
mod cli;
#[cfg(test)]
mod documents;

#[cfg(test)]
mod faults;
#[cfg(test)]
mod model;
#[cfg(test)]
mod soak;
