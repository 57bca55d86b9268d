//! The messages between clients and nodes, and those on the local socket: bounded, and stable once they are read.
#![no_main]

use quorate_client::wire::{AdminProgress, AdminRequest, AdminResponse, Answered, Envelope, PublicStatus, WireError};
use quorate_client::wire::{decode, encode};
use serde::{Serialize, de::DeserializeOwned};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 6 {
        0 => stable::<Envelope>(bytes),
        1 => stable::<Answered>(bytes),
        2 => stable::<PublicStatus>(bytes),
        3 => stable::<AdminRequest>(bytes),
        4 => stable::<AdminProgress>(bytes),
        _ => stable::<Result<AdminResponse, WireError>>(bytes),
    }
});

fn stable<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    if let Ok(message) = decode::<T>(bytes) {
        let written = encode(&message);
        let again: T = decode(&written).expect("our own bytes");
        assert_eq!(encode(&again), written);
    }
}
