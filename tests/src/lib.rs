//! The promises of the README, and what else must hold, each on real daemons with real disks, on loopback.
//!
//! Nothing here is a fake, and no test sleeps for luck: it waits for a condition and names the one that did not come.
//! A secrecy test has a positive control: the same tool, given enough disks, does recover the key.
//!
//! | folder | question |
//! |---|---|
//! | `harness` | What do all tests share? The only folder that others import. |
//! | `promises` | Does each promise of the README hold? |
//! | `cli` | What does a person see who types a command? |
//! | `documents` | Is what the documents say true? |
//! | `faults` | What happens with bad disks, networks and clocks, and with too many clients? |
//! | `model` | Does every rule hold after every step of a whole cluster in virtual time? |
//! | `soak` | What do hours of random faults find? |

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
