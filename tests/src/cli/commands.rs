//! The command line at a real cluster: its exit codes, what it says when it fails, and the JSON that programs read.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use quorate_client::identity::PublicKey;
use quorate_client::wire::Phase;
use quorate_client::{Credential, CredentialKind};
use quorate_testnet::procs::{Binaries, Finished, Lifetime, Process, Tool};
use quorate_testnet::{Cluster, wait_until};
use serde_json::Value;

use crate::harness::commands::{init, invitations, join};
use crate::harness::documents::{parts, read, spans};
use crate::harness::{PATIENCE, TestCluster};

fn run(command: Command, input: &[u8]) -> Finished {
    Tool::start(command, input).expect("runs").outcome(PATIENCE).expect("ends")
}

fn quorate(cluster: &TestCluster, typed: &str, input: &[u8]) -> Finished {
    run(cluster.testnet.quorate(typed.split(' ')), input)
}

/// An exit code, what is said first, and what to do about it.
fn ends(finished: &Finished, code: i32, message: &str, hint: &str) {
    let Finished { line, stderr, .. } = finished;
    assert_eq!(finished.code, Some(code), "{line}: {stderr}");
    assert_eq!(finished.stdout, b"", "{line} has no result");
    let (said, advice) = stderr.split_once("\nhint: ").unwrap_or_else(|| panic!("{line} gives no advice: {stderr}"));
    assert!(said.starts_with("quorate: ") && said.contains(message), "{line}: {stderr}");
    assert!(advice.contains(hint), "{line}: {stderr}");
}

/// Exit codes 1, 2, 4, 5 and 6, with a cluster that serves; 0 is what the commands between them end with.
#[test]
fn a_cluster_that_serves_refuses_by_exit_code() {
    let cluster = TestCluster::found();
    let done = |typed: &str, input: &[u8]| {
        let finished = quorate(&cluster, typed, input);
        assert_eq!(finished.code, Some(0), "{typed}: {}", finished.stderr);
        String::from_utf8(finished.stdout).expect("text")
    };
    done("status", b"");
    done("key create billing/cards", b"");
    let sealed = done("encrypt billing/cards -c customer=4711", b"attack at dawn");
    assert_eq!(done("decrypt -c customer=4711", sealed.as_bytes()), "attack at dawn");
    let elsewhere = sealed.replace("billing/cards", "billing/carts");

    let refused = |typed: &str, input: &str, code, message: &str, hint: &str| {
        ends(&quorate(&cluster, typed, input.as_bytes()), code, message, hint);
    };
    refused("decrypt -c customer=4712", &sealed, 1, "does not open", "wrong context");
    refused("decrypt", "hello", 1, "not a ciphertext", "qrt1:");
    refused("encrypt billing/cards", &"x".repeat((64 << 10) + 1), 1, "larger than 64 KiB", "datakey");
    refused("key create Billing", "", 2, "a name has only a-z", "--help");
    refused("key crate billing/keys", "", 2, "unrecognized subcommand", "create");
    refused("cluster init --founders 2", "", 2, "one lost disk", "--accept-no-redundancy");
    refused("key show billing/crads", "", 5, "no key named billing/crads", "did you mean billing/cards?");
    refused("key rotate payroll", "", 5, "no key named payroll", "quorate key list");
    refused("encrypt billing/crads", "x", 5, "no key named billing/crads", "did you mean billing/cards?");
    refused("node status n4", "", 5, "no node named n4", "the nodes are n1, n2, n3");
    refused("key list --node n4", "", 5, "no node named n4", "the client file names n1, n2, n3");
    refused("decrypt -c customer=4711", &elsewhere, 5, "billing/carts", "");
    refused("key create billing/cards", "", 6, "a key named billing/cards exists", "");
    refused("key rotate billing/cards --expect 7", "", 6, "the newest version is 1", "");

    // Another key, none, and another server than the client file says.
    let with = |typed: &str, variable: &str, value: &str| {
        let mut command = cluster.testnet.quorate(typed.split(' '));
        command.env_remove("QUORATE_TOKEN_FILE").env(variable, value);
        run(command, b"")
    };
    ends(
        &with("key list", "QUORATE_TOKEN", &Credential::random(CredentialKind::Operator).text()),
        4,
        "the cluster does not know this key",
        "QUORATE_TOKEN",
    );
    ends(&with("key list", "QUORATE_TOKEN", "hello"), 4, "not a token", "QUORATE_TOKEN");
    ends(&with("key list", "QUORATE_TOKEN_FILE", "/nonexistent"), 4, "no token at", "--token-file");
    let directory = tempfile::tempdir().expect("a directory");
    let mut file = cluster.file();
    file.nodes.iter_mut().zip(1..).for_each(|(node, number)| node.key = PublicKey([number; 32]));
    let other = directory.path().join("cluster.toml");
    file.write(&other).expect("written");
    let mut command = cluster.testnet.quorate(["key", "list"]);
    command.env("QUORATE_CLUSTER", &other);
    ends(&run(command, b""), 1, "unknown identity", "");
    let mut command = cluster.testnet.quorate(["key", "list"]);
    command.env("QUORATE_CLUSTER", directory.path().join("nothing.toml"));
    ends(&run(command, b""), 1, "no client file at", "cluster export");
}

/// Exit code 3: locked, cut off, and no node there.
#[test]
fn without_a_quorum_the_exit_code_is_3() {
    let mut cluster = TestCluster::found();
    quorate(&cluster, "key create key", b"");
    let sealed = quorate(&cluster, "encrypt key", b"secret").stdout;
    cluster.testnet.kill("n2").expect("dies");
    cluster.testnet.kill("n3").expect("dies");
    cluster.until("n1 to lose its lease", || (quorate(&cluster, "decrypt", &sealed).code == Some(3)).then_some(()));
    ends(&quorate(&cluster, "decrypt", &sealed), 3, "n1", "`quorate status`");
    let local = |cluster: &TestCluster, node: &str| {
        let socket = cluster.testnet.directory().socket(node);
        let local = quorate(cluster, &format!("node status --socket {}", socket.display()), b"");
        assert_eq!(local.code, Some(3), "{}", local.stderr);
        String::from_utf8_lossy(&local.stdout).into_owned()
    };
    let said = local(&cluster, "n1");
    assert_eq!(said.lines().nth(1), Some("waiting for: n2, n3"), "{said}");
    cluster.kill_all();
    ends(&quorate(&cluster, "decrypt", &sealed), 3, "", "`quorate status`");
    let status = quorate(&cluster, "status", b"");
    assert_eq!(status.code, Some(3), "{}", status.stderr);
    assert!(status.stdout.starts_with(b"not quorate: no node serves\n"), "{}", String::from_utf8_lossy(&status.stdout));
    cluster.start(&["n2"]);
    cluster.testnet.wait_phase("n2", Phase::Locked).expect("locked");
    ends(&quorate(&cluster, "decrypt --node n2", &sealed), 3, "n2", "`quorate status`");
    let said = local(&cluster, "n2");
    assert_eq!(said.lines().next(), Some("n2: locked: have 1 of 2, waiting for n1, n3"), "{said}");
}

/// Scenario: the first status that anyone asks for is asked after n3 died. Mutated: without reports that are kept, n1 shows that it has
/// never seen n3.
#[test]
fn the_first_status_says_when_a_dead_node_was_seen() {
    let mut cluster = TestCluster::found();
    // What n1 was told while the cluster was founded is gone.
    cluster.create("key");
    cluster.testnet.kill("n1").expect("dies");
    cluster.start(&["n1"]);
    // By a request: the local status of n1 is a status, too.
    let serves = |cluster: &TestCluster| cluster.until("n1 to serve", || cluster.encrypt(Some("n1"), "key", b"x").ok());
    serves(&cluster);
    // n3 may die before it has reported. Then it comes back, lives longer, and n1 is asked again after another death.
    let mut life = Duration::ZERO;
    let age_ms = wait_until("n1 to have a report of n3", PATIENCE, || {
        let begin = Instant::now();
        cluster.until("n3 to live for a while", || (begin.elapsed() >= life).then_some(()));
        life += Duration::from_secs(2);
        cluster.testnet.kill("n3").expect("dies");
        let nodes = cluster.block(cluster.client(Some("n1")).status()).expect("n1 and n2 are a quorum").nodes;
        let state = nodes.into_iter().find(|node| node.name.as_str() == "n3").expect("a member").state;
        cluster.start(&["n3"]);
        cluster.testnet.wait_serving(&["n3"]).expect("a quorum");
        serves(&cluster);
        state.map(|state| state.last_seen_ms)
    })
    .expect("in time");
    assert!(age_ms > 0, "it does not answer");
}

/// Exit code 7: a copy of a disk runs while its node lives.
#[test]
fn an_open_alarm_is_exit_code_7() {
    let cluster = TestCluster::found();
    assert_eq!(quorate(&cluster, "status", b"").code, Some(0), "the control");
    let stolen = tempfile::tempdir().expect("a directory");
    let copy = cluster.testnet.steal(&["n2"], stolen.path()).expect("steals").remove(0);
    let port = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
    let mut command = Command::new(Binaries::find().expect("built").quorated);
    command.arg("--data").arg(&copy).arg("--socket").arg(copy.join("s")).args(["--listen", &port.to_string()]);
    let _impostor = Process::start(command, &copy, &copy.join("log"), Lifetime::WithUs).expect("starts");
    let status = cluster.until("an alarm", || {
        let status = quorate(&cluster, "status", b"");
        (status.code == Some(7)).then_some(status)
    });
    let said = String::from_utf8(status.stdout).expect("text");
    assert!(said.starts_with("quorate: keys can be used\n") && said.contains("ALARM n2:"), "{said}");
}

/// Ctrl-C after an order that a node may have received: the command says that it may have begun. No node answers here, since
/// there is no quorum.
#[test]
fn an_order_that_is_interrupted_unanswered_may_have_begun() {
    let mut cluster = TestCluster::found();
    for node in ["n2", "n3"] {
        cluster.testnet.kill(node).expect("dies");
    }
    for typed in ["node remove n3 --yes --accept-no-redundancy", "node revoke n3 --yes"] {
        let order = Tool::start(cluster.testnet.quorate(typed.split(' ')), b"").expect("runs");
        cluster.until("it to listen for Ctrl-C", || order.listens_for_interrupt().then_some(()));
        order.interrupt().expect("is there");
        let finished = order.outcome(PATIENCE).expect("ends");
        assert_eq!(finished.code, Some(130), "{typed}: {}", finished.stderr);
        assert!(finished.stderr.contains("it may or may not have started"), "{typed}: {}", finished.stderr);
    }
}

/// Exit code 130: Ctrl-C ends the waiting and nothing else.
#[test]
fn an_interrupted_wait_is_exit_code_130_and_founding_goes_on() {
    let mut testnet = Cluster::builder().start().expect("starts");
    let first = init(&testnet, "n1", &["--founders", "3"]);
    let invited = invitations(&first, 2);
    first.interrupt().expect("is there");
    let finished = first.outcome(PATIENCE).expect("ends");
    assert_eq!(finished.code, Some(130), "{}", finished.stderr);
    assert!(finished.stderr.contains("founding continues without this command"), "{}", finished.stderr);
    let second = join(&testnet, "n2", &invited[0]);
    join(&testnet, "n3", &invited[1]).success(PATIENCE).expect("joins");
    second.success(PATIENCE).expect("joins");
    testnet.wait_serving(&["n1", "n2", "n3"]).expect("founded all the same");
}

/// `make demo | head`. Mutated: the error of the pipe ends the demo with a message and exit code 1.
#[test]
fn the_testnet_ends_without_an_error_when_no_reader_is_left() {
    let nothing = tempfile::tempdir().expect("a directory");
    let thief = || {
        let mut command = Command::new(Binaries::find().expect("built").quorate.with_file_name("quorate-testnet"));
        command.arg("thief").arg(nothing.path());
        command
    };
    let read = thief().output().expect("built");
    assert!(read.status.success() && !read.stdout.is_empty(), "the control: {read:?}");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let unread = thief().stdout(writer).output().expect("built");
    assert_eq!((unread.status.code(), String::from_utf8_lossy(&unread.stderr).as_ref()), (Some(0), ""));
}

/// The daemon has a help with an example, and refuses a configuration that makes no sense as a whole, with exit code 2.
#[test]
fn the_daemon_explains_itself() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let quorated = |arguments: &[&str], log: &str| {
        let mut command = Command::new(Binaries::find().expect("built").quorated);
        command.args(arguments).env("QUORATE_LOG", log);
        run(command, b"")
    };
    let help = quorated(&["--help"], "");
    assert_eq!(help.code, Some(0), "{}", help.stderr);
    let help = String::from_utf8(help.stdout).expect("text");
    let example =
        help.split("\nExample:\n  quorated ").nth(1).and_then(|rest| rest.lines().next()).expect("an example");
    for option in example.split_whitespace().filter(|word| word.starts_with("--")) {
        assert!(help.contains(&format!("      {option} <")), "{option} is an option");
    }
    let file = directory.path().join("quorated.toml");
    std::fs::write(&file, "listen = \"127.0.0.1:0\"\nlease = 3\n").expect("our own directory");
    let [data, file] = [&data, &file].map(|path| path.to_str().expect("text"));
    // An empty variable is as if it were not set.
    let empty = ["DATA", "LISTEN", "ADVERTISE", "NAME", "SOCKET", "CONFIG"].map(|name| (format!("QUORATE_{name}"), ""));
    let mut command = Command::new(Binaries::find().expect("built").quorated);
    command.args(["--data", data, "--listen", "0.0.0.0:7250"]).envs(empty);
    let refused = run(command, b"");
    assert!(
        refused.code == Some(2) && refused.stderr.contains("0.0.0.0:7250 cannot be reached from another machine"),
        "{}",
        refused.stderr
    );
    // `-` is standard input.
    let mut command = Command::new(Binaries::find().expect("built").quorated);
    command.args(["--config", "-"]);
    let refused = run(command, b"\nlisten = 7\n");
    assert!(refused.code == Some(2) && refused.stderr.contains("line 2"), "{}", refused.stderr);
    let complete = ["--data", data, "--listen", "127.0.0.1:7250", "--name", "n1"];
    for (arguments, log, message) in [
        (&[][..], "", "--data is not set"),
        (&["--data", data], "", "--listen is not set"),
        (&["--turbo"], "", "unexpected argument '--turbo'"),
        (
            &["--data", data, "--listen", "0.0.0.0:7250"],
            "",
            "--advertise is not valid: 0.0.0.0:7250 cannot be reached from another machine",
        ),
        (&["--data", data, "--listen", "127.0.0.1:7250", "--name", "N 1"], "", "--name is not valid"),
        (&["--data", data, "--config", file], "", "line 2"),
        (&complete, "info,openraft=lots", "QUORATE_LOG is not valid"),
        (&complete, "info, openraft=error", "QUORATE_LOG is not valid"),
    ] {
        let refused = quorated(arguments, log);
        assert_eq!(refused.code, Some(2), "{arguments:?}: {}", refused.stderr);
        assert!(refused.stderr.contains(message), "{arguments:?}: {}", refused.stderr);
        assert!(!std::path::Path::new(data).exists(), "{arguments:?}: nothing was begun");
    }
}

/// What docs/JSON.md says of one field.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    kind: String,
    or_null: bool,
}

type Fields = BTreeMap<String, Field>;

/// The tables of docs/JSON.md: the commands of each, and its fields.
fn documented() -> Vec<(Vec<String>, Fields)> {
    let (_, paragraphs) = parts(&read("docs/JSON.md"));
    let mut tables: Vec<(Vec<String>, Fields)> = Vec::new();
    for line in paragraphs.iter().flat_map(|paragraph| paragraph.lines()) {
        if line.starts_with("## ") {
            tables.push((spans(line).map(str::to_owned).collect(), Fields::new()));
        }
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        if let ([_, name, kind, ..], Some((_, fields))) = (&cells[..], tables.last_mut())
            && let Some(name) = name.strip_prefix('`').and_then(|name| name.strip_suffix('`'))
        {
            let (kind, or_null) = kind.strip_suffix(" or null").map_or((*kind, false), |kind| (kind, true));
            fields.insert(name.to_owned(), Field { kind: kind.to_owned(), or_null });
        }
    }
    tables
}

/// The fields of a result, as docs/JSON.md writes them: `nodes[].name`. Names that are data, as those of tags, are `*`.
fn fields(at: &str, value: &Value, found: &mut Vec<(String, &'static str)>) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    };
    if !at.is_empty() && !at.ends_with("[]") {
        found.push((at.to_owned(), kind));
    }
    match value {
        Value::Array(items) => items.iter().for_each(|item| fields(&format!("{at}[]"), item, found)),
        Value::Object(members) => {
            for (name, value) in members {
                let name = if at.ends_with("tags") { "*" } else { name };
                let at = if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
                fields(&at, value, found);
            }
        }
        _ => {}
    }
}

/// What is wrong with a result, if anything; `seen` are the fields that were met.
fn disagreements(typed: &str, result: &[u8], seen: &mut BTreeMap<String, Vec<String>>) -> Vec<String> {
    // Of the two that `node status` is, one has a name behind it.
    let typed = &typed.replacen("node status n", "node status NAME n", 1);
    let tables = documented();
    let table = tables.iter().find(|(commands, _)| commands.iter().any(|command| typed.starts_with(command.as_str())));
    let (commands, known) = table.unwrap_or_else(|| panic!("docs/JSON.md does not know {typed}"));
    let mut found = Vec::new();
    for value in serde_json::Deserializer::from_slice(result).into_iter::<Value>() {
        fields("", &value.unwrap_or_else(|error| panic!("{typed}: {error}")), &mut found);
    }
    seen.entry(commands[0].clone()).or_default().extend(found.iter().map(|(name, _)| name.clone()));
    let wrong = |(name, kind): &(String, &'static str)| match known.get(name) {
        None => Some(format!("{typed}: {name} is not documented")),
        Some(field) if field.kind == *kind || (field.or_null && *kind == "null") => None,
        Some(field) => Some(format!("{typed}: {name} is {kind} and not {field:?}")),
    };
    found.iter().filter_map(wrong).collect()
}

/// The results that `cli/tests/golden` holds the command line to, with what was typed.
fn golden() -> Vec<(String, String)> {
    let text = read("cli/tests/golden/json.txt");
    let cases = text.split("$ quorate ").skip(1);
    cases
        .map(|case| case.split_once('\n').map(|(typed, out)| (typed.to_owned(), out.to_owned())).expect("two lines"))
        .collect()
}

/// docs/JSON.md names every field that there is, no other, and says what it holds.
#[test]
fn json_is_documented_field_by_field() {
    let (mut seen, mut wrong) = (BTreeMap::new(), Vec::new());
    for (typed, result) in golden() {
        wrong.extend(disagreements(&typed, result.as_bytes(), &mut seen));
    }
    for (commands, fields) in documented().into_iter().filter(|(commands, _)| !commands.is_empty()) {
        let met = seen.get(&commands[0]).map(Vec::as_slice).unwrap_or_default();
        wrong.extend(
            fields.keys().filter(|field| !met.contains(field)).map(|field| format!("{commands:?} has no {field}")),
        );
    }
    assert!(wrong.is_empty(), "docs/JSON.md and cli/tests/golden/json.txt disagree:\n{}", wrong.join("\n"));
    assert!(seen.values().map(Vec::len).sum::<usize>() > 100, "the control: {seen:?}");
    assert!(!disagreements("key list", br#"[{"name": 7, "colour": "red"}]"#, &mut seen).is_empty(), "the control");
}

/// And a real cluster answers with these fields.
#[test]
fn json_of_a_real_cluster_is_as_documented() {
    let cluster = TestCluster::found();
    let (mut seen, mut wrong) = (BTreeMap::new(), Vec::new());
    let mut check = |typed: &str, input: &[u8]| {
        let finished = quorate(&cluster, &format!("{typed} --output json"), input);
        assert_eq!(finished.code, Some(0), "{typed}: {}", finished.stderr);
        wrong.extend(disagreements(typed, &finished.stdout, &mut seen));
        finished.stdout
    };
    check("key create billing/cards --tag owner=billing", b"");
    check("key rotate billing/cards", b"");
    check("key show billing/cards", b"");
    check("key list", b"");
    let sealed = check("encrypt billing/cards -c customer=4711", b"attack at dawn");
    let sealed: Value = serde_json::from_slice(&sealed).expect("JSON");
    let opened = check("decrypt -c customer=4711", sealed["ciphertext"].as_str().expect("text").as_bytes());
    assert_eq!(opened, b"{\"plaintext\":\"YXR0YWNrIGF0IGRhd24=\"}\n");
    check("datakey billing/cards", b"");
    check("datakey billing/cards --wrapped-only", b"");
    check("node list", b"");
    check("node status n2", b"");
    check("cluster export", b"");
    check("status", b"");
    check(&format!("node status --socket {}", cluster.testnet.directory().socket("n1").display()), b"");
    assert!(wrong.is_empty(), "a real cluster disagrees with docs/JSON.md:\n{}", wrong.join("\n"));
}
