//! Join requests and replies, which are parsed before the sender is checked. No random bytes pass for a proof.
#![no_main]

use quorate_node::vault::invitation::{InvitationKey, JoinCode, JoinReply, JoinRequest};
use quorate_shares::secret::Secret;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let key = InvitationKey::from(Secret::<32>::copy_of(&[7; 32]).expect("32 bytes"));
    if let Ok(request) = JoinRequest::parse(bytes) {
        assert!(!request.is_proved(&key, &[0; 32]));
    }
    if let Ok(reply) = JoinReply::open(bytes, &key, &[0; 32]) {
        assert_eq!(reply.code, JoinCode::Unknown);
        assert!(reply.node.is_none() && reply.roster.members.is_empty());
    }
});
