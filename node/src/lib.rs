//! The daemon of Quorate: `quorated`.
//!
//! In reading order: how it is configured and what it keeps on disk; how it boots, founds and unlocks itself; how it talks
//! to its peers; how it earns the right to serve; what it does with keys; what clients may ask.

pub mod clock;
pub mod config;
pub mod phase;
pub mod random;

pub mod disk;
pub mod invitation;
pub mod layout;
pub mod vault;

pub mod admin;
pub mod boot;
pub mod desk;
pub mod found;
pub mod invited;
pub mod joining;
pub mod lock_keys;
pub mod locking;
pub mod node;
pub mod pin;
pub mod rebuild;
pub mod revocation;
pub mod rosters;
pub mod unlock;

pub mod absence;
pub mod alarms;

pub mod answer;
pub mod background;
pub mod directory;
pub mod follow;
pub mod link;
pub mod listen;
pub mod peer;
pub mod proposal;
pub mod rate;
pub mod session;

pub mod confirm;
pub mod lease;

pub mod deal;
pub mod gather;
pub mod holder;
pub mod keyring;
pub mod members;
pub mod operate;
pub mod sealing;

pub mod api;
pub mod status;
