//! What a thief, an impostor and a lying member learn, and what they cannot do.

mod copies;
mod doors;
mod impostor;
mod liar;
mod memory;
mod secrets;
mod stolen_disks;
