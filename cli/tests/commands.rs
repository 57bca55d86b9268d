//! Every command against a fake node: results, messages and exit codes.

mod golden;
mod kit;

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kit::{LIARS_KEY, NEEDED, SLOW_KEY, World, alarm};
use quorate_client::identity::{Protocol, PublicKey, server_config};
use quorate_client::wire::{AdminProgress, AdminRequest, AdminResponse, OperationStatus, Phase, WireError};
use quorate_client::{Code, Credential, CredentialKind};
use quorate_shares::ids::NodeId;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn mode(path: &std::path::Path) -> u32 {
    std::fs::metadata(path).expect("there").permissions().mode() & 0o777
}

#[test]
fn what_is_encrypted_is_decrypted_byte_for_byte() {
    let world = World::new();
    assert_eq!(world.run(&["key", "create", "billing/cards"], b"").text(), "created billing/cards, version 1\n");
    let messages: [&[u8]; 5] = [b"", b"attack at dawn", b"two\nlines\n\n", &[0, 255, 10, 13, 0], &vec![3; 64 << 10]];
    for message in messages {
        let sealed = world.run(&["encrypt", "billing/cards", "-c", "b=2", "-c", "a=1=1"], message);
        assert_eq!(sealed.code, 0, "{}", sealed.err);
        assert!(sealed.text().ends_with('\n') && sealed.text().lines().count() == 1);
        let opened = world.run(&["decrypt", "-c", "a=1=1", "-c", "b=2"], &sealed.out);
        assert_eq!((opened.code, opened.err.as_str()), (0, ""));
        assert_eq!(opened.out, message);
    }
    // With files, and in JSON.
    std::fs::write(world.path("plain"), "from a file").expect("written");
    let (plain, sealed, opened) = (world.path("plain"), world.path("sealed"), world.path("opened"));
    let [plain, sealed_path, opened_path] = [&plain, &sealed, &opened].map(|path| path.to_str().expect("text"));
    assert_eq!(world.run(&["encrypt", "billing/cards", plain, "-o", sealed_path], b"").out, b"");
    assert_eq!(world.run(&["decrypt", sealed_path, "-o", opened_path], b"").out, b"");
    assert_eq!(std::fs::read(&opened).expect("written"), b"from a file");
    assert_eq!(mode(&opened), 0o600);
    let json = world.run(&["decrypt", sealed_path, "--output", "json"], b"");
    assert_eq!(json.text(), "{\"plaintext\":\"ZnJvbSBhIGZpbGU=\"}\n");
}

#[test]
fn a_data_key_comes_in_plain_and_wrapped() {
    let world = World::new();
    world.run(&["key", "create", "k"], b"");
    let both = world.run(&["datakey", "k", "--bytes", "3", "-c", "a=1"], b"");
    let wrapped = both.text().strip_prefix("plaintext: BwcH\nwrapped: ").expect("two lines").to_owned();
    assert_eq!(world.run(&["decrypt", "-c", "a=1"], wrapped.as_bytes()).out, [7, 7, 7]);
    assert_eq!(world.run(&["datakey", "k", "--bytes", "3", "-c", "a=1", "--wrapped-only"], b"").text(), wrapped);
    let json = world.run(&["datakey", "k", "--bytes", "3", "-c", "a=1", "--output", "json"], b"");
    assert_eq!(json.text(), format!("{{\"plaintext\":\"BwcH\",\"wrapped\":\"{}\"}}\n", wrapped.trim_end()));
    assert_eq!(world.run(&["datakey", "k", "--bytes", "0"], b"").code, 2);
}

#[test]
fn a_removal_is_confirmed_by_its_name_and_followed() {
    let world = World::new();
    for typed in [&b"n1\n"[..], b"", b"yes\n"] {
        let run = world.run(&["node", "remove", "n2"], typed);
        assert_eq!((run.code, run.text()), (1, ""));
        assert!(run.err.contains("n2 will leave the cluster") && run.err.contains("nothing was done"), "{}", run.err);
    }
    let run = world.run(&["node", "remove", "n2"], b"n2\n");
    assert_eq!((run.code, run.text()), (0, ""), "{}", run.err);
    let told: Vec<_> = run.err.lines().skip(2).collect();
    assert_eq!(told[..2], ["  reshares to epoch 7", "  reshares to epoch 7 (waiting for n3)"]);
    assert!(told[3].starts_with("n2 is out of the cluster") && told[4].contains("cluster export"), "{told:?}");
    // A name that no node has is refused before the question.
    for order in ["remove", "revoke"] {
        let unknown = world.run(&["node", order, "m2"], b"m2\n");
        assert_eq!((unknown.code, unknown.err.as_str()), (5, "quorate: no node named m2\nhint: did you mean n2?\n"));
    }
    let wrong = world.run(&["node", "remove", "n3", "--yes"], b"");
    assert_eq!(wrong.code, 5);
    assert!(wrong.err.contains("no node named n3") && wrong.err.contains("the nodes are n1, n2"), "{}", wrong.err);
}

/// The three lines come in order, each once, and the command returns when no earlier lease can run.
#[test]
fn a_revocation_says_what_has_become_true() {
    let world = World::new();
    let run = world.run(&["node", "revoke", "n2", "--yes"], b"");
    assert_eq!((run.code, run.text()), (0, ""), "{}", run.err);
    let lines: Vec<_> = run.err.lines().filter(|line| !line.starts_with(' ')).collect();
    let told = ["decisive", "old disk: dead 2 of 2", "names safe: locks renewed 2 of 2"];
    assert_eq!(lines[..3], told);
    assert!(lines[3].starts_with("the rest continues without this command"), "{lines:?}");
    assert_eq!(world.run(&["node", "revoke", "n2", "n7", "--yes"], b"").code, 5);
    assert_eq!(world.run(&["node", "revoke"], b"").code, 2);
}

/// Ctrl-C while keys are rotated after a revocation. Mutated: nothing hears it, and the command goes on to the last key.
#[test]
fn the_rotation_of_keys_after_a_revocation_is_interrupted() {
    let world = World::new();
    for key in ["first", SLOW_KEY] {
        world.run(&["key", "create", key], b"");
    }
    let mut command = world.program(&["node", "revoke", "n2", "--yes", "--rotate-keys"]);
    let mut running = command.stderr(Stdio::piped()).spawn().expect("runs");
    let begin = Instant::now();
    let until = |what: &str, done: &mut dyn FnMut() -> bool| {
        while !done() {
            assert!(begin.elapsed() < PATIENCE, "{what}: not in time");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    until("the second rotation", &mut || world.node.rotates.load(Ordering::Acquire));
    let sent = std::process::Command::new("kill").args(["-INT", &running.id().to_string()]).status();
    assert!(sent.expect("runs").success());
    until("the end", &mut || running.try_wait().expect("ours").is_some());
    let ended = running.wait_with_output().expect("ends");
    let said = String::from_utf8(ended.stderr).expect("text");
    assert_eq!(ended.status.code(), Some(130), "{said}");
    assert!(said.contains("1 of 2 keys have a new version; `quorate key rotate` goes on with slow"), "{said}");
}

/// Mutated: the words of a node reach the terminal as they are, and a refusal looks like a success.
#[test]
fn what_a_node_says_controls_no_terminal() {
    let world = World::new();
    let run = world.run(&["key", "show", LIARS_KEY], b"");
    let text = "]0;owned[2Kcreatedquorate: all is well";
    assert_eq!((run.code, run.err), (6, format!("quorate: {text}\nhint: {text}\n")));
    let run = world.run(&["decrypt", "no\rfile"], b"");
    assert!(run.err.contains("no\\rfile: "), "the control character of a path is shown: {:?}", run.err);
}

/// Mutated: the command does not say which nodes come back.
#[test]
fn a_revocation_says_which_absent_nodes_come_back() {
    let world = World::new();
    let refused = world.run(&["node", "revoke", NEEDED, "--yes"], b"");
    assert!(refused.code == 6 && refused.err.contains("--expect-back n3"), "{}: {}", refused.code, refused.err);
    let vouched = world.run(&["node", "revoke", NEEDED, "--yes", "--expect-back", "n3"], b"");
    assert_eq!(vouched.code, 0, "{}", vouched.err);
}

/// Mutated: with exit code 0 a script takes the alarms of a node that did not answer for closed.
#[test]
fn alarms_that_no_node_closed_are_not_done() {
    let world = World::new();
    let run = world.run(&["alarm", "disarm", "unheard"], b"");
    assert!(run.code == 1 && run.err.contains("not told: n2"), "{}: {}", run.code, run.err);
    assert_eq!(world.run(&["alarm", "disarm", "stale_image"], b"").code, 0, "the control: one is closed");
}

#[test]
fn wrong_input_is_refused_with_advice() {
    let world = World::new();
    world.run(&["key", "create", "billing/cards"], b"");
    let sealed = world.run(&["encrypt", "billing/cards", "-c", "a=1"], b"x").out;
    type Case<'a> = (&'a [&'a str], &'a [u8], u8, &'a str, &'a str);
    let cases: [Case<'_>; 10] = [
        (&["decrypt"], &sealed, 1, "the ciphertext does not open", "another context (-c)"),
        (&["decrypt"], b"hello", 1, "the input is not a ciphertext of Quorate", "qrt1:"),
        (&["decrypt"], b"", 1, "the input is not a ciphertext of Quorate", "qrt1:"),
        (&["decrypt", "/nonexistent"], b"", 1, "/nonexistent: No such file", ""),
        (&["encrypt", "billing/cards"], &[0; (64 << 10) + 1], 1, "the message is larger than 64 KiB", "datakey"),
        (&["encrypt", "billing/cards", "-c", "a=1", "-c", "a=2"], b"", 2, "-c: ", ""),
        (&["encrypt", "billing/cards", "-c", "a"], b"", 2, "expected NAME=VALUE", ""),
        (&["encrypt", "Billing"], b"", 2, "a name has only a-z", ""),
        (&["encrypt", "billing/crads"], b"x", 5, "no key named billing/crads", "did you mean billing/cards?"),
        (&["encrypt", "payroll"], b"x", 5, "no key named payroll", "quorate key list"),
    ];
    for (arguments, input, code, message, hint) in cases {
        let run = world.run(arguments, input);
        assert_eq!(run.code, code, "{arguments:?}: {}", run.err);
        assert_eq!(run.out, b"", "{arguments:?} has no result");
        assert!(run.err.starts_with("quorate: ") && run.err.contains(message), "{arguments:?}: {}", run.err);
        assert!(hint.is_empty() || run.err.split("\nhint: ").nth(1).is_some_and(|h| h.contains(hint)), "{}", run.err);
    }
}

#[test]
fn keys_are_made_listed_shown_and_rotated() {
    let world = World::new();
    world.run(&["key", "create", "billing/cards", "--tag", "owner=billing"], b"");
    let again = world.run(&["key", "create", "billing/cards"], b"");
    assert_eq!((again.code, again.err.as_str()), (6, "quorate: a key named billing/cards exists\n"));
    assert_eq!(
        world.run(&["key", "list"], b"").text(),
        "NAME           VERSION  CREATED               TAGS\nbilling/cards  1        2000-02-29T12:34:56Z  owner=billing\n"
    );
    assert_eq!(world.run(&["key", "rotate", "billing/cards", "--expect", "7"], b"").code, 6);
    assert_eq!(world.run(&["key", "rotate", "billing/cards"], b"").text(), "rotated billing/cards, version 2\n");
    let show = world.run(&["key", "show", "billing/cards"], b"");
    assert!(show.text().ends_with(
        "VERSION  CREATED               STATE\n1        2000-02-29T12:34:56Z  ready\n2        2000-02-29T12:34:57Z  being checked\n"
    ), "{}", show.text());
    let json = world.run(&["key", "show", "billing/cards", "--output", "json"], b"");
    assert!(
        json.text().contains("\"ready\": false") && json.text().contains("\"owner\": \"billing\""),
        "{}",
        json.text()
    );
    let typo = world.run(&["key", "rotate", "biling/cards"], b"");
    assert_eq!(
        (typo.code, typo.err.as_str()),
        (5, "quorate: no key named biling/cards\nhint: did you mean billing/cards?\n")
    );
    let twice = world.run(&["key", "create", "k", "--tag", "a=1", "--tag", "a=2"], b"");
    assert_eq!((twice.code, twice.err.as_str()), (2, "quorate: --tag: a is given twice\n"));
}

#[test]
fn a_missing_or_wrong_token_or_client_file_is_said_clearly() {
    let world = World::new();
    std::fs::write(world.path("token"), Credential::random(CredentialKind::Operator).text().as_bytes())
        .expect("written");
    let other = world.run(&["key", "list"], b"");
    assert_eq!(other.code, 4);
    assert!(other.err.contains("quorate: the cluster does not know this key\nhint: check the token"), "{}", other.err);
    std::fs::set_permissions(world.path("token"), std::fs::Permissions::from_mode(0o644)).expect("ours");
    assert!(world.run(&["key", "list"], b"").err.starts_with("warning: "), "a token that others may read");

    std::fs::write(world.path("token"), "hello").expect("written");
    let none = world.run(&["key", "list"], b"");
    assert_eq!(none.code, 4);
    assert!(none.err.contains("holds not a token") && !none.err.contains("hello"), "{}", none.err);
    std::fs::remove_file(world.path("token")).expect("there");
    assert!(world.run(&["key", "list"], b"").err.contains("hint: `quorate cluster init` wrote it"));

    let world = World::new();
    let mut file = world.file.clone();
    file.nodes[0].key = PublicKey([1; 32]);
    file.write(&world.path("cluster.toml")).expect("written");
    let foreign = world.run(&["key", "list"], b"");
    assert_eq!(foreign.code, 1);
    assert!(foreign.err.contains("has an unknown identity") && foreign.err.contains("expected n1"), "{}", foreign.err);

    std::fs::write(world.path("cluster.toml"), "cluster = 7\n").expect("written");
    let broken = world.run(&["key", "list"], b"");
    let named = format!("quorate: {}: client file line 1: ", world.path("cluster.toml").display());
    assert!(broken.err.starts_with(&named), "{}", broken.err);
    std::fs::remove_file(world.path("cluster.toml")).expect("there");
    let absent = world.run(&["key", "list"], b"");
    assert!(absent.code == 1 && absent.err.contains("no client file at") && absent.err.contains("cluster export"));
    // As one in a directory of another user: it is not known to be missing.
    let unreadable =
        kit::run(["quorate", "--cluster", "/dev/null/cluster.toml", "status"].map(Into::into).to_vec(), b"");
    assert!(unreadable.code == 1 && unreadable.err.contains("Not a directory"), "{}", unreadable.err);
}

#[test]
fn nodes_are_listed_and_mistyped_ones_suggested() {
    let world = World::new();
    assert_eq!(
        world.run(&["node", "list"], b"").text(),
        "NAME  ID  ADDRESS        ROLE    PHASE      LAG  EPOCH  LOCK  OLD COPIES     LAST SEEN\n\
         n1    1   10.0.0.1:7250  leader  (serving)  0    1      4     1 of 2 erased  0 s ago\n\
         n2    2   10.0.0.2:7250  voter   -          -    -      -     -              never\n"
    );
    assert!(world.run(&["node", "status", "n1", "--output", "json"], b"").text().contains("\"lock_generation\": 4"));
    let typo = world.run(&["node", "status", "m1"], b"");
    assert_eq!((typo.code, typo.err.as_str()), (5, "quorate: no node named m1\nhint: did you mean n1?\n"));
    let typo = world.run(&["--node", "n2", "key", "list"], b"");
    assert_eq!((typo.code, typo.err.as_str()), (5, "quorate: no node named n2\nhint: did you mean n1?\n"));
    assert!(world.run(&["cluster", "export"], b"").text().contains("addresses = [\"10.0.0.9:7250\"]"));
    let path = world.path("exported.toml");
    assert_eq!(world.run(&["cluster", "export", "-o", path.to_str().expect("text")], b"").out, b"");
    assert_eq!(quorate_client::ClusterFile::read(&path).expect("a client file").nodes[0].name.as_str(), "n9");
}

#[test]
fn status_says_in_its_exit_code_whether_keys_can_be_used() {
    let world = World::new();
    let healthy = world.run(&["status"], b"");
    assert_eq!(healthy.code, 0, "{}", healthy.err);
    assert!(healthy.text().starts_with("quorate: keys can be used\n"), "{}", healthy.text());
    assert!(healthy.text().contains("threshold: 2 of 3 nodes open a key\ntheft: 2 stolen disks of one moment"));
    assert!(healthy.text().contains("\noutage: 0 more nodes may fail"), "n2 is away: {}", healthy.text());

    world.node.status.lock().expect("sound").alarms.push(alarm());
    let alarmed = world.run(&["status"], b"");
    assert_eq!(alarmed.code, 7);
    assert!(
        alarmed.text().contains("ALARM n2: stale_image: an old copy of the disk asked to be unlocked ("),
        "{}",
        alarmed.text()
    );

    world.node.status.lock().expect("sound").nodes[2].state.as_mut().expect("n3 is there").phase = Phase::Locked;
    let short = world.run(&["status"], b"");
    assert_eq!(short.code, 3, "an alarm says less than keys that cannot be put together: {}", short.text());
    let verdict = "quorate, but too few nodes give shares: only keys that are in memory can be used\n";
    assert!(short.text().starts_with(verdict), "{}", short.text());

    {
        let mut status = world.node.status.lock().expect("sound");
        (status.quorum, status.reason) = (false, Some("no lease: 1 of 3 nodes answers".to_owned()));
    }
    let cut_off = world.run(&["status", "--output", "json"], b"");
    assert_eq!(cut_off.code, 3);
    assert!(cut_off.text().contains("\"quorum\": false"), "{}", cut_off.text());

    // Another node serves, and only n2 was asked.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let mut file = world.file.clone();
    file.nodes.push(quorate_client::cluster_file::ClusterNode {
        name: "n2".parse().expect("a name"),
        id: quorate_shares::ids::NodeId(2),
        addresses: vec![silent.local_addr().expect("bound").to_string()],
        key: PublicKey([2; 32]),
        boot_key: PublicKey([3; 32]),
    });
    file.write(&world.path("cluster.toml")).expect("written");
    *world.node.public.lock().expect("sound") = Phase::Serving;
    let one = world.run(&["--node", "n2", "status"], b"");
    assert_eq!(one.code, 3, "{}", one.err);
    let verdict = one.text().lines().next().unwrap_or_default().to_owned();
    assert!(verdict.starts_with("n2 did not answer: "), "{verdict}");
    assert!(verdict.ends_with(". n1 serves (leave out --node)"), "{verdict}");
    *world.node.public.lock().expect("sound") = Phase::Locked;
    let none = world.run(&["--node", "n2", "status"], b"");
    assert!(none.text().starts_with("not quorate: no node serves\n"), "the control: {}", none.text());
    world.file.write(&world.path("cluster.toml")).expect("written");

    // A locked node offers no more than its public status.
    world.endpoint.set_server_config(Some(server_config(&world.boot, None, &[Protocol::Boot])));
    let locked = world.run(&["status"], b"");
    assert_eq!(locked.code, 3, "{}", locked.err);
    assert!(locked.text().starts_with("not quorate: no node serves\n"), "{}", locked.text());
    assert!(locked.text().contains("n1    locked: have 1 of 2, waiting for n2, n3\n"), "{}", locked.text());
    let refused = world.run(&["key", "list", "-v"], b"");
    assert_eq!(refused.code, 3);
    assert!(
        refused.err.contains("quorate: n1: locked") && refused.err.contains("hint: `quorate status`"),
        "{}",
        refused.err
    );
    assert!(refused.err.starts_with("node n1: locked"), "-v names the nodes that failed: {}", refused.err);
}

#[test]
fn init_makes_the_token_prints_invitations_and_writes_the_client_file() {
    let world = World::new();
    let data = world.path("data");
    std::fs::create_dir(&data).expect("made");
    let file = world.file.clone();
    let (sender, orders) = std::sync::mpsc::channel();
    let data_copy = data.clone();
    world.daemon(move |request| match request {
        AdminRequest::Status => (vec![], Some(Ok(World::local_status(&data_copy, Phase::Uninitialised)))),
        AdminRequest::Init { founders, threshold, operator, .. } => {
            sender.send((founders, threshold, operator)).expect("the test listens");
            let progress = |invitations: &[&str], step: &str, waiting_for: &[&str]| AdminProgress {
                invitations: invitations.iter().map(|&text| text.to_owned()).collect(),
                step: step.to_owned(),
                waiting_for: waiting_for.iter().map(|&text| text.to_owned()).collect(),
            };
            let news = vec![
                progress(&["first", "second"], "the other founders have not joined", &["2 of 3"]),
                progress(&["first", "second"], "the other founders have not joined", &["2 of 3"]),
                progress(&[], "exchanging lock keys", &["n3"]),
            ];
            (news, Some(Ok(AdminResponse::Founded(file.clone()))))
        }
        other => panic!("{other:?}"),
    });
    let place = world.path("config/quorate/token");
    let place_text = place.to_str().expect("text").to_owned();
    let inside = data.join("token");
    let refused =
        world.run(&["cluster", "init", "--founders", "3", "--token-file", inside.to_str().expect("text")], b"");
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(refused.err.contains("data directory") && !inside.exists(), "{}", refused.err);
    let link = world.path("link");
    std::os::unix::fs::symlink(&data, &link).expect("made");
    let inside = link.join("deep/token");
    let refused =
        world.run(&["cluster", "init", "--founders", "3", "--token-file", inside.to_str().expect("text")], b"");
    assert_eq!(refused.code, 2, "a link leads there too: {}", refused.err);

    let done = world.run(&["cluster", "init", "--founders", "3", "--token-file", &place_text], b"");
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(done.text(), "first\nsecond\n", "invitations once, and nothing else");
    assert!(done.err.contains("exchanging lock keys, waiting for n3\n"), "{}", done.err);
    let once = "the other founders have not joined, waiting for 2 of 3\n";
    assert_eq!(done.err.matches(once).count(), 1, "{}", done.err);
    assert_eq!(mode(&place), 0o600);
    assert_eq!(mode(place.parent().expect("a directory")), 0o700);
    let text = std::fs::read_to_string(&place).expect("written");
    assert!(!done.err.contains(text.trim()) && !done.text().contains(text.trim()), "the token is never shown");
    let token = Credential::parse(&text).expect("a token");
    assert_eq!(orders.recv().expect("one order"), (3, None, token.public()));
    let written = quorate_client::ClusterFile::read(&place.with_file_name("cluster.toml")).expect("written beside it");
    assert_eq!(written, world.file);

    let again = world.run(&["cluster", "init", "--founders", "3", "--token-file", &place_text], b"");
    assert_eq!(again.code, 6, "nothing is written over: {}", again.err);
    std::fs::remove_file(place.with_file_name("cluster.toml")).expect("there");
    let again = world.run(&["cluster", "init", "--founders", "3", "--token-file", &place_text], b"");
    assert!(again.code == 6 && again.err.contains("the token file") && again.err.contains("exists"), "{}", again.err);
    assert!(orders.try_recv().is_err());
}

/// The token is there and the cluster stands; only its client file cannot be written. Mutated: the error alone, without the
/// line that the cluster is founded, looks like a founding that failed.
#[test]
fn init_says_that_the_cluster_stands_also_if_its_client_file_cannot_be_written() {
    let world = World::new();
    let (data, file) = (world.path("data"), world.file.clone());
    let place = world.path("new/token");
    let client_file = place.with_file_name("cluster.toml");
    world.daemon(move |request| match request {
        AdminRequest::Status => (vec![], Some(Ok(World::local_status(&data, Phase::Uninitialised)))),
        AdminRequest::Init { .. } => {
            // A directory in the place of the file has the same effect as a full disk.
            std::fs::create_dir(&client_file).expect("ours");
            (vec![], Some(Ok(AdminResponse::Founded(file.clone()))))
        }
        other => panic!("{other:?}"),
    });
    let run = world.run(&["cluster", "init", "--founders", "3", "--token-file", place.to_str().expect("text")], b"");
    assert_eq!(run.code, 1, "{}", run.err);
    let lines: Vec<_> = run.err.lines().collect();
    assert!(lines[0].starts_with("founded cluster abab") && lines[1].starts_with("operator key:"), "{}", run.err);
    assert!(
        lines[2].starts_with("quorate: the cluster stands, but its client file cannot be written: "),
        "{}",
        run.err
    );
    assert!(lines[3].contains("quorate cluster export --local -o FILE"), "{}", run.err);
    assert_eq!(mode(&place), 0o600);
}

/// What another user may have put beside the token is not used, and nothing that is there is written over. Mutated: with a token that
/// is taken as it lies there, its author is root of the new cluster; with a client file that is put over what is there, the token is
/// lost.
#[test]
fn init_takes_nothing_that_lies_there_and_writes_over_nothing() {
    let world = World::new();
    let data = world.path("data");
    world.daemon(move |request| match request {
        AdminRequest::Status => (vec![], Some(Ok(World::local_status(&data, Phase::Uninitialised)))),
        other => panic!("it is not asked to found: {other:?}"),
    });
    let init = |token: &std::path::Path| {
        let run =
            world.run(&["cluster", "init", "--founders", "3", "--token-file", token.to_str().expect("text")], b"");
        assert_ne!(run.code, 0);
        run.err
    };
    let place = |directory: &str| {
        std::fs::create_dir(world.path(directory)).expect("ours");
        world.path(directory).join("token")
    };
    let chmod = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("ours");
    };
    let planted = place("planted");
    let unconfirmed = planted.with_file_name("token.new");
    std::fs::write(&unconfirmed, Credential::random(CredentialKind::Operator).text().as_bytes()).expect("ours");
    chmod(&unconfirmed, 0o644);
    assert!(init(&planted).contains("is not used: others may use it"), "readable by its author");
    std::fs::rename(&unconfirmed, world.path("elsewhere")).expect("ours");
    chmod(&world.path("elsewhere"), 0o600);
    std::os::unix::fs::symlink(world.path("elsewhere"), &unconfirmed).expect("ours");
    assert!(init(&planted).contains("is not used: it is a link"));
    if std::os::unix::fs::lchown(&unconfirmed, Some(65534), None).is_ok() {
        std::fs::remove_file(&unconfirmed).expect("ours");
        std::fs::copy(world.path("elsewhere"), &unconfirmed).expect("ours");
        std::os::unix::fs::chown(&unconfirmed, Some(65534), None).expect("root may");
        assert!(init(&planted).contains("is not used: it belongs to another user"));
    }
    let open = place("open");
    chmod(&world.path("open"), 0o777);
    assert!(init(&open).contains("others may replace files in the directory"));
    std::fs::write(open.with_file_name("token.new"), Credential::random(CredentialKind::Operator).text().as_bytes())
        .expect("ours");
    chmod(&open.with_file_name("token.new"), 0o600);
    assert!(init(&open).contains("others may replace files in the directory"), "also if a token is there");
    let same = place("same").with_file_name("cluster.toml");
    assert!(init(&same).contains("is the name of the client file"));
    let linked = place("linked");
    std::os::unix::fs::symlink("token", linked.with_file_name("cluster.toml")).expect("ours");
    assert!(init(&linked).contains("exists"), "a link that leads to the token to come");
    assert!(!linked.exists() && !same.exists() && !open.exists() && !planted.exists());
}

#[test]
fn init_keeps_a_token_that_a_dead_daemon_may_know() {
    let world = World::new();
    let (data, file) = (world.path("data"), world.file.clone());
    let keys = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = keys.clone();
    world.daemon(move |request| {
        let mut seen = seen.lock().expect("nothing panics while it holds this");
        match request {
            AdminRequest::Status => {
                let phase = if seen.is_empty() { Phase::Uninitialised } else { Phase::Joining };
                (vec![], Some(Ok(World::local_status(&data, phase))))
            }
            AdminRequest::Init { operator, .. } => {
                seen.push(operator);
                // After the first request the daemon makes its vault and dies.
                (vec![], (seen.len() > 1).then(|| Ok(AdminResponse::Founded(file.clone()))))
            }
            other => panic!("{other:?}"),
        }
    });
    let place = world.path("elsewhere/token");
    let init = ["cluster", "init", "--founders", "3", "--token-file", place.to_str().expect("text")];
    let lost = world.run(&init, b"");
    assert!(lost.code == 1 && lost.err.contains("ended before it answered"), "{}", lost.err);
    let again = world.run(&init, b"");
    assert_eq!(again.code, 0, "{}", again.err);
    let token = Credential::parse(&std::fs::read_to_string(&place).expect("written")).expect("a token");
    assert_eq!(*keys.lock().expect("as above"), [token.public(), token.public()], "the same one, and it is kept");
    assert!(!place.with_file_name("token.new").exists() && mode(&place) == 0o600);
}

#[test]
fn init_repeated_while_founding_keeps_the_token_and_a_refused_one_leaves_none() {
    let world = World::new();
    let data = world.path("data");
    let key = world.token.public();
    world.daemon(move |request| match request {
        AdminRequest::Status => (vec![], Some(Ok(World::local_status(&data, Phase::Joining)))),
        AdminRequest::Init { operator, .. } => {
            assert_eq!(operator, key, "the same key");
            (vec![], Some(Err(WireError::new(Code::Conflict, "founding goes on with other options"))))
        }
        other => panic!("{other:?}"),
    });
    std::fs::remove_file(world.path("cluster.toml")).expect("there");
    let repeated = world.run(&["cluster", "init", "--founders", "3"], b"");
    assert_eq!((repeated.code, repeated.err.as_str()), (6, "quorate: founding goes on with other options\n"));
    assert!(world.path("token").exists());

    let world = World::new();
    let data = world.path("data");
    world.daemon(move |request| match request {
        AdminRequest::Status => (vec![], Some(Ok(World::local_status(&data, Phase::Uninitialised)))),
        _ => (vec![], Some(Err(WireError::new(Code::BadRequest, "no")))),
    });
    let place = world.path("elsewhere/token");
    let refused =
        world.run(&["cluster", "init", "--founders", "3", "--token-file", place.to_str().expect("text")], b"");
    assert_eq!(refused.code, 1);
    let left = [place.clone(), place.with_file_name("token.new")].map(|path| path.exists());
    assert_eq!(left, [false, false], "a token that the daemon does not know is removed");
    // Options that are refused without a daemon.
    for (arguments, message) in [
        (&["cluster", "init", "--founders", "1"][..], "one stolen disk opens everything"),
        (&["cluster", "init", "--founders", "2"], "one lost disk loses every key"),
        (&["cluster", "init", "--founders", "3", "--threshold", "1"], "the threshold of 3 nodes is 2 to 3"),
        (&["cluster", "init", "--founders", "12"], "12 is not in 1..=9"),
    ] {
        let run = world.run(arguments, b"");
        assert!(run.code == 2 && run.err.contains(message), "{}", run.err);
    }
}

#[test]
fn a_node_joins_by_an_invitation_that_others_need_not_see() {
    let world = World::new();
    let data = world.path("data");
    world.daemon(move |request| {
        let invitation = match request {
            AdminRequest::Join { invitation } => invitation,
            AdminRequest::Status => return (vec![], Some(Ok(World::local_status(&data, Phase::Uninitialised)))),
            other => panic!("{other:?}"),
        };
        let step =
            AdminProgress { invitations: vec![], step: "proving the invitation".to_owned(), waiting_for: vec![] };
        match invitation.as_str() {
            "open" => (vec![step], None),
            "good" => {
                let cluster = quorate_client::ClusterId([0xab; 16]);
                (vec![step], Some(Ok(AdminResponse::Joined { node: "n2".parse().expect("a name"), cluster })))
            }
            "used" => {
                let refused = WireError::new(Code::Denied, "the invitation was used").hint("ask for another one");
                (vec![], Some(Err(refused)))
            }
            _ => (vec![], Some(Err(WireError::new(Code::NotFound, "no such invitation")))),
        }
    });
    let used = world.run(&["node", "join", "-"], b"used\n");
    assert!(used.code == 4 && used.err.ends_with("hint: ask for another one\n"), "not about a token: {}", used.err);
    let joined = world.run(&["node", "join", "-"], b"good\n");
    assert_eq!((joined.code, joined.text()), (0, ""), "{}", joined.err);
    assert!(joined.err.contains("proving the invitation\nn2 serves in cluster abab"), "{}", joined.err);
    assert_eq!(world.run(&["node", "join", "-"], b"other\n").code, 5);
    let none = world.run(&["node", "join", "-"], b"");
    assert!(none.code == 2 && none.err.contains("quorate: this is not an invitation\nhint: copy the"), "{}", none.err);
    assert_eq!(world.run(&["node", "join", "-", "--no-wait"], b"open").code, 0);
    let lost = world.run(&["node", "join", "-"], b"open");
    assert!(lost.code == 1 && lost.err.contains("the daemon ended before it answered"), "{}", lost.err);

    // A file, with what editors and terminals add; and an argument, which other users see.
    let file = world.path("invitation");
    std::fs::write(&file, "\u{feff}go\r\n  od\r\n\r\n").expect("written");
    let from_file = world.run(&["node", "join", file.to_str().expect("text")], b"");
    assert!(from_file.code == 0 && !from_file.err.contains("warning"), "{}", from_file.err);
    let missing = world.run(&["node", "join", "/nonexistent"], b"");
    assert!(
        missing.code == 2 && missing.err.contains("no invitation at /nonexistent: No such file"),
        "{}",
        missing.err
    );
    let shown = world.run(&["node", "join", "UUpUMQ"], b"");
    assert!(shown.code == 5 && shown.err.starts_with("warning: other users can see"), "{}", shown.err);
    assert!(!joined.err.contains("good"), "an invitation is not repeated");
}

#[test]
fn this_machines_node_is_asked_through_its_socket() {
    let world = World::new();
    let none = world.run(&["node", "status"], b"");
    assert!(none.code == 1 && none.err.contains("no daemon listens at"), "{}", none.err);
    let data = world.path("data");
    let file = world.file.clone();
    world.daemon(move |request| match request {
        AdminRequest::Status => {
            let AdminResponse::Status(mut status) = World::local_status(&data, Phase::Locked) else { panic!() };
            status.name = Some("n1".parse().expect("a name"));
            (status.public.have, status.public.need) = (1, 2);
            status.public.waiting_for = vec!["n3".parse().expect("a name")];
            let waiting_for = vec!["n3".to_owned()];
            status.operation =
                Some(OperationStatus { step: "locks".to_owned(), waiting_for, ..OperationStatus::named("founding") });
            (vec![], Some(Ok(AdminResponse::Status(status))))
        }
        AdminRequest::Export => (vec![], Some(Ok(AdminResponse::Export(file.clone())))),
        other => panic!("{other:?}"),
    });
    let local = world.run(&["node", "status"], b"");
    assert_eq!(local.code, 3);
    assert_eq!(local.text(), "n1: locked: have 1 of 2, waiting for n3\nunder way: founding: locks, waiting for n3\n");
    assert!(world.run(&["cluster", "export", "--local"], b"").text().contains("name = \"n1\""));
    std::fs::remove_file(world.path("cluster.toml")).expect("there");
    assert_eq!(world.run(&["status"], b"").code, 3, "without a client file the socket is asked");
}

/// T77: whatever a path names. Mutated: a rename makes the link a file, and what it led to stays as it was.
#[test]
fn a_result_goes_to_whatever_the_path_names() {
    let world = World::new();
    world.run(&["key", "create", "k"], b"");
    let text = |name: &str| world.path(name).to_str().expect("text").to_owned();
    let (message, sealed, link, full) = (text("message"), text("sealed"), text("link"), text("full"));
    std::fs::write(&message, "attack at dawn").expect("ours");
    std::fs::write(&sealed, "").expect("ours");
    std::fs::set_permissions(&sealed, std::fs::Permissions::from_mode(0o640)).expect("ours");
    std::os::unix::fs::symlink("sealed", &link).expect("ours");
    // A link to an open device, not to `/dev/full` itself: a broken `put` of root would rename over that.
    let device = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    std::os::unix::fs::symlink(format!("/proc/self/fd/{}", device.as_raw_fd()), &full).expect("ours");

    assert_eq!(world.run(&["encrypt", "k", "-", "-o", &link], b"attack at dawn").out, b"", "into a file");
    assert_eq!((mode(world.path("sealed").as_path()), world.path("link").is_symlink()), (0o640, true));
    assert_eq!(world.run(&["decrypt", &sealed, "-o", "-"], b"").out, b"attack at dawn", "on standard output");
    assert_eq!(world.run(&["cluster", "export", "-o", "-"], b"").text(), world.run(&["cluster", "export"], b"").text());
    // Into the file that was read.
    assert_eq!(world.run(&["encrypt", "k", &message, "-o", &message], b"").code, 0);
    assert_eq!(world.run(&["decrypt", &message], b"").out, b"attack at dawn");
    for command in [
        &["encrypt", "k", &sealed, "-o", &full][..],
        &["decrypt", &sealed, "-o", &full],
        &["cluster", "export", "-o", &full],
    ] {
        let run = world.run(command, b"");
        assert!(run.code == 1 && run.err.contains("full: No space left on device"), "{command:?}: {}", run.err);
        assert!(world.path("full").is_symlink(), "{command:?}");
    }
    assert_eq!(world.run(&["cluster", "export", "-o", &link], b"").code, 0);
    assert_eq!(
        quorate_client::ClusterFile::read(&world.path("sealed")).expect("a client file").nodes[0].name.as_str(),
        "n9"
    );
}

/// `-` is standard input wherever a file is read. It gives one thing only.
#[test]
fn standard_input_is_a_file_like_any_other() {
    let world = World::new();
    let text = |name: &str| world.path(name).to_str().expect("text").to_owned();
    let run = |token: &str, cluster: &str, rest: &[&str], input: &[u8]| {
        let common = ["quorate", "--token-file", token, "--cluster", cluster];
        kit::run(common.iter().chain(rest).map(Into::into).collect(), input)
    };
    let (token, cluster) = (text("token"), text("cluster.toml"));
    let token_text = world.token.text();
    assert_eq!(run("-", &cluster, &["key", "create", "k"], token_text.as_bytes()).code, 0);
    assert_eq!(run(&token, "-", &["key", "list"], world.file.to_text().as_bytes()).code, 0);
    let twice = run("-", &cluster, &["encrypt", "k"], b"message");
    assert_eq!(twice.code, 2);
    let said =
        "quorate: standard input cannot give both the message and the token\nhint: name a file for one of them\n";
    assert_eq!(twice.err, said);
    let unconfirmed = run(&token, &cluster, &["node", "replace", "n2", "--with", "-"], b"UUpUMQ\n");
    assert!(unconfirmed.code == 2 && unconfirmed.err.ends_with("hint: say --yes\n"), "{}", unconfirmed.err);
    let wrong = run("-", &cluster, &["key", "list"], Credential::random(CredentialKind::Operator).text().as_bytes());
    assert!(wrong.code == 4 && wrong.err.ends_with("hint: check the token on standard input\n"), "{}", wrong.err);
    let founding = run("-", &cluster, &["cluster", "init", "--founders", "3"], b"");
    assert!(founding.code == 2 && founding.err.contains("the operator key goes into a file"), "{}", founding.err);
}

/// Mutated: with clap's own reading an empty QUORATE_SOCKET ends every command with a usage error.
#[test]
fn an_empty_variable_is_as_if_it_were_not_set() {
    const ALL: [&str; 4] = ["QUORATE_CLUSTER", "QUORATE_TOKEN_FILE", "QUORATE_TOKEN", "QUORATE_SOCKET"];
    let world = World::new();
    let run = |arguments: &[&str], variables: &[(&str, &str)]| {
        let output = world.program(arguments).envs(variables.iter().copied()).output().expect("built");
        let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("text"));
        (output.status.code(), out, err)
    };
    let empty = ALL.map(|name| (name, ""));
    for arguments in [&["key", "list"][..], &["node", "status"], &["--help"], &["key", "create"]] {
        assert_eq!(run(arguments, &empty), run(arguments, &[]), "{arguments:?}");
    }
    assert_eq!(run(&["key", "list"], &empty).0, Some(0), "the control");
    for name in ALL {
        let arguments = if name == "QUORATE_SOCKET" { ["node", "status"] } else { ["key", "list"] };
        assert_ne!(run(&arguments, &[(name, "/nonexistent")]), run(&arguments, &[]), "the control: {name} counts");
    }
    let (code, _, err) = run(&["key", "list"], &[("QUORATE_TOKEN", "hello")]);
    assert!(code == Some(4) && err.ends_with("hint: check the token in QUORATE_TOKEN\n"), "{err}");

    // An option whose variable is set is not one that must be given.
    let set = ALL.map(|name| (name, "/somewhere"));
    assert_eq!(run(&["key", "create"], &set), run(&["key", "create"], &[]));
    let (code, _, err) = run(&["key", "create"], &set);
    assert!(code == Some(2) && err.contains("Usage: quorate key create <NAME>\n"), "{err}");
}

/// What editors of other systems put around a text.
#[test]
fn a_byte_order_mark_and_other_line_ends_are_ignored() {
    let world = World::new();
    world.run(&["key", "create", "k"], b"");
    let sealed = world.run(&["encrypt", "k"], b"attack at dawn");
    let token = format!("\u{feff}{}\r\n", world.token.text().as_str());
    std::fs::write(world.path("token"), token).expect("ours");
    let file = format!("\u{feff}{}", world.file.to_text().replace('\n', "\r\n"));
    std::fs::write(world.path("cluster.toml"), file).expect("ours");
    for behind in ["\n", "\r\n", "\n\n", "  \r\n\r\n"] {
        let input = format!("\u{feff}{}{behind}", sealed.text().trim_end());
        let opened = world.run(&["decrypt"], input.as_bytes());
        assert_eq!((opened.code, opened.out.as_slice()), (0, &b"attack at dawn"[..]), "{behind:?}: {}", opened.err);
    }
    let wrapped = sealed.text().replacen(':', ":\n", 1);
    let refused = world.run(&["decrypt"], wrapped.as_bytes());
    assert!(refused.code == 1 && refused.err.contains("a line break or a blank in it"), "{}", refused.err);
}

/// The client file still names a node that has left. Mutated: the hint asked whether that very name was meant.
#[test]
fn a_node_that_has_left_is_not_suggested() {
    let world = World::new();
    let mut old = world.file.clone();
    let mut left = old.nodes[0].clone();
    (left.name, left.id) = ("n7".parse().expect("a name"), NodeId(7));
    (left.key, left.boot_key, left.addresses) =
        (PublicKey([7; 32]), PublicKey([8; 32]), vec!["127.0.0.1:9".to_owned()]);
    old.nodes.push(left);
    std::fs::write(world.path("cluster.toml"), old.to_text()).expect("ours");
    let gone = world.run(&["node", "seal", "n7"], b"");
    assert_eq!(gone.code, 5);
    assert!(gone.err.ends_with("hint: n7 has left the cluster since the client file was written\n"), "{}", gone.err);
}

#[test]
fn a_command_line_that_makes_no_sense_is_refused_in_the_words_of_every_other_error() {
    let run = |arguments: &[&str]| {
        kit::run(std::iter::once("quorate").chain(arguments.iter().copied()).map(Into::into).collect(), b"")
    };
    type Case<'a> = (&'a [&'a str], &'a str, &'a str);
    let cases: [Case<'_>; 5] = [
        (&["encript", "k"], "unrecognized subcommand 'encript'", "'encrypt'"),
        (&["key", "crate", "k"], "unrecognized subcommand 'crate'", "'create'"),
        (&["key", "create", "k", "--tags", "a=b"], "unexpected argument '--tags'", "'--tag'"),
        (&["key", "create"], "required arguments were not provided", "--help shows an example"),
        (&["cluster", "init", "--founders", "12"], "12 is not in 1..=9", "--help shows an example"),
    ];
    for (arguments, message, hint) in cases {
        let wrong = run(arguments);
        assert_eq!((wrong.code, wrong.text()), (2, ""), "{arguments:?}");
        assert!(wrong.err.starts_with("quorate: ") && wrong.err.contains(message), "{arguments:?}: {}", wrong.err);
        assert!(wrong.err.contains("\nhint: ") && wrong.err.contains(hint), "{arguments:?}: {}", wrong.err);
        assert!(!wrong.err.contains("tip:"), "{arguments:?}: {}", wrong.err);
    }
    let nothing = run(&[]);
    assert_eq!((nothing.code, nothing.text()), (2, ""), "nothing is no command");
    assert!(nothing.err.contains("Examples:"), "and shows what there is: {}", nothing.err);
    assert_eq!(run(&["--version"]).text(), format!("quorate {}\n", env!("CARGO_PKG_VERSION")));
}
