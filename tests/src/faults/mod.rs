//! Bad disks, bad networks, wrong clocks, too many clients, and deaths at every step of founding.

mod bad_disks;
mod clocks;
mod crowds;
mod damage;
mod deaths;
mod weather;
