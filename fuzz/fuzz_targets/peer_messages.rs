//! The messages between nodes: bounded, and stable once they are read.
#![no_main]

use quorate_node::messages::peer::{PeerReply, PeerRequest, decode, encode};
use serde::{Serialize, de::DeserializeOwned};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    stable::<PeerRequest>(bytes);
    stable::<PeerReply>(bytes);
});

fn stable<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    if let Ok(message) = decode::<T>(bytes) {
        let written = encode(&message);
        let Ok(again) = decode::<T>(&written) else { panic!("our own bytes") };
        assert_eq!(encode(&again), written);
    }
}
