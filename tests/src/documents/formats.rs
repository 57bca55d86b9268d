//! FORMATS draws what the code writes: every variant with its number, every field in its place, every label and magic.
//!
//! The bytes themselves are held by vectors. This keeps the page whole: whoever adds a message or a field and does not draw it
//! fails here.

use std::collections::BTreeSet;

use crate::documents::code::{Program, block, one_line};
use crate::documents::readme::read;

/// The variants of an enum in the order in which they are declared, which is their number.
fn variants(source: &str, name: &str) -> Vec<String> {
    let code = block(source, name);
    let lines = code.lines().filter_map(|line| line.strip_prefix("    "));
    let names = lines.filter(|line| line.starts_with(|first: char| first.is_ascii_uppercase()));
    names
        .map(|line| line.split(|letter: char| !letter.is_ascii_alphanumeric()).next().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn formats_numbers_every_variant_as_the_code_does() {
    let formats = one_line(&read("docs/FORMATS.md"));
    let mut checked = 0;
    // The enum, and the words in FORMATS between which its variants stand.
    for (file, name, from, to) in [
        ("client/src/wire/mod.rs", "pub enum Request {", "Request: 0 Status", "Response:"),
        ("client/src/wire/mod.rs", "pub enum Response {", "Response: 0 Status", "code:"),
        ("client/src/wire/status.rs", "pub enum Stage {", "stage: 0", "```"),
        ("client/src/wire/admin.rs", "pub enum AdminRequest {", "AdminRequest: 0", "AdminResponse:"),
        ("client/src/wire/admin.rs", "pub enum AdminResponse {", "AdminResponse: 0", "AdminProgress:"),
        ("node/src/messages/peer.rs", "pub enum PeerRequest {", "PeerRequest: 0", "PeerReply:"),
        ("node/src/messages/peer.rs", "pub enum PeerReply {", "PeerReply: 0", "Refused: 0"),
        ("node/src/messages/peer.rs", "pub enum Refusal {", "Refused: 0", "flushed:"),
        ("node/src/messages/peer.rs", "pub enum KeyChange {", "Change( 0 Create", "13 Report"),
        ("node/src/messages/peer.rs", "pub enum Operate {", "Operate( 0", "16 Progress"),
        ("raft/src/messages.rs", "pub(crate) enum Ask {", "ask: 0", "reply:"),
        ("raft/src/messages.rs", "pub(crate) enum Tell {", "tell: 0", "One append"),
        ("raft/src/command.rs", "pub enum Change {", "change: 0", "A command has"),
        ("raft/src/command.rs", "pub enum Operation {", "operation: 0", "RegisterShareKey{"),
        ("raft/src/format.rs", "enum PayloadV1 {", "payload: 0", "change: 0"),
        ("raft/src/format.rs", "pub(crate) enum MetaV1 {", "Meta: 0 V1(", "keys: identity"),
        ("raft/src/rows.rs", "pub enum RowV1 {", "are `Row`: 0 V1(", "the variant must match"),
        ("raft/src/snapshot.rs", "pub(crate) enum Chunk {", "chunk: 0", "Rows are those"),
        ("raft/src/state.rs", "pub enum EpochPhase {", "phase (0", "threshold, seats"),
    ] {
        let drawn = formats.split_once(from).unwrap_or_else(|| panic!("FORMATS has no {from:?}")).1;
        let drawn = format!("{from}{}", drawn.split_once(to).unwrap_or_else(|| panic!("FORMATS has no {to:?}")).0);
        let words: Vec<_> =
            drawn.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
        let all = variants(&read(file), name);
        assert!(!all.is_empty(), "{file}: {name} has no variants");
        for (number, variant) in all.iter().enumerate() {
            checked += 1;
            let drawn = words.windows(2).any(|pair| pair[0] == number.to_string() && pair[1] == variant);
            assert!(drawn, "FORMATS does not draw {number} {variant} of {name} between {from:?} and {to:?}");
        }
    }
    assert!(checked > 100, "the control: {checked} variants were found");
}

/// The fields of a struct in the order in which they are declared, which is that of their bytes.
fn members(source: &str, name: &str) -> Vec<String> {
    let (mut found, mut kept) = (Vec::new(), true);
    for line in block(source, name).lines().filter_map(|line| line.strip_prefix("    ")) {
        let line = line.trim_start_matches("pub(crate) ").trim_start_matches("pub ");
        let field = line.split_once(": ").map(|(field, _)| field);
        match field.filter(|field| field.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_')) {
            Some(field) if kept => found.push(field.to_owned()),
            Some(_) => kept = true,
            None if line == "#[serde(skip)]" => kept = false,
            None => {}
        }
    }
    found
}

#[test]
fn formats_draws_every_field_in_its_order() {
    let formats = one_line(&read("docs/FORMATS.md"));
    let mut checked = 0;
    for (file, names) in [
        (
            "raft/src/command.rs",
            &[
                "Found",
                "NewMember",
                "OpenEpoch",
                "Seat",
                "EpochAck",
                "CreateKey",
                "RotateKey",
                "Ready",
                "Verified",
                "ReportLock",
                "Begin",
                "RegisterShareKey",
                "Redeal",
                "Redealt",
            ][..],
        ),
        ("client/src/wire/mod.rs", &["Envelope ", "WireError ", "KeyInfo", "VersionInfo", "KeySummary"]),
        (
            "client/src/wire/status.rs",
            &["Status", "Operation", "Alarm", "NodeInfo", "NodeState", "OldCopies", "Progress", "Revocation"],
        ),
        ("client/src/wire/admin.rs", &["PublicStatus", "LocalStatus"]),
        ("client/src/cluster_file.rs", &["ClusterFile", "ClusterNode"]),
        ("node/src/messages/peer.rs", &["Hello", "Report"]),
    ] {
        let source = read(file);
        for name in names {
            let fields = members(&source, &format!("pub struct {} {{", name.trim_end()));
            assert!(!fields.is_empty(), "{file}: {name} has no fields");
            let begins = format!("{name}{{ ");
            let starts = formats.match_indices(&begins).map(|(at, _)| &formats[at..]);
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
    }
    assert!(checked > 100, "the control: {checked} fields were found");
}

#[test]
fn formats_draws_every_label_and_magic() {
    let formats = read("docs/FORMATS.md");
    let labels = read("shares/src/labels.rs");
    let labels: Vec<_> = labels.split("&[u8] = b\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(labels.len() > 20, "the control: {labels:?}");
    // The roots of section 2 are written once in full, and the others by their ends.
    let short = |label: &str| format!("`{}`", label.trim_start_matches("quorate/v1/"));
    for label in labels {
        assert!(formats.contains(label) || formats.contains(&short(label)), "FORMATS has no label {label}");
    }
    let mut magics = BTreeSet::new();
    for (path, text) in Program::read().files {
        // What tests write stands for nothing.
        if path.components().any(|part| part.as_os_str().to_string_lossy().trim_end_matches(".rs").ends_with("tests")) {
            continue;
        }
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
