//! Bad disks, bad networks, wrong clocks, too many clients, logs that cannot be written, sides of different versions, and founders killed at every step of founding.

mod bad_disks;
mod clocks;
mod connection_limits;
mod damage;
mod founder_crashes;
mod logs;
mod neighbours;
mod network_faults;
mod overload;
mod versions;
