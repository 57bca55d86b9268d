//! The messages between clients and nodes.
//!
//! A request is an [`Envelope`] in a frame of `quorate-client/1`; its answer is an [`Answered`]. Messages are encoded
//! by `quorate_shares::codec`: they have limits, leave no bytes over, and unknown variants are refused. A variant never
//! changes: what has one field more is a new variant, and new variants are appended. So a side that is older than the other
//! one reads everything that it knows, and says its version if it is sent something else ([`decode`]).
//!
//! The messages on the local socket are [`AdminRequest`] and its answers. The messages between nodes are not here.

mod admin;
mod plaintext;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use quorate_shares::codec::{self, CodecError};
use quorate_shares::context::Context;
use quorate_shares::ids::{Epoch, KeyName, KeyUid, KeyVersion, NodeName};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use admin::{
    AdminProgress, AdminRequest, AdminResponse, INVITATION_TEXT_PREFIX, LocalStatus, PUBLIC_STATUS, PublicStatus,
    SOCKET, SecretMemory,
};
pub use plaintext::Plaintext;
pub use quorate_shares::envelope::PLAINTEXT_BYTES_MAX;
pub use quorate_shares::ids::{TAG_BYTES_MAX, TAGS_MAX};
pub use status::{
    Alarm, NodeInfo, NodeState, OldCopies, OperationStatus, Phase, Progress, RevocationProgress, Role, Stage, Status,
};

use crate::VERSION;
use crate::cluster_file::ClusterFile;
use crate::error::{Code, printable};
use crate::frame::BODY_BYTES_MAX;

/// Most keys in one page of a list. A request for more gets this many.
pub const KEYS_PAGE_MAX: u32 = 1000;
/// Most bytes of the keys in one page of a list, each counted as it is sent. A page with more ends before, behind its first
/// key at the earliest. The largest key takes 17 kB.
pub const KEYS_PAGE_BYTES_MAX: usize = 1 << 20;
/// Longest data key, in bytes. A request for a longer one is refused.
pub const DATA_KEY_BYTES_MAX: u16 = 1024;

/// Names one attempt to change something: 16 random bytes. A change that is repeated with the same id is made once.
pub type RequestId = [u8; 16];

/// A request of a client, with what every request carries.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// How long the client waits, in milliseconds.
    pub deadline_ms: u32,
    /// The request itself.
    pub request: Request,
}

/// What a client asks.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Asks for the state of the cluster.
    Status,
    /// Encrypts under the newest version of `key`.
    Encrypt {
        /// The name of the key.
        key: KeyName,
        /// What the ciphertext is bound to.
        #[serde(with = "context")]
        context: Context,
        /// The message to encrypt.
        plaintext: Plaintext,
    },
    /// Decrypts a ciphertext, whose header names its key.
    Decrypt {
        /// The ciphertext in text or binary form.
        #[serde(with = "serde_bytes")]
        ciphertext: Vec<u8>,
        /// The context that it was encrypted with.
        #[serde(with = "context")]
        context: Context,
    },
    /// Draws a data key, and returns it in plain and encrypted under `key`.
    DataKey {
        /// The name of the key.
        key: KeyName,
        /// What the encrypted form is bound to.
        #[serde(with = "context")]
        context: Context,
        /// The length of the data key in bytes: 1 to [`DATA_KEY_BYTES_MAX`].
        bytes: u16,
    },
    /// Creates a key.
    CreateKey {
        /// Names this attempt.
        request_id: RequestId,
        /// The name of the key. It never changes.
        name: KeyName,
        /// Notes for people, by name.
        tags: BTreeMap<String, String>,
    },
    /// Asks for one page of the list of keys, by rising name.
    ListKeys {
        /// The page begins after this name; `None` for the first page.
        after: Option<KeyName>,
        /// Most keys in the page. It is cut to [`KEYS_PAGE_MAX`].
        limit: u32,
    },
    /// Asks for one key and its versions.
    ShowKey {
        /// The name of the key.
        name: KeyName,
    },
    /// Creates a new version of a key.
    RotateKey {
        /// Names this attempt.
        request_id: RequestId,
        /// The name of the key.
        name: KeyName,
        /// If given, refuse unless this is the newest version.
        expect: Option<KeyVersion>,
    },
    /// Asks for all nodes.
    ListNodes,
    /// Asks for one node.
    NodeStatus {
        /// The name of the node.
        name: NodeName,
    },
    /// Asks for the client file.
    Export,
    /// Asks for the same bytes back.
    Echo(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Removes a node from the cluster in an orderly way.
    RemoveNode {
        /// Names this attempt.
        request_id: RequestId,
        /// The name of the node.
        name: NodeName,
        /// Two nodes may remain. Then the loss of one disk loses every key.
        accept_no_redundancy: bool,
        /// Nodes that do not answer and count as lost. The removal goes on although they may be unable to unlock
        /// themselves later.
        abandon: Vec<NodeName>,
    },
    /// Revokes nodes: the others refuse them from now on, and all keys are reshared without them.
    RevokeNodes {
        /// Names this attempt.
        request_id: RequestId,
        /// The names of the nodes: at least one.
        names: Vec<NodeName>,
        /// Nodes that do not answer now and come back with their disks. The revocation may need them.
        expect_back: Vec<NodeName>,
    },
    /// Asks for the progress of an operation.
    Progress {
        /// The operation, named by the epoch that it brings.
        operation: Epoch,
    },
    /// Seals a node: it forgets all keys and stays without them, also after restarts, until it is unsealed.
    SealNode {
        /// The name of the node.
        name: NodeName,
    },
    /// Unseals a node: it serves again.
    UnsealNode {
        /// The name of the node.
        name: NodeName,
    },
    /// Admits a node again, for any length of its absence.
    AdmitNode {
        /// The name of the node.
        name: NodeName,
    },
    /// Asks for the open alarms of all nodes.
    ListAlarms,
    /// Closes alarms at all nodes.
    DisarmAlarms {
        /// The codes of the alarms; `None` for all alarms.
        codes: Option<BTreeSet<String>>,
    },
    /// Asks for an invitation for one node.
    InviteNode {
        /// The name that the node must have; `None` for any name.
        name: Option<NodeName>,
        /// How long the invitation is valid, in milliseconds.
        ttl_ms: u64,
    },
    /// Names a node that is to be replaced: the node that joins with the invitation replaces it, and it is then revoked.
    ReplaceNode {
        /// The name of the node that is replaced.
        name: NodeName,
        /// The text of the invitation.
        invitation: Plaintext,
    },
    /// Records where a node listens.
    SetAddresses {
        /// The name of the node.
        name: NodeName,
        /// As `host:port`, best first: at least one.
        addresses: Vec<String>,
    },
}

/// The answer to a [`Request`] that succeeded.
#[derive(Debug, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Encrypt`]: the ciphertext in its text form.
    Ciphertext(String),
    /// To [`Request::Decrypt`]: the message.
    Plaintext(Plaintext),
    /// To [`Request::DataKey`].
    DataKey {
        /// The data key itself.
        plaintext: Plaintext,
        /// The same data key, encrypted, in the text form of a ciphertext.
        wrapped: String,
    },
    /// To [`Request::CreateKey`], [`Request::ShowKey`] and [`Request::RotateKey`].
    Key(KeyInfo),
    /// To [`Request::ListKeys`].
    Keys {
        /// The keys, by rising name.
        keys: Vec<KeySummary>,
        /// Whether more keys follow the last one.
        more: bool,
    },
    /// To [`Request::ListNodes`], by rising id.
    Nodes(Vec<NodeInfo>),
    /// To [`Request::NodeStatus`].
    Node(Box<NodeInfo>),
    /// To [`Request::Export`].
    Export(ClusterFile),
    /// To [`Request::Echo`]: the bytes of the request.
    Echo(#[serde(with = "serde_bytes")] Vec<u8>),
    /// To [`Request::RemoveNode`] and [`Request::RevokeNodes`]: the operation runs, or is already done.
    Begun {
        /// The epoch that the operation brings. It names the operation.
        operation: Epoch,
    },
    /// To [`Request::Progress`].
    Progress(Box<Progress>),
    /// To [`Request::SealNode`] and [`Request::UnsealNode`], when the change is durable at the node; to
    /// [`Request::SetAddresses`], when the cluster has agreed on it.
    Done,
    /// To [`Request::AdmitNode`].
    Admitted {
        /// Members that will unlock the node.
        at: Vec<NodeName>,
        /// Members that could not be told. They still count its absence.
        silent: Vec<NodeName>,
    },
    /// To [`Request::ListAlarms`], oldest first.
    Alarms(Vec<Alarm>),
    /// To [`Request::DisarmAlarms`], when the change is durable.
    Disarmed {
        /// The alarms that are closed now.
        alarms: Vec<Alarm>,
        /// Members that could not be told. Their alarms stay open.
        silent: Vec<NodeName>,
    },
    /// To [`Request::InviteNode`]: the text of the invitation, which is a secret.
    Invitation(Plaintext),
    /// To [`Request::ReplaceNode`].
    Replacing,
}

/// The answer to a request, or why it is refused.
pub type Answer = Result<Response, WireError>;

/// The message that a node sends back: an answer, and how long it is valid.
///
/// A node answers only while it holds a lease. But it may be stopped (SIGSTOP, a paused virtual machine) after its last
/// check of the lease and before the answer leaves, for any length of time. The node itself cannot detect this. So
/// every answer says how long it is valid. The clock of the client goes on meanwhile, and the client discards an answer
/// that comes later.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answered {
    /// How long the answer is valid, in milliseconds since the request reached the node. The client counts from the
    /// time when it sent the request, which is earlier.
    pub good_for_ms: u32,
    /// The answer itself.
    pub answer: Answer,
}

impl Answered {
    /// [`Answered::good_for_ms`] of an answer that needs no lease: the state of a node, or that it does not serve.
    pub const ALWAYS: u32 = u32::MAX;

    /// An answer that needs no lease.
    pub fn always(answer: Answer) -> Self {
        Self { good_for_ms: Self::ALWAYS, answer }
    }

    /// The answer; `None` if it is too old `age_ms` milliseconds after its request was sent.
    pub fn fresh(self, age_ms: u64) -> Option<Answer> {
        Self::holds(self.good_for_ms, age_ms).then_some(self.answer)
    }

    /// Whether an answer that is valid for `good_for_ms` is still valid after `age_ms`, both in milliseconds.
    pub fn holds(good_for_ms: u32, age_ms: u64) -> bool {
        good_for_ms == Self::ALWAYS || age_ms < u64::from(good_for_ms)
    }
}

/// One key and its versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// The name of the key.
    pub name: KeyName,
    /// The id under which logs show the key.
    pub uid: KeyUid,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: u64,
    /// Notes for people, by name.
    pub tags: BTreeMap<String, String>,
    /// The versions, by rising number. Never empty.
    pub versions: Vec<VersionInfo>,
}

impl KeyInfo {
    /// The version that new messages are encrypted under.
    pub fn newest(&self) -> Option<&VersionInfo> {
        self.versions.last()
    }
}

/// One version of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// The number of the version, from 1.
    pub version: KeyVersion,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: u64,
    /// Whether enough holders have checked their shares of this version. Before that, it may not be used.
    pub ready: bool,
    /// Whether the version existed while one disk alone opened every key. A person who had that disk has this version.
    pub one_disk: bool,
}

/// One key in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySummary {
    /// The name of the key.
    pub name: KeyName,
    /// The id under which logs show the key.
    pub uid: KeyUid,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: u64,
    /// The number of the newest version.
    pub newest: KeyVersion,
    /// Whether the newest version existed while one disk alone opened every key.
    pub one_disk: bool,
    /// Notes for people, by name.
    pub tags: BTreeMap<String, String>,
}

/// A refusal: what went wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireError {
    /// What went wrong, for programs.
    pub code: Code,
    /// What went wrong, for people: in lower case, without a full stop, and never with a secret.
    pub message: String,
    /// What the user can do.
    pub hint: Option<String>,
}

impl WireError {
    /// A refusal without a hint.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// Adds a hint, which says what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same refusal, of a program that may lie, with texts that only say something ([`printable`]).
    #[must_use]
    pub fn printable(self) -> Self {
        let Self { code, message, hint } = self;
        Self { code, message: printable(&message), hint: hint.as_deref().map(printable) }
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for WireError {}

/// Encodes a message.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    codec::encode(message).expect("writing into memory does not fail")
}

/// Reads a message that fills `bytes` exactly.
///
/// # Errors
/// [`Code::TooLarge`] for more than [`BODY_BYTES_MAX`] bytes; [`Code::Protocol`] for a variant that this version does not
/// know; [`Code::BadRequest`] for anything else but one whole message.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    if bytes.len() > BODY_BYTES_MAX {
        return Err(WireError::new(Code::TooLarge, format!("message larger than {BODY_BYTES_MAX} bytes")));
    }
    codec::decode::<T, DECODE_LIMIT>(bytes).map_err(|error| match error {
        CodecError::UnknownVariant => WireError::new(Code::Protocol, format!("{error} than quorate {VERSION} knows")),
        _ => WireError::new(Code::BadRequest, error.to_string()),
    })
}

/// Most bytes that the length fields of a message may claim.
const DECODE_LIMIT: usize = 2 * BODY_BYTES_MAX;

/// A context is sent in its one byte form, so that no other form is accepted.
mod context {
    use quorate_shares::context::Context;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(context: &Context, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(context.as_bytes())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Context, D::Error> {
        let bytes = serde_bytes::ByteBuf::deserialize(deserializer)?;
        Context::parse(&bytes).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(request: Request) -> Envelope {
        Envelope { deadline_ms: 1000, request }
    }

    #[test]
    fn requests_survive_the_wire() {
        let request = Request::Encrypt {
            key: "billing/cards".parse().expect("a name"),
            context: Context::new([("b", "2"), ("a", "1")]).expect("distinct"),
            plaintext: Plaintext::new(b"attack at dawn".to_vec()).expect("short"),
        };
        let bytes = encode(&Envelope { deadline_ms: 7, request });
        let read: Envelope = decode(&bytes).expect("our own bytes");
        assert_eq!(read.deadline_ms, 7);
        let Request::Encrypt { key, context, plaintext } = read.request else { panic!("another request") };
        assert_eq!(key.as_str(), "billing/cards");
        assert_eq!(context.iter().collect::<Vec<_>>(), [("a", "1"), ("b", "2")]);
        assert_eq!(plaintext.expose(), b"attack at dawn");
    }

    /// T45.
    #[test]
    fn unknown_variants_and_bytes_are_refused_and_not_ignored() {
        let good = encode(&envelope(Request::Status));
        decode::<Envelope>(&good).expect("the control");
        let mut trailing = good.clone();
        trailing.push(0);
        assert_eq!(decode::<Envelope>(&trailing).expect_err("one byte more").code, Code::BadRequest);
        let mut unknown = good.clone();
        *unknown.last_mut().expect("not empty") = 200;
        let refused = decode::<Envelope>(&unknown).expect_err("no such request");
        assert_eq!(refused.code, Code::Protocol);
        assert!(refused.message.contains(VERSION), "{refused}");
        for end in 0..good.len() {
            assert!(decode::<Envelope>(&good[..end]).is_err(), "cut at {end}");
        }
        assert_eq!(decode::<Envelope>(&vec![0; BODY_BYTES_MAX + 1]).expect_err("too long").code, Code::TooLarge);
    }

    #[test]
    fn a_context_has_one_form_and_names_are_checked_on_arrival() {
        #[derive(Serialize)]
        enum Loose<'a> {
            #[expect(dead_code, reason = "takes the number of Request::Status")]
            Status,
            Encrypt(&'a str, serde_bytes::ByteBuf, serde_bytes::ByteBuf),
        }
        let read = |name: &str, context: &[u8], plaintext: usize| {
            let loose = Loose::Encrypt(
                name,
                serde_bytes::ByteBuf::from(context.to_vec()),
                serde_bytes::ByteBuf::from(vec![0; plaintext]),
            );
            decode::<Request>(&encode(&loose))
        };
        let ordered = b"\x00\x02\x00\x01a\x00\x011\x00\x01b\x00\x012";
        read("key", ordered, PLAINTEXT_BYTES_MAX).expect("the control");
        read("Key", ordered, 0).expect_err("not a name");
        read("key", b"\x00\x02\x00\x01b\x00\x012\x00\x01a\x00\x011", 0).expect_err("out of order");
        read("key", b"\x00\x02\x00\x01a\x00\x011\x00\x01a\x00\x012", 0).expect_err("twice");
        read("key", ordered, PLAINTEXT_BYTES_MAX + 1).expect_err("too long");
    }

    #[test]
    fn nothing_prints_a_secret() {
        let request = Request::Encrypt {
            key: "k".parse().expect("a name"),
            context: Context::empty(),
            plaintext: Plaintext::new(b"canary".to_vec()).expect("short"),
        };
        let printed = format!("{:?}", Envelope { deadline_ms: 0, request });
        assert!(!printed.contains("canary") && !printed.contains("99, 97, 110"), "{printed}");
        let response = Response::Plaintext(Plaintext::new(b"canary".to_vec()).expect("short"));
        assert_eq!(format!("{response:?}"), "Plaintext(Plaintext(6 bytes))");
    }
}
