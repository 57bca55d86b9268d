//! Every byte that a client sends or receives.
//!
//! A request is an [`Envelope`] in a frame of `quorate-client/1`, its answer an [`Answered`].
//! Values are encoded by `quorate_shares::codec`: bounded, with nothing left over, and variants that are not known are
//! refused. Variants and fields are appended, never moved. What nodes say to each other is not here; what a person at the
//! machine says through the local socket is in [`AdminRequest`].

mod admin;
mod secret;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use quorate_shares::codec;
use quorate_shares::context::Context;
use quorate_shares::ids::{Epoch, KeyName, KeyUid, KeyVersion, NodeName};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use admin::{
    AdminProgress, AdminRequest, AdminResponse, LocalStatus, PUBLIC_STATUS, PublicStatus, SOCKET, SecretMemory,
};
pub use quorate_shares::envelope::PLAINTEXT_BYTES_MAX;
pub use quorate_shares::ids::{TAG_BYTES_MAX, TAGS_MAX};
pub use secret::{Plaintext, TOKEN_TEXT_PREFIX, Token, TokenError};
pub use status::{
    Alarm, NodeInfo, NodeState, OldCopies, OperationStatus, Phase, Progress, RevocationProgress, Role, Stage, Status,
};

use crate::cluster_file::ClusterFile;
use crate::error::Code;
use crate::frame::BODY_BYTES_MAX;

/// Most keys in one page of a list; a request for more gets this many.
pub const KEYS_PAGE_MAX: u32 = 1000;
/// Largest data key, in bytes; a request for more is refused.
pub const DATA_KEY_BYTES_MAX: u16 = 1024;

/// Names one attempt to change something: repeated with the same id, a change is made once.
pub type RequestId = [u8; 16];

/// What a client sends.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// Who asks.
    pub token: Token,
    /// How long the client waits.
    pub deadline_ms: u32,
    /// What for.
    pub request: Request,
}

/// What a client may ask.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// The state of the cluster.
    Status,
    /// Encrypts under the newest version of `key`.
    Encrypt {
        /// The key's name.
        key: KeyName,
        /// What the ciphertext is bound to.
        #[serde(with = "context")]
        context: Context,
        /// The message.
        plaintext: Plaintext,
    },
    /// Decrypts a ciphertext, which says its key itself.
    Decrypt {
        /// Text or binary form.
        #[serde(with = "serde_bytes")]
        ciphertext: Vec<u8>,
        /// The context that it was encrypted with.
        #[serde(with = "context")]
        context: Context,
    },
    /// A fresh key in plain and encrypted under `key`.
    DataKey {
        /// The key's name.
        key: KeyName,
        /// What the wrapped form is bound to.
        #[serde(with = "context")]
        context: Context,
        /// Its length, 1 to [`DATA_KEY_BYTES_MAX`].
        bytes: u16,
    },
    /// Makes a key.
    CreateKey {
        /// Names the attempt.
        request_id: RequestId,
        /// Its name, for ever.
        name: KeyName,
        /// Notes for people.
        tags: BTreeMap<String, String>,
    },
    /// Keys in order of name.
    ListKeys {
        /// Those behind this one; `None` from the first.
        after: Option<KeyName>,
        /// At most so many, and at most [`KEYS_PAGE_MAX`].
        limit: u32,
    },
    /// One key and its versions.
    ShowKey {
        /// Its name.
        name: KeyName,
    },
    /// Makes a new version.
    RotateKey {
        /// Names the attempt.
        request_id: RequestId,
        /// The key's name.
        name: KeyName,
        /// Refuse unless this is the newest version.
        expect: Option<KeyVersion>,
    },
    /// All nodes.
    ListNodes,
    /// One node.
    NodeStatus {
        /// Its name.
        name: NodeName,
    },
    /// The client file.
    Export,
    /// The same bytes back.
    Echo(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Takes a node out of the cluster in good order.
    RemoveNode {
        /// Names the attempt.
        request_id: RequestId,
        /// Which.
        name: NodeName,
        /// Two nodes may remain, of which the loss of one disk loses every key.
        accept_no_redundancy: bool,
        /// Nodes that are away and count as lost: that they could not unlock themselves again does not hold it up.
        abandon: Vec<NodeName>,
    },
    /// Has nodes refused from now on, and everything dealt anew without them.
    RevokeNodes {
        /// Names the attempt.
        request_id: RequestId,
        /// Which: at least one.
        names: Vec<NodeName>,
    },
    /// How far an operation is.
    Progress {
        /// Which.
        operation: Epoch,
    },
    /// One node forgets all keys and stays without, over restarts, until it is unsealed.
    SealNode {
        /// Its name.
        name: NodeName,
    },
    /// It serves again.
    UnsealNode {
        /// Its name.
        name: NodeName,
    },
    /// A node may come back, however long it was away.
    AdmitNode {
        /// Its name.
        name: NodeName,
    },
    /// The open alarms of all nodes.
    ListAlarms,
    /// Closes alarms at all nodes.
    DisarmAlarms {
        /// Alarms of which codes; `None` means all.
        codes: Option<BTreeSet<String>>,
    },
    /// An invitation for one node.
    InviteNode {
        /// The name that the node must have, if one is chosen.
        name: Option<NodeName>,
        /// How long it is good for.
        ttl_ms: u64,
    },
    /// Whoever joins with the invitation takes the place of a node, which is revoked.
    ReplaceNode {
        /// The node that goes.
        name: NodeName,
        /// The text of the invitation.
        invitation: Plaintext,
    },
}

/// What a client is answered, unless it is a [`WireError`].
#[derive(Debug, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Encrypt`]: the text form.
    Ciphertext(String),
    /// To [`Request::Decrypt`].
    Plaintext(Plaintext),
    /// To [`Request::DataKey`].
    DataKey {
        /// The key itself.
        plaintext: Plaintext,
        /// The same, encrypted: the text form.
        wrapped: String,
    },
    /// To [`Request::CreateKey`], [`Request::ShowKey`] and [`Request::RotateKey`].
    Key(KeyInfo),
    /// To [`Request::ListKeys`].
    Keys {
        /// By rising name.
        keys: Vec<KeySummary>,
        /// Whether there are more behind the last.
        more: bool,
    },
    /// To [`Request::ListNodes`], by rising id.
    Nodes(Vec<NodeInfo>),
    /// To [`Request::NodeStatus`].
    Node(Box<NodeInfo>),
    /// To [`Request::Export`].
    Export(ClusterFile),
    /// To [`Request::Echo`].
    Echo(#[serde(with = "serde_bytes")] Vec<u8>),
    /// To [`Request::RemoveNode`] and [`Request::RevokeNodes`]: the operation runs, or ran to its end before.
    Begun {
        /// The epoch that it brings, which names it.
        operation: Epoch,
    },
    /// To [`Request::Progress`].
    Progress(Box<Progress>),
    /// To [`Request::SealNode`] and [`Request::UnsealNode`], once it is durable there.
    Done,
    /// To [`Request::AdmitNode`].
    Admitted {
        /// Members that will unlock it.
        at: Vec<NodeName>,
        /// Members that could not be told, and still count its absence.
        silent: Vec<NodeName>,
    },
    /// To [`Request::ListAlarms`], oldest first.
    Alarms(Vec<Alarm>),
    /// To [`Request::DisarmAlarms`], once it is durable.
    Disarmed {
        /// The alarms that are closed now.
        alarms: Vec<Alarm>,
        /// Members that could not be told, whose alarms stay.
        silent: Vec<NodeName>,
    },
    /// To [`Request::InviteNode`]: the text of the invitation, a secret.
    Invitation(Plaintext),
    /// To [`Request::ReplaceNode`].
    Designated,
}

/// The answer to a request.
pub type Answer = Result<Response, WireError>;

/// What a node sends back: an answer, and how long it may be believed.
///
/// A node answers only while it holds a lease. Between its last look at the lease and the network it may be stopped for any
/// length of time (SIGSTOP, a paused virtual machine), and no check of its own can see that: the answer leaves when it goes
/// on. So every answer says how long it holds, and the client, whose clock went on, discards one that comes later.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answered {
    /// Milliseconds since the request reached the node. The client counts from when it sent the request, which is earlier.
    pub good_for_ms: u32,
    /// The answer.
    pub answer: Answer,
}

impl Answered {
    /// [`Answered::good_for_ms`] of an answer that rests on no lease: how a node is, or that it does not serve.
    pub const ALWAYS: u32 = u32::MAX;

    /// An answer that rests on no lease.
    pub fn always(answer: Answer) -> Self {
        Self { good_for_ms: Self::ALWAYS, answer }
    }

    /// The answer, unless it is too old now, `age_ms` milliseconds after its request was sent.
    pub fn fresh(self, age_ms: u64) -> Option<Answer> {
        Self::holds(self.good_for_ms, age_ms).then_some(self.answer)
    }

    /// Whether an answer that is good for so long holds at this age.
    pub fn holds(good_for_ms: u32, age_ms: u64) -> bool {
        good_for_ms == Self::ALWAYS || age_ms < u64::from(good_for_ms)
    }
}

/// One key with its versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// Its name.
    pub name: KeyName,
    /// How logs call it.
    pub uid: KeyUid,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// Notes for people.
    pub tags: BTreeMap<String, String>,
    /// By rising number; never empty.
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
    /// Its number, from 1.
    pub version: KeyVersion,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// Whether enough holders have checked their shares of it, so that it may be used.
    pub ready: bool,
    /// Whether it existed while one disk alone opened every key: whoever had that disk has this version.
    pub one_disk: bool,
}

/// One key in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySummary {
    /// Its name.
    pub name: KeyName,
    /// How logs call it.
    pub uid: KeyUid,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// Its newest version.
    pub newest: KeyVersion,
    /// Whether that existed while one disk alone opened every key.
    pub one_disk: bool,
    /// Notes for people.
    pub tags: BTreeMap<String, String>,
}

/// A refusal: what went wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireError {
    /// For programs.
    pub code: Code,
    /// For people: lower case, no full stop, never a secret.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl WireError {
    /// A refusal without a hint.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// The same, with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for WireError {}

/// The bytes of a message.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    codec::encode(message).expect("writing into memory does not fail")
}

/// Reads a message that fills `bytes` exactly.
///
/// # Errors
/// [`Code::TooLarge`] for more than [`BODY_BYTES_MAX`] bytes, [`Code::BadRequest`] for anything but one whole message.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    if bytes.len() > BODY_BYTES_MAX {
        return Err(WireError::new(Code::TooLarge, format!("message larger than {BODY_BYTES_MAX} bytes")));
    }
    codec::decode::<T, DECODE_LIMIT>(bytes).map_err(|error| WireError::new(Code::BadRequest, error.to_string()))
}

/// The bytes that a length field inside a message may claim.
const DECODE_LIMIT: usize = 2 * BODY_BYTES_MAX;

/// A context travels in its one byte form, so that nothing but that form is ever accepted.
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
        Envelope { token: Token::random(), deadline_ms: 1000, request }
    }

    #[test]
    fn requests_survive_the_wire() {
        let token = Token::random();
        let request = Request::Encrypt {
            key: "billing/cards".parse().expect("a name"),
            context: Context::new([("b", "2"), ("a", "1")]).expect("distinct"),
            plaintext: Plaintext::new(b"attack at dawn".to_vec()).expect("short"),
        };
        let hash = token.hash();
        let bytes = encode(&Envelope { token, deadline_ms: 7, request });
        let read: Envelope = decode(&bytes).expect("our own bytes");
        assert_eq!((read.token.hash(), read.deadline_ms), (hash, 7));
        let Request::Encrypt { key, context, plaintext } = read.request else { panic!("another request") };
        assert_eq!(key.as_str(), "billing/cards");
        assert_eq!(context.iter().collect::<Vec<_>>(), [("a", "1"), ("b", "2")]);
        assert_eq!(plaintext.expose(), b"attack at dawn");
    }

    /// T45.
    #[test]
    fn what_is_not_known_is_refused_and_not_ignored() {
        let good = encode(&envelope(Request::Status));
        decode::<Envelope>(&good).expect("the control");
        let mut trailing = good.clone();
        trailing.push(0);
        assert_eq!(decode::<Envelope>(&trailing).expect_err("one byte more").code, Code::BadRequest);
        let mut unknown = good.clone();
        *unknown.last_mut().expect("not empty") = 200;
        assert_eq!(decode::<Envelope>(&unknown).expect_err("no such request").code, Code::BadRequest);
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
        let token = Token::random();
        let text = token.text();
        let request = Request::Encrypt {
            key: "k".parse().expect("a name"),
            context: Context::empty(),
            plaintext: Plaintext::new(b"canary".to_vec()).expect("short"),
        };
        let printed = format!("{:?}", Envelope { token, deadline_ms: 0, request });
        assert!(!printed.contains("canary") && !printed.contains("99, 97, 110"), "{printed}");
        assert!(!printed.contains(&text[TOKEN_TEXT_PREFIX.len()..]), "{printed}");
        let response = Response::Plaintext(Plaintext::new(b"canary".to_vec()).expect("short"));
        assert_eq!(format!("{response:?}"), "Plaintext(Plaintext(6 bytes))");
    }
}
