//! FORMATS draws what the code writes: every variant with its number, every field in its place, every label and magic.
//!
//! The bytes themselves are held by vectors. This keeps the page whole: a message or a field that is not drawn fails here.
//! Variants and fields are asked of the types ([`names`]).

use std::collections::{BTreeMap, BTreeSet};

use quorate_client::cluster_file::{ClusterFile, ClusterNode};
use quorate_client::wire::{
    AdminRequest, AdminResponse, Alarm, Envelope, KeyInfo, KeySummary, LocalStatus, NodeInfo, NodeState, OldCopies,
    OperationStatus, Progress, PublicStatus, Request, Response, RevocationProgress, Stage, Status, VersionInfo,
    WireError,
};
use quorate_node::messages::caller::{Caller, Door, Origin, Principal, Restrictions};
use quorate_node::messages::peer::{
    self, ForwardedReply, ForwardedRequest, Hello, KeyChange, Order, PeerReply, PeerRequest, Report,
};
use quorate_raft::command::{self, Change};
use quorate_raft::formats::{Private, visit_private};
use serde::de::DeserializeOwned;

use crate::documents::code::{Program, one_line};
use crate::harness::documents::read;
use crate::harness::names::names;

type Names = (&'static str, &'static [&'static str]);

/// The names of every enum that is private to the crate of the replicated state.
fn private_enums() -> BTreeMap<&'static str, Names> {
    #[derive(Default)]
    struct Found(BTreeMap<&'static str, Names>);
    impl Private for Found {
        fn visit<T: DeserializeOwned>(&mut self) {
            let names = names::<T>();
            self.0.insert(names.0, names);
        }
    }
    let mut found = Found::default();
    visit_private(&mut found);
    found.0
}

#[test]
fn formats_numbers_every_variant_as_the_code_does() {
    let formats = one_line(&read("docs/FORMATS.md"));
    let mut private = private_enums();
    let mut private = |name: &str| private.remove(name).unwrap_or_else(|| panic!("{name} is not visited"));
    let mut checked = 0;
    // The enum, and the words in FORMATS between which its variants stand.
    for ((name, variants), from, to) in [
        (names::<Request>(), "Request: 0 Status", "Response:"),
        (names::<Response>(), "Response: 0 Status", "code:"),
        (names::<Stage>(), "stage: 0", "```"),
        (names::<AdminRequest>(), "AdminRequest: 0", "AdminResponse:"),
        (names::<AdminResponse>(), "AdminResponse: 0", "AdminProgress:"),
        (names::<PeerRequest>(), "PeerRequest: 0", "forwarded:"),
        (names::<ForwardedRequest>(), "forwarded: 0", "caller:"),
        (names::<ForwardedReply>(), "forwarded reply: 0", "Refused:"),
        (names::<Principal>(), "who: 0", "door:"),
        (names::<Door>(), "door: 0", "from:"),
        (names::<Origin>(), "from: 0", "restrictions:"),
        (names::<Restrictions>(), "restrictions: 0", "PeerReply:"),
        (names::<PeerReply>(), "PeerReply: 0", "forwarded reply:"),
        (names::<peer::PeerRefusal>(), "Refused: 0", "flushed:"),
        (names::<KeyChange>(), "Change( 0 Create", "1 Order("),
        (names::<Order>(), "Order( 0", "2 Progress"),
        (private("Ask"), "ask: 0", "reply:"),
        (private("Tell"), "tell: 0", "One append"),
        (names::<Change>(), "change: 0", "A command has"),
        (names::<command::Operation>(), "operation: 0", "RegisterShareKey{"),
        (private("PayloadV1"), "payload: 0", "change: 0"),
        (private("MetaV1"), "Meta: 0 V1(", "keys: identity"),
        (private("RowV1"), "are `Row`: 0 V1(", "the variant must match"),
        (private("Chunk"), "chunk: 0", "Rows are those"),
        (private("EpochPhaseV1"), "phase (0", "threshold, seats"),
    ] {
        let drawn = formats.split_once(from).unwrap_or_else(|| panic!("FORMATS has no {from:?}")).1;
        let drawn = format!("{from}{}", drawn.split_once(to).unwrap_or_else(|| panic!("FORMATS has no {to:?}")).0);
        let words: Vec<_> =
            drawn.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
        for (number, variant) in variants.iter().enumerate() {
            checked += 1;
            let drawn = words.windows(2).any(|pair| pair[0] == number.to_string() && pair[1] == *variant);
            assert!(drawn, "FORMATS does not draw {number} {variant} of {name} between {from:?} and {to:?}");
        }
    }
    assert!(checked > 100, "the control: {checked} variants were found");
}

#[test]
fn formats_draws_every_field_in_its_order() {
    let formats = one_line(&read("docs/FORMATS.md"));
    let mut checked = 0;
    for (name, fields) in [
        names::<command::Found>(),
        names::<command::NewMember>(),
        names::<command::OpenEpoch>(),
        names::<command::Seat>(),
        names::<command::EpochAck>(),
        names::<command::CreateKey>(),
        names::<command::RotateKey>(),
        names::<command::Ready>(),
        names::<command::Verified>(),
        names::<command::ReportLock>(),
        names::<command::Begin>(),
        names::<command::RegisterShareKey>(),
        names::<command::Reshare>(),
        names::<command::Reshared>(),
        names::<Envelope>(),
        names::<WireError>(),
        names::<KeyInfo>(),
        names::<VersionInfo>(),
        names::<KeySummary>(),
        names::<Status>(),
        names::<OperationStatus>(),
        names::<Alarm>(),
        names::<NodeInfo>(),
        names::<NodeState>(),
        names::<OldCopies>(),
        names::<Progress>(),
        names::<RevocationProgress>(),
        names::<PublicStatus>(),
        names::<LocalStatus>(),
        names::<ClusterFile>(),
        names::<ClusterNode>(),
        names::<Caller>(),
        names::<Hello>(),
        names::<Report>(),
    ] {
        // Two of the drawings have a space between the name and the brace.
        let begins = [format!("{name}{{ "), format!("{name} {{ ")];
        let starts = begins.iter().flat_map(|begins| formats.match_indices(begins)).map(|(at, _)| &formats[at..]);
        let drawn: Vec<Vec<_>> = starts
            .filter_map(|rest| rest.split_once('}'))
            .map(|(drawn, _)| drawn.split(|letter: char| !letter.is_ascii_lowercase() && letter != '_').collect())
            .collect();
        let in_order = |words: &Vec<&str>| {
            let mut words = words.iter();
            fields.iter().all(|field| words.any(|word| word == field))
        };
        assert!(drawn.iter().any(in_order), "FORMATS does not draw {name} with {fields:?}: {drawn:?}");
        checked += fields.len();
    }
    assert!(checked > 100, "the control: {checked} fields were found");
}

#[test]
fn formats_draws_every_label_and_magic() {
    let formats = read("docs/FORMATS.md");
    let program = Program::read();
    let constants = program.product().flat_map(|(_, text)| text.split("&[u8] = b\"").skip(1));
    let labels: Vec<_> = constants.filter_map(|rest| rest.split('"').next()).collect();
    assert!(labels.len() > 20, "the control: {labels:?}");
    // The roots of section 2 are written once in full, and the others by their ends.
    let short = |label: &str| format!("`{}`", label.trim_start_matches("quorate/v1/"));
    for label in labels {
        assert!(formats.contains(label) || formats.contains(&short(label)), "FORMATS has no label {label}");
    }
    let mut magics = BTreeSet::new();
    for (_, text) in program.product() {
        for rest in text.split("b\"Q").skip(1) {
            let magic: String = rest.chars().take(3).collect();
            if magic.chars().all(|letter| letter.is_ascii_uppercase() || letter.is_ascii_digit()) {
                magics.insert(format!("Q{magic}"));
            }
        }
    }
    assert!(magics.len() >= 8, "the control: {magics:?}");
    for magic in magics {
        assert!(
            formats.contains(&format!("\"{magic}")) || formats.contains(&format!("`{magic}`")),
            "FORMATS has no {magic}"
        );
    }
}
