//! Invitations and their proofs: what is accepted, and what is refused.

use super::*;
use crate::vault::{RosterLogId, RosterMember, Standing};

const EXPORTER: [u8; 32] = [0xee; 32];

fn seed(byte: u8) -> Secret<32> {
    Secret::take(&mut [byte; 32])
}

fn inviter(byte: u8) -> Inviter {
    Inviter { boot_pk: [byte; 32], address: format!("10.0.0.{byte}:7250").parse().expect("a valid address") }
}

fn invitation(inviters: u8) -> Invitation {
    let inviters = (1..=inviters).map(inviter).collect();
    Invitation { cluster: ClusterId([0xc1; 16]), secret: seed(5), inviters }
}

fn registration() -> Registration {
    Registration {
        boot_pk: [1; 32],
        op_pk: [2; 32],
        share_pk: PublicKey::of_seed(&seed(3)),
        name: "n2".parse().expect("a valid name"),
        addresses: vec!["10.0.0.2:7250".parse().expect("a valid address")],
    }
}

fn encoded(bytes: &[u8]) -> Result<Invitation, InvitationError> {
    URL_SAFE_NO_PAD.encode(bytes).parse()
}

#[test]
fn an_invitation_survives_its_text() {
    for count in 1..=3 {
        let (text, invitation) = (invitation(count).text().expect("few inviters"), invitation(count));
        assert!(text.starts_with(quorate_client::wire::INVITATION_TEXT_PREFIX), "{}", &text[..5]);
        let parsed: Invitation = text.parse().expect("it was just printed");
        assert_eq!((parsed.cluster, &parsed.inviters), (invitation.cluster, &invitation.inviters));
        assert!(parsed.secret.same_as(&invitation.secret));
    }
    assert!(invitation(0).text().is_err() && invitation(4).text().is_err());
    let longest = format!("{}:65535", "a".repeat(249)).parse().expect("the longest address");
    let longest = Invitation { inviters: vec![Inviter { boot_pk: [1; 32], address: longest }; 3], ..invitation(1) };
    let text = longest.text().expect("three inviters");
    assert!(text.len() <= INVITATION_TEXT_MAX && text.parse::<Invitation>().is_ok());
}

#[test]
fn only_the_canonical_text_is_an_invitation() {
    let text = invitation(1).text().expect("one inviter");
    let padded = format!("{}=", *text);
    let shifted = format!(" {}", *text);
    for bad in ["", "QJT1", &text[..text.len() - 1], &padded, &shifted, &"A".repeat(INVITATION_TEXT_MAX + 1)] {
        assert!(bad.parse::<Invitation>().is_err(), "{bad}");
    }
    let bytes = URL_SAFE_NO_PAD.decode(&**text).expect("base64url");
    assert!(encoded(&bytes).is_ok());
    assert!(encoded(&[&bytes[..], &[0]].concat()).is_err(), "trailing bytes");
    assert!(encoded(&[b"QJT2", &bytes[4..]].concat()).is_err(), "another magic");
    for count in [0, 2, 4] {
        let mut wrong = bytes.clone();
        wrong[52] = count;
        assert!(encoded(&wrong).is_err(), "{count} inviters claimed");
    }
    for end in 0..bytes.len() {
        assert!(encoded(&bytes[..end]).is_err(), "{end} bytes");
    }
}

#[test]
fn a_request_is_proved_by_its_invitation_on_its_connection_only() {
    let key = invitation(1).key();
    let bytes = registration().request(&key, &EXPORTER).expect("one address");
    let request = JoinRequest::parse(&bytes).expect("it was just made");
    assert!(request.registration == registration() && request.invitation == key.id());
    assert!(request.is_proved(&key, &EXPORTER));
    assert!(!request.is_proved(&key, &[0; 32]), "replayed on another connection");
    assert!(!request.is_proved(&InvitationKey::of(&seed(6)), &EXPORTER), "another invitation");
    for at in [4, 36, 68, bytes.len() - 1] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let request = JoinRequest::parse(&changed).expect("still well-formed");
        assert!(!request.is_proved(&key, &EXPORTER), "byte {at} was changed");
    }
    let other = Registration { share_pk: PublicKey::of_seed(&seed(4)), ..registration() };
    let swapped = JoinRequest { registration: other, ..request };
    assert!(!swapped.is_proved(&key, &EXPORTER), "another share key was put in");
}

#[test]
fn a_request_is_parsed_strictly() {
    let bytes = registration().request(&invitation(1).key(), &EXPORTER).expect("one address");
    for end in 0..bytes.len() {
        assert!(JoinRequest::parse(&bytes[..end]).is_err(), "{end} bytes");
    }
    assert!(JoinRequest::parse(&[&bytes[..], &[0]].concat()).is_err());
    let nowhere = Registration { addresses: Vec::new(), ..registration() };
    assert!(nowhere.request(&invitation(1).key(), &EXPORTER).is_err());
}

#[test]
fn a_reply_is_accepted_only_from_a_member_that_knows_the_invitation() {
    let key = invitation(1).key();
    let member = RosterMember {
        node: NodeId(1),
        boot_pk: [1; 32],
        op_pk: [2; 32],
        standing: Standing { member: true, ..Standing::default() },
        name: "n1".parse().expect("a valid name"),
        addresses: vec![inviter(1).address],
    };
    let roster = Roster { log_id: RosterLogId::default(), members: vec![member], revoked: Vec::new() };
    use JoinCode::{Complete, Expired, Full, NameTaken, TooFew, Unknown, Unreachable, Used, Wait};
    for code in [Complete, Wait, Used, Expired, Unknown, NameTaken, Full, TooFew, Unreachable] {
        let reply = JoinReply { code, node: Some(NodeId(2)), attempt: 3, roster: roster.clone() };
        let bytes = reply.seal(&key, &EXPORTER).expect("a small roster");
        assert_eq!(JoinReply::open(&bytes, &key, &EXPORTER).as_ref(), Ok(&reply));
        let replayed = JoinReply::open(&bytes, &key, &[0; 32]);
        match code {
            Unknown => {
                let bare = JoinReply { code, node: None, attempt: 0, roster: Roster::default() };
                assert_eq!(replayed, Ok(bare), "nothing but the code is taken from a stranger");
            }
            _ => assert_eq!(replayed, Err(JoinReplyError::Unproved), "{code}"),
        }
        for end in 0..bytes.len() {
            assert!(JoinReply::open(&bytes[..end], &key, &EXPORTER).is_err(), "{end} bytes");
        }
    }
}

/// Computed with Python's hashlib and hmac from the layouts in the header of the module.
#[test]
fn known_answers() {
    let key = InvitationKey::of(&seed(5));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(key.expose()), "3cb0b907dec2ec31bdb55b4e835cf9d224f8c6eea8b1d81c0703ac06cd70ae45");
    assert_eq!(hex(&key.id()), "ac0ac427bf5bdf37dcbe719f2ea71124f42eec77bcde9a973572ddf207ef0d86");
    let mac = reply_mac(&key, &EXPORTER, b"QJA1").finalize().into_bytes();
    assert_eq!(hex(&mac), "5df4c765551a9ed205d77d2956238f925196c47188b15470e90b57a47b14e2d0");
}
