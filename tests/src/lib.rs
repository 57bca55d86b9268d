//! One module per promise of the README, each on real daemons with real disks, on loopback.
//!
//! Nothing here is a fake, and nothing sleeps to be lucky: a test waits for a condition and says which one did not come.
//! A secrecy test has a positive control: the same tool, given enough disks, does recover the key.

#[cfg(test)]
mod site;

#[cfg(test)]
mod absence;
#[cfg(test)]
mod alarms;
#[cfg(test)]
mod bad_disks;
#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod boot;
#[cfg(test)]
mod churn;
#[cfg(test)]
mod ciphertexts;
#[cfg(test)]
mod clocks;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod crowds;
#[cfg(test)]
mod damage;
#[cfg(test)]
mod deaths;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod doctor;
#[cfg(test)]
mod documents;
#[cfg(test)]
mod durability;
#[cfg(test)]
mod formats;
#[cfg(test)]
mod founding;
#[cfg(test)]
mod hot_path;
#[cfg(test)]
mod impostor;
#[cfg(test)]
mod joining;
#[cfg(test)]
mod lease;
#[cfg(test)]
mod leaving;
#[cfg(test)]
mod liar;
#[cfg(test)]
mod load;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod model;
#[cfg(test)]
mod operating;
#[cfg(test)]
mod pin;
#[cfg(test)]
mod power_cuts;
#[cfg(test)]
mod readme;
#[cfg(test)]
mod ready;
#[cfg(test)]
mod renewal;
#[cfg(test)]
mod restarts;
#[cfg(test)]
mod sealing;
#[cfg(test)]
mod secrets;
#[cfg(test)]
mod setup;
#[cfg(test)]
mod voters;
#[cfg(test)]
mod weather;
