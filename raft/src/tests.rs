//! Tests that need more than one module; those of one module stand beside it.

mod cluster;
mod conformance;
mod damage;
mod fixture;
mod golden;
mod lag;
mod operations;
mod rebuild;
mod rooms;
mod state;
mod voters;
mod wire;
