//! A ciphertext that was changed in any way opens at no node, and the answer does not say what is wrong with it.
//!
//! Everything here goes over the wire to a serving node. What the format promises by itself is tested where it is made,
//! in `shares/tests/proofs/ciphertexts.rs`.

use std::sync::Arc;
use std::time::Duration;

use quorate_client::conn::{Conn, Lane};
use quorate_client::identity::{Protocol, dial};
use quorate_client::wire::{self, Answer, Answered, Envelope, Request, Response, WireError};
use quorate_client::{Client, Code, Context};
use quorate_shares::envelope::Ciphertext;
use tokio::task::JoinSet;

use crate::harness::{TestCluster, name};

const MESSAGE: &[u8; 32] = b"thirty-two bytes of a plain text";
/// The alphabet of base64url (RFC 4648, 5).
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const TENANT: [(&str, &str); 1] = [("tenant", "42")];

fn context<const N: usize>(pairs: [(&str, &str); N]) -> Context {
    Context::new(pairs).expect("a context")
}

/// Decrypts over the wire, and gives back the whole refusal.
async fn open(client: &Client, ciphertext: impl AsRef<[u8]>, context: &Context) -> Result<Vec<u8>, WireError> {
    let opened = client.decrypt(ciphertext, context).await;
    opened.map(|plaintext| plaintext.expose().to_vec()).map_err(|error| error.error)
}

/// What a node answers about a ciphertext that parses and does not open.
fn refusal(cluster: &TestCluster, client: &Client, ciphertext: &str) -> WireError {
    let refused = cluster.block(open(client, ciphertext, &context([("tenant", "43")]))).expect_err("another context");
    assert_eq!(refused.code, Code::BadCiphertext, "{refused}");
    refused
}

/// Sends all of `changed` at once over one connection, and checks that each gets exactly this refusal.
fn all_refused_alike(cluster: &TestCluster, client: &Client, changed: Vec<Vec<u8>>, refused: &WireError) {
    let context = Arc::new(context(TENANT));
    cluster.block(async {
        let mut answers = JoinSet::new();
        for ciphertext in changed {
            let (client, context) = (client.clone(), Arc::clone(&context));
            answers.spawn(async move {
                let answer = open(&client, &ciphertext, &context).await;
                (ciphertext, answer)
            });
        }
        while let Some(answer) = answers.join_next().await {
            let (ciphertext, answer) = answer.expect("no panic");
            assert_eq!(answer.expect_err("changed"), *refused, "{}", String::from_utf8_lossy(&ciphertext));
        }
    });
}

fn encrypt(cluster: &TestCluster, client: &Client, key: &str, context: &Context) -> String {
    cluster.block(client.encrypt(&name(key), context, MESSAGE)).expect("encrypts")
}

/// T35. Skipping the comparison of the commitment leaves the first 256 bits of it free, and makes this fail.
#[test]
fn t35_no_bit_of_a_body_can_be_flipped_and_all_refusals_are_one() {
    let cluster = TestCluster::found();
    cluster.create("key");
    let client = cluster.client(Some("n2"));
    let text = encrypt(&cluster, &client, "key", &context(TENANT));
    let refused = refusal(&cluster, &client, &text);
    let parsed = Ciphertext::parse_text(&text).expect("our own ciphertext");
    let binary = parsed.to_binary();
    for form in [text.as_bytes(), &binary] {
        assert_eq!(cluster.block(open(&client, form, &context(TENANT))).expect("the control"), MESSAGE);
    }

    // Salt 24, commitment 32, message and tag: every bit of them.
    let body = 24 + 32 + MESSAGE.len() + 16;
    let from = (binary.len() - body) * 8;
    let flipped = (from..binary.len() * 8).map(|bit| {
        let mut binary = binary.clone();
        binary[bit / 8] ^= 1 << (bit % 8);
        binary
    });
    all_refused_alike(&cluster, &client, flipped.collect(), &refused);

    // Every character, exchanged for another that leaves the text well formed: the last one has two spare bits.
    let from = text.rfind(':').expect("a body") + 1;
    let exchanged = (from..text.len()).map(|at| {
        let mut text = text.clone().into_bytes();
        let value = ALPHABET.iter().position(|letter| *letter == text[at]).expect("base64url");
        let bit = if at + 1 == text.len() { 2 + at % 4 } else { at % 6 };
        text[at] = ALPHABET[value ^ 1 << bit];
        text
    });
    all_refused_alike(&cluster, &client, exchanged.collect(), &refused);
    assert_eq!(cluster.block(open(&client, &text, &context(TENANT))).expect("still opens"), MESSAGE);
}

/// One field of a text ciphertext exchanged for another text.
fn with_field(text: &str, field: usize, value: &str) -> String {
    let mut fields: Vec<&str> = text.split(':').collect();
    assert_eq!(fields.len(), 5);
    fields[field] = value;
    fields.join(":")
}

/// T36: there is one way to write a ciphertext, and a node takes no other.
#[test]
fn t36_anything_but_the_one_way_to_write_it_is_refused() {
    let cluster = TestCluster::found();
    ["key", "other"].iter().for_each(|key| cluster.create(key));
    let client = cluster.client(Some("n1"));
    let context = context(TENANT);
    let text = encrypt(&cluster, &client, "key", &context);
    let body = text.rsplit(':').next().expect("a body");
    assert_eq!(cluster.block(open(&client, &text, &context)).expect("the control"), MESSAGE);

    let last = ALPHABET.iter().position(|letter| *letter == *text.as_bytes().last().expect("not empty"));
    let spare = char::from(ALPHABET[last.expect("base64url") + 1]);
    let middle = body.len() / 2;
    let malformed = |why| (Code::BadCiphertext, why);
    let cases = [
        // the body
        (with_field(&text, 4, &format!("{}{spare}", &body[..body.len() - 1])), malformed("base64url")),
        (format!("{text}="), malformed("base64url")),
        (format!("{text}\n"), malformed("base64url")),
        (format!("{text} "), malformed("base64url")),
        (format!("{text}A"), malformed("does not open")),
        (format!("{text}AA"), malformed("base64url")),
        (with_field(&text, 4, &format!("{}\n{}", &body[..middle], &body[middle..])), malformed("base64url")),
        (with_field(&text, 4, &format!("{}+{}", &body[..middle], &body[middle + 1..])), malformed("base64url")),
        (with_field(&text, 4, &format!("{}é{}", &body[..middle], &body[middle + 2..])), malformed("base64url")),
        (with_field(&text, 4, &format!("{body}:{body}")), malformed("base64url")),
        (with_field(&text, 4, &body[..93]), malformed("base64url")),
        (with_field(&text, 4, &body[..92]), malformed("cut off")),
        (with_field(&text, 4, ""), malformed("cut off")),
        // the version
        (with_field(&text, 2, "01"), malformed("version")),
        (with_field(&text, 2, "0"), malformed("version")),
        (with_field(&text, 2, ""), malformed("version")),
        (with_field(&text, 2, "+1"), malformed("version")),
        (with_field(&text, 2, " 1"), malformed("version")),
        (with_field(&text, 2, "1x"), malformed("version")),
        (with_field(&text, 2, "4294967297"), malformed("version")),
        (with_field(&text, 2, "2"), (Code::NotFound, "version 2")),
        // the name
        (with_field(&text, 1, "Key"), malformed("name")),
        (with_field(&text, 1, "KEY"), malformed("name")),
        (with_field(&text, 1, ""), malformed("name")),
        (with_field(&text, 1, "key/"), malformed("name")),
        (with_field(&text, 1, "key "), malformed("name")),
        (with_field(&text, 1, "kéy"), malformed("name")),
        (with_field(&text, 1, "key2"), (Code::NotFound, "key2")),
        (with_field(&text, 1, "other"), (Code::BadCiphertext, "does not open")),
        // kind and suite
        (with_field(&text, 3, "d1"), (Code::BadCiphertext, "does not open")),
        (with_field(&text, 3, "h1"), malformed("unknown kind")),
        (with_field(&text, 3, "M1"), malformed("unknown kind")),
        (with_field(&text, 3, "m2"), malformed("unknown kind or suite")),
        (with_field(&text, 3, "m0"), malformed("unknown kind or suite")),
        (with_field(&text, 3, "m"), malformed("kind and suite")),
        (with_field(&text, 3, "m11"), malformed("kind and suite")),
        // the prefix, and less or more than one ciphertext
        (with_field(&text, 0, "qrt2"), malformed("does not begin")),
        (with_field(&text, 0, "QRT1"), malformed("")),
        (format!(" {text}"), malformed("does not begin")),
        (format!("{text}\n{text}"), malformed("base64url")),
        (text[..text.len() - body.len() - 1].to_owned(), malformed("fields are missing")),
        ("qrt1:".to_owned(), malformed("fields are missing")),
        (String::new(), malformed("does not begin")),
    ];
    for (changed, (code, says)) in cases {
        assert_ne!(changed, text);
        let error = cluster.block(open(&client, &changed, &context)).expect_err(&changed);
        assert_eq!(error.code, code, "{changed:?}: {error}");
        assert!(error.message.contains(says), "{changed:?}: {error}");
        assert!(error.hint.is_some(), "{changed:?}: {error}");
    }

    // The binary form: each byte of its header, in each of its bits. Some give another key that is not there.
    let parsed = Ciphertext::parse_text(&text).expect("our own ciphertext");
    let binary = parsed.to_binary();
    let header = 11 + "key".len();
    for bit in 0..header * 8 {
        let mut binary = binary.clone();
        binary[bit / 8] ^= 1 << (bit % 8);
        let error = cluster.block(open(&client, &binary, &context)).expect_err("another header");
        assert!(matches!(error.code, Code::BadCiphertext | Code::NotFound), "bit {bit}: {error}");
    }
    for cut in [0, 4, header, binary.len() - 1] {
        let error = cluster.block(open(&client, &binary[..cut], &context)).expect_err("cut short");
        assert_eq!(error.code, Code::BadCiphertext, "{cut} bytes: {error}");
    }
    assert_eq!(cluster.block(open(&client, &binary, &context)).expect("the control"), MESSAGE);
}

/// T37: every header over every body, among two keys, two versions and two kinds.
#[test]
fn t37_header_fields_cannot_be_exchanged_between_ciphertexts() {
    let cluster = TestCluster::found();
    let client = cluster.client(Some("n3"));
    let context = context(TENANT);
    let mut texts = Vec::new();
    let mut plain = Vec::new();
    for key in ["one", "two"] {
        cluster.create(key);
        for round in 0..2 {
            if round == 1 {
                cluster.block(client.rotate_key(&name(key), None)).expect("rotates");
            }
            texts.push(encrypt(&cluster, &client, key, &context));
            plain.push(MESSAGE.to_vec());
            let key = cluster.block(client.data_key(&name(key), &context, 32)).expect("a data key");
            texts.push(key.wrapped);
            plain.push(key.plaintext.expose().to_vec());
        }
    }
    let headers: Vec<_> = texts.iter().map(|text| text.rsplit_once(':').expect("a header").0).collect();
    assert_eq!(
        headers,
        ["qrt1:one:1:m1", "qrt1:one:1:d1", "qrt1:one:2:m1", "qrt1:one:2:d1"]
            .into_iter()
            .chain(["qrt1:two:1:m1", "qrt1:two:1:d1", "qrt1:two:2:m1", "qrt1:two:2:d1"])
            .collect::<Vec<_>>()
    );
    let refused = refusal(&cluster, &client, &texts[0]);
    for (i, header) in headers.iter().enumerate() {
        for (j, text) in texts.iter().enumerate() {
            let body = text.rsplit(':').next().expect("a body");
            let opened = cluster.block(open(&client, format!("{header}:{body}"), &context));
            match i == j {
                true => assert_eq!(opened.expect("the control"), plain[i], "{header}"),
                false => assert_eq!(opened.expect_err("exchanged"), refused, "{header} over {}", headers[j]),
            }
        }
    }
}

/// T39: the order of the context does not matter, and everything else about it does.
#[test]
fn t39_a_context_is_exact_but_for_its_order() {
    let cluster = TestCluster::found();
    cluster.create("key");
    let client = cluster.client(Some("n1"));
    // The same name to the eye: é as one character, and as e with an accent.
    let (composed, decomposed) = ("Caf\u{e9}", "Cafe\u{301}");
    let right = context([("tenant", "42"), ("place", composed)]);
    let text = encrypt(&cluster, &client, "key", &right);
    assert_eq!(cluster.block(open(&client, &text, &right)).expect("the control"), MESSAGE);
    let permuted = context([("place", composed), ("tenant", "42")]);
    assert_eq!(cluster.block(open(&client, &text, &permuted)).expect("order does not matter"), MESSAGE);
    for order in [["-c", "tenant=42", "-c", "place=Café"], ["-c", "place=Café", "-c", "tenant=42"]] {
        let args = ["decrypt"].into_iter().chain(order);
        assert_eq!(cluster.testnet.run(args, text.as_bytes()).expect("order does not matter"), MESSAGE);
    }

    let wrong = [
        Context::empty(),
        context([("tenant", "42")]),
        context([("place", composed)]),
        context([("tenant", "42"), ("place", composed), ("more", "")]),
        context([("tenant", "43"), ("place", composed)]),
        context([("tenant", "42 "), ("place", composed)]),
        context([("tenant", ""), ("place", composed)]),
        context([("Tenant", "42"), ("place", composed)]),
        context([("tenant", "42"), ("place", "caf\u{e9}")]),
        context([("tenant", "42"), ("place", decomposed)]),
        context([("tenant", composed), ("place", "42")]),
        context([("42", "tenant"), (composed, "place")]),
        // The same bytes in a row, divided elsewhere.
        context([("tenan", "t42"), ("place", composed)]),
        context([("placeCaf\u{e9}", "tenant42")]),
    ];
    let refused = cluster.block(open(&client, &text, &Context::empty())).expect_err("no context");
    for wrong in wrong {
        assert_eq!(cluster.block(open(&client, &text, &wrong)).expect_err("another context"), refused, "{wrong:?}");
    }
}

/// Contexts on the wire that no client writes: names out of order, a name twice, an empty name. The node refuses them
/// instead of sorting them.
#[test]
fn a_context_has_one_form_on_the_wire() {
    let cluster = TestCluster::found();
    cluster.create("key");
    let client = cluster.client(Some("n1"));
    let right = context([("aa", "1"), ("bb", "2")]);
    let text = encrypt(&cluster, &client, "key", &right);
    let request = Request::Decrypt { ciphertext: text.into_bytes(), context: right.clone() };
    let envelope = Envelope { deadline_ms: 5000, request };
    let body = wire::encode(&envelope);
    let pair = |name: &str, value: &str| {
        let length = |text: &str| (text.len() as u16).to_be_bytes();
        [&length(name)[..], name.as_bytes(), &length(value), value.as_bytes()].concat()
    };
    let bytes = |one: Vec<u8>, two: Vec<u8>| [&[0, 2][..], &one, &two].concat();
    let place =
        body.windows(right.as_bytes().len()).position(|window| window == right.as_bytes()).expect("the context");
    let with = |context: &[u8]| {
        assert_eq!(context.len(), right.as_bytes().len(), "the frame stays whole");
        let mut body = body.clone();
        body[place..place + context.len()].copy_from_slice(context);
        body
    };
    let patience = Duration::from_secs(5);
    let file = cluster.file();
    let node = file.node("n1").expect("a node");
    cluster.block(async {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
        let address = node.addresses[0].parse().expect("an address");
        let connection =
            dial(&endpoint, address, &cluster.token().identity(), node.key, Protocol::Client, patience).await;
        let conn = Conn::start(connection.expect("connects"), None);
        let ask = async |body: Vec<u8>| -> Answer {
            let answer = conn.call(Lane::Ordinary, &body, patience).await.expect("an answer");
            wire::decode::<Answered>(&answer).expect("an answer").answer
        };
        let control = ask(with(&bytes(pair("aa", "1"), pair("bb", "2")))).await.expect("the control opens");
        assert!(matches!(control, Response::Plaintext(plaintext) if plaintext.expose() == MESSAGE));
        for wrong in [
            bytes(pair("bb", "2"), pair("aa", "1")),
            bytes(pair("aa", "1"), pair("aa", "1")),
            bytes(pair("aa", "1"), pair("aa", "2")),
            bytes(pair("", "aa1"), pair("bb", "2")),
            // A count of one, with something left over; and of three, with one missing.
            [&[0, 1][..], &pair("aa", "1"), &pair("bb", "2")].concat(),
            [&[0, 3][..], &pair("aa", "1"), &pair("bb", "2")].concat(),
            bytes(pair("aa", "1"), [&[0, 2][..], b"bb", &[0, 9], b"2"].concat()),
            bytes(pair("aa", "1"), [&[0, 2][..], &[0xff, 0xfe], &[0, 1], b"2"].concat()),
        ] {
            let error = ask(with(&wrong)).await.expect_err("not the one form");
            assert_eq!(error.code, Code::BadRequest, "{wrong:?}: {error}");
        }
    });
}

/// A wrapped data key opens through decrypt, with its context and under its own kind only.
#[test]
fn a_wrapped_data_key_opens_only_with_its_context() {
    let cluster = TestCluster::found();
    cluster.create("key");
    let client = cluster.client(Some("n2"));
    for bytes in [1, 32, 1024] {
        let right = context(TENANT);
        let key = cluster.block(client.data_key(&name("key"), &right, bytes)).expect("a data key");
        assert_eq!(key.plaintext.expose().len(), usize::from(bytes));
        assert!(key.wrapped.starts_with("qrt1:key:1:d1:"), "{}", key.wrapped);
        let opened = cluster.block(open(&cluster.client(Some("n3")), &key.wrapped, &right)).expect("the control");
        assert_eq!(opened, key.plaintext.expose());
        let refused = refusal(&cluster, &client, &key.wrapped);
        for wrong in [Context::empty(), context([("Tenant", "42")]), context([("tenant", "42"), ("a", "b")])] {
            assert_eq!(cluster.block(open(&client, &key.wrapped, &wrong)).expect_err("another context"), refused);
        }
        let as_message = with_field(&key.wrapped, 3, "m1");
        assert_eq!(cluster.block(open(&client, as_message, &right)).expect_err("another kind"), refused);
    }
    let error = cluster.block(client.data_key(&name("key"), &context(TENANT), 1025)).expect_err("too long");
    assert_eq!(error.code(), Code::BadRequest, "{error}");
}

/// Two clusters with keys of one name: neither opens what the other made, and says what it always says.
#[test]
fn a_ciphertext_of_another_cluster_is_refused() {
    let (here, there) = (TestCluster::found(), TestCluster::found());
    for cluster in [&here, &there] {
        cluster.create("key");
    }
    let (ours, theirs) = (here.client(None), there.client(None));
    let text = encrypt(&here, &ours, "key", &context(TENANT));
    assert_eq!(here.block(open(&ours, &text, &context(TENANT))).expect("the control"), MESSAGE);
    let own = encrypt(&there, &theirs, "key", &context(TENANT));
    let refused = refusal(&there, &theirs, &own);
    assert_eq!(there.block(open(&theirs, &text, &context(TENANT))).expect_err("of another cluster"), refused);
    assert_eq!(there.block(open(&theirs, &own, &context(TENANT))).expect("the control"), MESSAGE);
}
