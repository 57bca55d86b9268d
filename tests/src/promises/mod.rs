//! What the README promises, one module for each promise.

mod absence;
mod alarms;
mod boot;
mod caller;
mod ciphertexts;
mod disk;
mod durability;
pub(crate) mod founding;
mod hot_path;
mod impostor;
mod joining;
mod lease;
mod leaving;
mod liar;
mod load;
mod memory;
mod pin;
mod ready;
mod renewal;
mod sealing;
mod secrets;
mod voters;
