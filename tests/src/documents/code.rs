//! What the documents say of the code is so: OPERATING explains everything that the programs can refuse with and every file
//! that they make, ARCHITECTURE and the comments of the model name functions that exist, and THREATS tests.
//!
//! The compiler and clippy know nothing of documents, so texts are searched in the sources: in all of them, so that a file
//! can move. A refusal, an alarm or a file that OPERATING does not explain fails here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use quorate_client::Code;
use quorate_client::wire::{self, Phase, Role};
use serde::de::DeserializeOwned;

use crate::harness::TestCluster;
use crate::harness::documents::{parts, read, root, spans};
use crate::harness::names::names;

/// The string literals of a piece of Rust, as they are printed but for what is filled in, which becomes `…`.
fn literals(code: &str) -> Vec<String> {
    let code: String =
        code.lines().filter(|line| !line.trim_start().starts_with("//")).map(|l| l.to_owned() + "\n").collect();
    let (mut found, mut letters) = (Vec::new(), code.chars().peekable());
    while let Some(letter) = letters.next() {
        if letter != '"' {
            continue;
        }
        let mut literal = String::new();
        while let Some(letter) = letters.next() {
            match letter {
                '"' => break,
                '\\' => match letters.next() {
                    Some('\n') => while letters.next_if(|letter| letter.is_whitespace()).is_some() {},
                    Some('n') => literal.push(' '),
                    other => literal.extend(other),
                },
                '{' => {
                    literal.push('…');
                    let _ = letters.by_ref().find(|letter| *letter == '}');
                }
                letter => literal.push(letter),
            }
        }
        found.push(literal);
    }
    found
}

/// The messages of an error type: the first literal of each `#[error(…)]`.
fn messages(error: &str) -> Vec<String> {
    let attributes = error.split("#[error(").skip(1);
    attributes.filter(|rest| rest.trim_start().starts_with('"')).map(|rest| literals(rest).remove(0)).collect()
}

pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Everything that a daemon or a client can utter as a refusal, with where it comes from.
fn refusals() -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut add = |from: &str, texts: Vec<String>| {
        assert!(!texts.is_empty(), "{from}: no messages found");
        all.extend(texts.into_iter().map(|text| (from.to_owned(), one_line(&text))));
    };
    let program = Program::read();
    for name in [
        "ConfigError",
        "DataDirError",
        "VaultError",
        "BootError",
        "UnlockError",
        "InvitationError",
        "PinError",
        "SocketError",
        "OpenError",
        "StorageProblem",
        "SealProblem",
        "DialError",
        "CallError",
    ] {
        add(name, messages(program.item(&format!("pub enum {name} {{"))));
    }
    for (start, end) in [
        ("impl fmt::Display for PeerRefusal {", "\n}"),
        ("fn explain(code: LockOpenCode)", "\n}"),
        ("pub fn read(place: &PinPlace)", "\n    }\n"),
    ] {
        let code = program.item(start);
        add(start, literals(code.split(end).next().expect("always one")));
    }
    // Everything that is said of operations, with the hints: a line is a message or a hint if it has more than a word.
    let operations =
        program.file("Ok(Outcome::Begun { operation: epoch }) =>").split("#[cfg(test)]").next().expect("always one");
    // What is only logged is not said to an operator.
    let operations: Vec<_> = operations.lines().filter(|line| !line.trim_start().starts_with("info!(")).collect();
    let said = literals(&operations.join("\n"));
    add("operations", said.into_iter().filter(|text| text.contains(' ')).collect());
    let joining = program.file("JoinCode::NameTaken => ");
    let codes =
        joining.split("JoinCode::").skip(1).filter(|rest| rest.split('\n').next().is_some_and(|l| l.contains("=>")));
    let said = |rest: &str| {
        rest.split("JoinCode::").next().and_then(|rest| literals(rest).into_iter().find(|l| l.contains(' ')))
    };
    // The answer to wait is no refusal.
    add("JoinCode", codes.filter(|rest| !rest.starts_with("Wait ")).filter_map(said).collect());
    all
}

#[test]
fn operating_explains_every_refusal() {
    let operating = one_line(&read("docs/OPERATING.md"));
    let all = refusals();
    assert!(all.len() > 60, "the control: they were found: {all:?}");
    let known = |text: &str| operating.contains(text);
    let missing: Vec<_> = all
        .iter()
        .filter(|(_, text)| text.chars().any(char::is_alphabetic) && !known(text))
        .map(|(from, text)| format!("{from}: {text}"))
        .collect();
    assert!(missing.is_empty(), "OPERATING does not explain:\n{}", missing.join("\n"));
    assert!(!known("the daemon is tired"), "the control: not everything is explained");
}

/// Every value of an enum whose variants hold nothing: each is the byte of its number.
fn every<T: DeserializeOwned>() -> impl Iterator<Item = T> {
    let (_, variants) = names::<T>();
    (0..variants.len()).map(|number| wire::decode(&[number as u8]).expect("a variant"))
}

#[test]
fn operating_explains_every_code_alarm_and_phase() {
    let operating = read("docs/OPERATING.md");
    let known = |word: &str| operating.contains(&format!("`{word}`"));
    for code in Code::ALL {
        assert!(known(code.as_str()), "OPERATING does not explain the code {code}");
    }
    let words: Vec<_> = every::<Phase>().map(|phase| phase.as_str().to_owned()).collect();
    let words = [words, every::<Role>().map(|role| role.as_str().to_owned()).collect()].concat();
    assert_eq!(words.len(), 10, "{words:?}");
    let mut alarms = BTreeSet::new();
    let program = Program::read();
    for (_, text) in program.product() {
        for rest in text.split(".alarm(\"").skip(1) {
            alarms.insert(rest.split('"').next().expect("always one").to_owned());
        }
    }
    assert!(alarms.len() >= 5, "{alarms:?}");
    for word in words.iter().chain(&alarms) {
        assert!(known(word), "OPERATING does not explain {word}");
    }
    let codes: Vec<_> = program
        .item("pub mod close {")
        .split("pub const ")
        .skip(1)
        .filter_map(|rest| rest.split_once(": u32 = "))
        .collect();
    assert!(codes.len() >= 7, "{codes:?}");
    for (name, rest) in codes {
        let number = rest.split(';').next().expect("always one");
        let row = format!("| {number} {} |", name.to_lowercase());
        assert!(operating.contains(&row), "OPERATING has no row {row}");
    }
}

/// The files of a node that has served: each is in the table of OPERATING, with the mode that it has.
#[test]
fn operating_names_every_file_of_a_node() {
    use std::os::unix::fs::PermissionsExt;

    let cluster = TestCluster::found();
    cluster.create("key");
    cluster.encrypt(None, "key", b"secret").expect("encrypts");
    let operating = read("docs/OPERATING.md");
    let directory = cluster.testnet.directory().node("n1");
    let mut found = Vec::new();
    let mut waiting = vec![directory.clone()];
    while let Some(next) = waiting.pop() {
        for entry in fs::read_dir(next).expect("ours").flatten() {
            let path = entry.path();
            // What the testnet adds to a node's directory.
            if !["quorated.log", "quorated.toml"].iter().any(|other| path.ends_with(other)) {
                found.push(path.clone());
            }
            if path.is_dir() {
                waiting.push(path);
            }
        }
    }
    assert!(found.len() > 8, "the control: {found:?}");
    for path in found {
        let name = path.strip_prefix(&directory).expect("below it").to_string_lossy().into_owned();
        let slash = if path.is_dir() { "/" } else { "" };
        let mode = fs::symlink_metadata(&path).expect("there").permissions().mode() & 0o7777;
        let row = |name: &str| operating.contains(&format!("| `{name}` | {mode:04o} |"));
        let general = name.rsplit_once('/').map(|(folder, _)| format!("{folder}/*")).unwrap_or_default();
        assert!(
            row(&format!("{name}{slash}")) || row(&general),
            "OPERATING has no row for {name}{slash}, mode {mode:04o}"
        );
    }
}

/// Rust files below a directory.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in fs::read_dir(directory).expect("a directory").flatten().map(|entry| entry.path()) {
        if path.is_dir() && !path.ends_with("target") {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// Everything that is declared in the program: functions, types, variants, modules, constants, public fields.
pub(crate) struct Program {
    pub(crate) files: Vec<(PathBuf, String)>,
}

impl Program {
    pub(crate) fn read() -> Self {
        let crates = ["shares", "raft", "client", "node", "cli", "testnet", "tests"];
        let files = crates.iter().flat_map(|name| sources(&root().join(name)));
        Self { files: files.map(|path| (path.clone(), fs::read_to_string(path).expect("reads"))).collect() }
    }

    /// The files of what users run, without their tests.
    pub(crate) fn product(&self) -> impl Iterator<Item = &(PathBuf, String)> {
        let is_test = |part: &str| part.trim_end_matches(".rs").ends_with("tests") || part == "testnet";
        self.files.iter().filter(move |(path, _)| {
            let path = path.strip_prefix(root()).expect("below it");
            !path.components().any(|part| is_test(&part.as_os_str().to_string_lossy()))
        })
    }

    /// The one file of the product in which `text` stands.
    fn file(&self, text: &str) -> &str {
        let found: Vec<_> = self.product().filter(|(_, content)| content.contains(text)).collect();
        let [(_, content)] = found.as_slice() else {
            panic!("{text:?} stands in {:?}", found.iter().map(|(path, _)| path).collect::<Vec<_>>())
        };
        content
    }

    /// The one item of the product that begins a line with `start`, to the first line that closes an item.
    fn item(&self, start: &str) -> &str {
        let start = format!("\n{start}");
        let file = self.file(&start);
        let item = &file[file.find(&start).expect("it stands there") + 1..];
        &item[..item.find("\n}").unwrap_or(item.len())]
    }

    /// Whether some file that `may` be looked at declares `name`.
    fn declares(&self, name: &str, may: impl Fn(&Path, &str) -> bool) -> bool {
        // A variant stands behind its indent alone; behind that a word in lower case may be anything.
        let declarations: &[&str] = match name.starts_with(|first: char| first.is_ascii_uppercase()) {
            true => &["struct ", "enum ", "trait ", "type ", "const ", "static ", "    "],
            false => &["fn ", "mod ", "pub "],
        };
        let ends = |rest: &str| !rest.starts_with(|next: char| next.is_ascii_alphanumeric() || next == '_');
        self.files.iter().filter(|(path, text)| may(path, text)).any(|(_, text)| {
            declarations.iter().any(|kind| {
                let declared = format!("{kind}{name}");
                text.match_indices(&declared).any(|(at, _)| ends(&text[at + declared.len()..]))
            })
        })
    }

    /// Whether a name as the documents write it exists: `module::function`, `Type::function`, or one of them alone.
    pub(crate) fn has(&self, name: &str) -> bool {
        let Some((of, member)) = name.rsplit_once("::") else { return self.declares(name, |_, _| true) };
        let of = of.rsplit("::").next().expect("always one");
        if of.starts_with(|first: char| first.is_ascii_uppercase()) {
            let (plain, generic) = (format!(" {of} {{"), format!(" {of}<"));
            return self.declares(member, |_, text| text.contains(&plain) || text.contains(&generic));
        }
        self.declares(member, |path, _| {
            path.components().any(|part| part.as_os_str() == of) || path.file_stem().is_some_and(|stem| stem == of)
        })
    }
}

/// Whether what stands between backticks is a name of Rust, with a path or without.
fn is_name(span: &&str) -> bool {
    let letters =
        |part: &str| !part.is_empty() && part.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
    span.split("::").all(letters)
}

#[test]
fn architecture_names_only_what_exists() {
    let (pictures, paragraphs) = parts(&read("docs/ARCHITECTURE.md"));
    let program = Program::read();
    let (mut checked, mut wrong) = (0, Vec::new());
    // What is not a name of ours: programs, crates, and words of the command line and of the file system.
    let others = [
        "quorate",
        "quorated",
        "quorate::audit",
        "client",
        "fuzz",
        "shares",
        "raft",
        "node",
        "cli",
        "testnet",
        "tests",
        "state",
    ];
    for name in paragraphs.iter().flat_map(|paragraph| spans(paragraph)).filter(is_name) {
        if !others.contains(&name) {
            checked += 1;
            wrong.extend((!program.has(name)).then_some(name));
        }
    }
    // In a picture a name is what has a path.
    for picture in &pictures {
        let words = picture.text.split(|letter: char| !(letter.is_ascii_alphanumeric() || "_:".contains(letter)));
        for name in words.map(|word| word.trim_end_matches(':')).filter(|word| word.contains("::")) {
            checked += 1;
            wrong.extend((!program.has(name)).then_some(name));
        }
    }
    assert!(wrong.is_empty(), "ARCHITECTURE names what is not there: {}", wrong.join(", "));
    assert!(checked > 60, "the control: {checked} names were found");
    for made_up in ["unlock::guess", "Lock::pick", "raft::run_away", "Keyring::lend", "make_up"] {
        assert!(!program.has(made_up), "the control: {made_up} does not exist");
    }
}

/// The model stands in for functions of the daemon, and its comments name them. A name with a path is one of the daemon, and
/// so is every name below `model/node`. Elsewhere a name may be one of the model.
#[test]
fn the_model_names_only_what_exists() {
    let all = Program::read();
    let product = Program { files: all.product().cloned().collect() };
    let model = root().join("tests/src/model");
    let (mut checked, mut wrong) = (0, Vec::new());
    for (path, text) in all.files.iter().filter(|(path, _)| path.starts_with(&model)) {
        let comments = text.lines().filter_map(|line| line.split_once("//"));
        for name in comments.flat_map(|(_, comment)| spans(comment)).filter(is_name) {
            let of_the_daemon = name.contains("::") || path.starts_with(model.join("node"));
            let program = if of_the_daemon { &product } else { &all };
            // A comment also names the parameters of its function, and values of Rust.
            let exists = program.has(name) || text.contains(&format!("{name}: ")) || ["true", "false"].contains(&name);
            checked += 1;
            wrong.extend((!exists).then(|| format!("{name} in {}", path.display())));
        }
    }
    assert!(wrong.is_empty(), "comments of the model name what is not there:\n{}", wrong.join("\n"));
    assert!(checked > 100, "the control: {checked} names were found");
    // The model has a function of this name, and the daemon has none.
    assert!(all.has("take_shares") && !product.has("take_shares"), "the control: the model is not the daemon");
}

/// THREATS names the tests that show its rows by number: each of them is there.
#[test]
fn threats_names_only_tests_that_exist() {
    let tests: String = Program::read().files.into_iter().map(|(_, text)| text).collect();
    let threats = read("docs/THREATS.md");
    let numbers: BTreeSet<_> = threats
        .split(|letter: char| !letter.is_ascii_alphanumeric())
        .filter(|word| word.len() == 3 && word.starts_with('T') && word[1..].bytes().all(|byte| byte.is_ascii_digit()))
        .collect();
    assert!(numbers.len() > 10, "the control: {numbers:?}");
    let exists = |number: &str| tests.contains(number) || tests.contains(&format!("fn {}_", number.to_lowercase()));
    let missing: Vec<_> = numbers.iter().filter(|number| !exists(number)).collect();
    assert!(missing.is_empty(), "THREATS names tests that are not there: {missing:?}");
}
