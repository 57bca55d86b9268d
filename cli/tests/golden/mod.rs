//! `--output json` is stable: the results are compared with `json.txt`, byte for byte, so that every change is visible.
//! A field that is removed or renamed breaks the programs of users. docs/JSON.md says what each field means.

use quorate_client::identity::{Protocol, PublicKey, server_config};
use quorate_client::wire::{
    AdminProgress, AdminRequest, AdminResponse, OperationStatus, Phase, PublicStatus, SecretMemory,
};

use crate::kit::{World, alarm};

/// The commands and their results, one after the other.
struct Record {
    world: World,
    text: String,
}

impl Record {
    fn new() -> Self {
        Self { world: World::new(), text: String::new() }
    }

    /// Notes the result of one command, with the directory of this world as `DIR`.
    fn note(&mut self, typed: &str, input: &[u8]) {
        let words: Vec<_> =
            typed.split(' ').skip(1).chain(["--output", "json"]).map(|word| self.placed(word)).collect();
        let run = self.world.run(&words.iter().map(String::as_str).collect::<Vec<_>>(), input);
        assert!(matches!(run.code, 0 | 3 | 7), "{typed}: {}", run.err);
        let result = run.text().replace(self.world.directory.path().to_str().expect("text"), "DIR");
        self.text += &format!("$ {typed} --output json\n{result}\n");
    }

    fn placed(&self, word: &str) -> String {
        word.replace("DIR", self.world.directory.path().to_str().expect("text"))
    }
}

fn operation() -> OperationStatus {
    OperationStatus {
        step: "locking".to_owned(),
        waiting_for: vec!["n3".to_owned()],
        ..OperationStatus::named("founding")
    }
}

fn keys_and_messages() -> String {
    let mut record = Record::new();
    record.note("quorate key list", b"");
    record.note("quorate key create billing/cards --tag owner=billing", b"");
    record.note("quorate key rotate billing/cards", b"");
    record.note("quorate key show billing/cards", b"");
    record.note("quorate key list", b"");
    record.note("quorate encrypt billing/cards -c customer=4711", b"attack at dawn");
    let sealed = record.world.run(&["encrypt", "billing/cards", "-c", "customer=4711"], b"attack at dawn").out;
    record.note("quorate decrypt -c customer=4711", &sealed);
    record.note("quorate datakey billing/cards --bytes 16", b"");
    record.note("quorate datakey billing/cards --bytes 16 --wrapped-only", b"");
    record.text
}

fn nodes_and_status() -> String {
    let mut record = Record::new();
    record.note("quorate node list", b"");
    record.note("quorate node status n1", b"");
    record.note("quorate node seal n1", b"");
    record.note("quorate node unseal n1", b"");
    record.note("quorate node admit n3", b"");
    record.note("quorate alarm list", b"");
    record.note("quorate alarm disarm stale_image", b"");
    record.note("quorate cluster export", b"");
    record.note("quorate node invite", b"");
    record.note("quorate node replace n2 --with UUpUMQ --yes", b"");
    record.note("quorate node set-address n2 10.1.0.2:7250 [fd00::2]:7250", b"");
    record.note("quorate node remove n2 --yes", b"");
    record.note("quorate node revoke n2 --yes --wait", b"");
    record.note("quorate status", b"");
    {
        let mut status = record.world.node.status.lock().expect("sound");
        (status.quorum, status.phase) = (false, Phase::Open);
        (status.reason, status.leader, status.lease_ms) =
            (Some("no lease: 1 of 3 nodes answers".to_owned()), None, None);
        status.operation = Some(operation());
        status.waiting_for = vec!["n2".parse().expect("a name")];
        status.alarms.push(alarm());
    }
    record.note("quorate status", b"");
    // No node serves: one is locked, and none answers at the address of the other.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let mut file = record.world.file.clone();
    let mut other = file.nodes[0].clone();
    (other.name, other.id) = ("n2".parse().expect("a name"), quorate_shares::ids::NodeId(2));
    (other.key, other.boot_key) = (PublicKey([2; 32]), PublicKey([3; 32]));
    other.addresses = vec![silent.local_addr().expect("bound").to_string()];
    file.nodes.push(other);
    file.write(&record.world.path("cluster.toml")).expect("written");
    record.world.endpoint.set_server_config(Some(server_config(&record.world.boot, None, &[Protocol::Boot])));
    let before = record.text.len();
    record.note("quorate status", b"");
    // Which node a client asks first is random, and so is the last error.
    let masked = masked(&masked(&record.text[before..], "error"), "reason");
    record.text.truncate(before);
    record.text + &masked
}

/// `text` without the values of one field.
fn masked(text: &str, field: &str) -> String {
    let begins = format!("\"{field}\": \"");
    let mut parts = text.split(&begins);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, rest| {
        let behind = rest.split_once('"').expect("a text ends").1;
        format!("{text}\"{field}\": \"…\"{behind}")
    })
}

fn this_machine() -> String {
    let mut record = Record::new();
    let data = record.world.path("data");
    let file = record.world.file.clone();
    let asked = std::sync::atomic::AtomicUsize::new(0);
    record.world.daemon(move |request| match request {
        AdminRequest::Status => {
            let AdminResponse::Status(mut status) = World::local_status(&data, Phase::Uninitialised) else { panic!() };
            if asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 1 {
                (status.name, status.cluster) = (Some("n1".parse().expect("a name")), Some(file.cluster));
                let waiting_for = vec!["n2".parse().expect("a name"), "n3".parse().expect("a name")];
                status.public = PublicStatus { phase: Phase::Locked, have: 1, need: 2, waiting_for };
                status.operation = Some(operation());
            }
            (vec![], Some(Ok(AdminResponse::Status(status))))
        }
        AdminRequest::Init { .. } => {
            let invitations = vec!["UUpUMQ…".to_owned(), "UUpUMg…".to_owned()];
            let progress = AdminProgress { invitations, step: "waiting".to_owned(), waiting_for: vec![] };
            (vec![progress], Some(Ok(AdminResponse::Founded(file.clone()))))
        }
        AdminRequest::Join { .. } => {
            let node = "n2".parse().expect("a name");
            (vec![], Some(Ok(AdminResponse::Joined { node, cluster: file.cluster })))
        }
        AdminRequest::Seal { sealed } => {
            (vec![], Some(Ok(AdminResponse::Sealed { node: "n1".parse().expect("a name"), sealed })))
        }
        AdminRequest::Admit { .. } => (vec![], Some(Ok(AdminResponse::Admitted { at: "n1".parse().expect("a name") }))),
        AdminRequest::Export => panic!("no test asks for it"),
    });
    record.note("quorate node status", b"");
    record.note("quorate node status", b"");
    record.note("quorate cluster init --founders 3 --token-file DIR/new/token", b"");
    record.note("quorate node join UUpUMQ…", b"");
    record.note("quorate node seal", b"");
    record.note("quorate node unseal", b"");
    record.note("quorate node admit n3 --local", b"");
    record.text
}

/// A machine on which only the swap is wrong.
fn examined() -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    for (file, text) in [
        ("proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n"),
        ("proc/mounts", "/dev/sda1 / ext4 rw 0 0\n"),
        ("proc/7/limits", "Max core file size 0 0 bytes\nMax locked memory 0 0 bytes\n"),
    ] {
        std::fs::create_dir_all(at(file).parent().expect("a directory")).expect("made");
        std::fs::write(at(file), text).expect("written");
    }
    let machine = quorate::doctor::Machine {
        proc: at("proc"),
        daemon: Some(quorate::doctor::Daemon { pid: 7, memory: SecretMemory::Ordinary }),
        data: "/nonexistent/data".into(),
        socket: "/nonexistent/socket".into(),
        token: "/nonexistent/token".into(),
        clock: Some(true),
    };
    format!("$ quorate doctor --output json\n{:#}\n\n", quorate::doctor::json(&quorate::doctor::examine(&machine)))
}

#[test]
fn json_is_what_it_always_was() {
    let said = [keys_and_messages(), nodes_and_status(), this_machine(), examined()].concat();
    let golden = include_str!("json.txt");
    for (number, (now, then)) in said.lines().zip(golden.lines()).enumerate() {
        assert_eq!(now, then, "line {} of cli/tests/golden/json.txt; all of it would be:\n{said}", number + 1);
    }
    assert_eq!(said, golden, "one of them ends earlier");
}
