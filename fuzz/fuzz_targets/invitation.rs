//! Invitations: each has one text form.
#![no_main]

use quorate_node::vault::invitation::Invitation;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(invitation) = text.parse::<Invitation>() {
        assert_eq!(*invitation.text().expect("it was read"), *text);
    }
});
