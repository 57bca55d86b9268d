//! What the documents tell people to type works: the README is run, and every command, option, variable, file and target
//! that README and OPERATING name exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use quorate_testnet::procs::{Binaries, Tool};
use quorate_testnet::{Cluster, demo};

use crate::harness::PATIENCE;
use crate::harness::documents::{parts, read, root, spans};

const DOCUMENTS: [&str; 2] = ["README.md", "docs/OPERATING.md"];
const OTHER_DOCUMENTS: [&str; 8] = [
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "docs/ARCHITECTURE.md",
    "docs/BENCHMARKS.md",
    "docs/FORMATS.md",
    "docs/JSON.md",
    "docs/THREATS.md",
];
/// Where the files lie that documents name.
const FOLDERS: [&str; 10] =
    [".ci/", "cli/", "client/", "docs/", "fuzz/", "node/", "raft/", "shares/", "testnet/", "tests/"];
const PROGRAMS: [&str; 3] = ["quorate", "quorated", "quorate-testnet"];

/// `bash` in `directory`, which stops at the first command that fails.
fn shell(script: &str, directory: &Path) -> Command {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script]).current_dir(directory);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("QUORATE") {
            command.env_remove(name);
        }
    }
    command
}

/// The block that a reader pastes after `make cluster`, in a directory that looks like the repository then.
#[test]
fn the_readme_works_as_it_is_typed() {
    let (blocks, _) = parts(&read("README.md"));
    let typed = blocks.iter().filter(|block| matches!(block.language.as_str(), "" | "sh"));
    let typed: Vec<_> = typed.filter(|block| block.text.starts_with("export QUORATE_CLUSTER=")).collect();
    assert!(!typed.is_empty(), "the README shows how to try it");
    let makefile = read("Makefile");
    assert!(makefile.contains("quorate-testnet up --nodes 3 --dir .testnet"), "`make cluster` does what is done here");

    let directory = tempfile::tempdir().expect("a directory");
    let programs = Binaries::find().expect("built").quorated;
    fs::create_dir(directory.path().join("target")).expect("our own directory");
    symlink(programs.parent().expect("a directory"), directory.path().join("target/debug")).expect("our own directory");
    let testnet = directory.path().join(".testnet");
    let _cluster = Cluster::builder().directory(&testnet).found().expect("a cluster");
    for block in typed {
        println!("{}", block.text);
        let tool = Tool::start(shell(&block.text, directory.path()), b"").expect("runs");
        let said = tool.success(PATIENCE).expect("every command succeeds");
        let said = String::from_utf8(said).expect("text");
        println!("{said}");
        // What was encrypted comes back at the end.
        let secret = block.text.split("echo '").nth(1).and_then(|rest| rest.split('\'').next()).expect("a message");
        assert!(said.contains("qrt1:") && said.ends_with(&format!("{secret}\n")), "{said}");
    }
    // The reader's clone stays as it was.
    let mut left: Vec<_> =
        fs::read_dir(directory.path()).expect("ours").flatten().map(|entry| entry.file_name()).collect();
    left.sort();
    assert_eq!(left, [".testnet", "target"], "the block leaves no file behind");
    // The block may have started a node, which is no child of this process.
    Cluster::attach(&testnet).and_then(|mut cluster| cluster.terminate_all()).expect("ends");
}

/// What `make cluster` prints works as it is pasted, in a directory that knows neither the programs nor the cluster.
#[test]
fn what_a_new_cluster_prints_works_in_any_directory() {
    let (testnet, elsewhere) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let place = testnet.path().join("a cluster");
    let quorate_testnet = Binaries::find().expect("built").quorate.with_file_name("quorate-testnet");
    let run = |verb: &str| {
        let mut command = Command::new(&quorate_testnet);
        command.arg(verb).arg("--dir").arg(&place).current_dir(testnet.path());
        let said = Tool::start(command, b"").expect("runs").success(PATIENCE).expect("succeeds");
        String::from_utf8(said).expect("text")
    };
    let told = run("up");
    let block: String =
        told.lines().filter_map(|line| line.strip_prefix("  ")).map(|line| format!("{line}\n")).collect();
    assert!(block.lines().count() > 4, "the control: there is a block: {told}");
    let mut pasted = shell(&block, elsewhere.path());
    pasted.env("PATH", "/usr/bin:/bin");
    let said = Tool::start(pasted, b"").expect("runs").outcome(PATIENCE).expect("ends");
    let stopped = run("down");
    assert_eq!(said.code, Some(0), "{block}\n{}", said.stderr);
    assert!(String::from_utf8_lossy(&said.stdout).ends_with("hello\n"), "what was encrypted comes back");
    // The block has killed n1.
    assert_eq!(stopped, format!("stopped n2, n3, the relay; their files stay in {}\n", place.display()));
    assert_eq!(run("down"), format!("nothing was running in {}\n", place.display()));

    // A revoked node does not keep the others from their work.
    run("up");
    let cluster = Cluster::attach(&place).expect("it runs");
    cluster.run(["node", "revoke", "n1", "--yes"], b"").expect("revoked");
    run("down");
    let told = run("up");
    assert!(told.starts_with("n1 was revoked or removed, and stays out of service\nn2, n3 serve."), "{told}");
    assert!(told.contains(" kill n2 &&"), "{told}");
    // A founding that did not finish leaves nothing that runs.
    fs::remove_file(cluster.directory().client_file()).expect("ours");
    let mut up = Command::new(&quorate_testnet);
    up.arg("up").arg("--dir").arg(&place);
    let unfinished = Tool::start(up, b"").expect("runs").outcome(PATIENCE).expect("ends");
    assert!(unfinished.code == Some(1) && unfinished.stderr.contains("did not finish"), "{}", unfinished.stderr);
    assert_eq!(run("down"), format!("nothing was running in {}\n", place.display()));
}

/// A line of shell without its comment.
pub(crate) fn command(line: &str) -> &str {
    line.split(" # ").next().expect("always one").trim()
}

/// A line without its numbers, which differ from run to run.
fn shape(line: &str) -> String {
    let mut shape = String::new();
    for letter in line.trim().chars() {
        match letter {
            '0'..='9' | '.' if shape.ends_with('#') => {}
            '0'..='9' => shape.push('#'),
            letter => shape.push(letter),
        }
    }
    shape
}

/// The steps of the demo and its last line, each as its lines.
fn steps(told: &str) -> Vec<Vec<String>> {
    let steps = told.split("\n\n").map(|step| step.lines().filter(|line| !line.is_empty()).map(shape).collect());
    steps.filter(|step: &Vec<_>| !step.is_empty()).collect()
}

/// The output that the README shows is the demo's. Steps are left out, but a step that is shown is shown whole; only numbers
/// differ.
#[test]
fn the_demo_says_what_the_readme_shows() {
    let mut told = Vec::new();
    demo::tell(None, &mut told).expect("the demo succeeds");
    let told = String::from_utf8(told).expect("text");
    let (blocks, _) = parts(&read("README.md"));
    let demo = blocks.iter().position(|block| block.text.lines().next().map(command) == Some("make demo"));
    let shown = steps(&blocks[demo.expect("the README begins with it") + 1].text);
    assert!(shown.len() == 4, "the control: three steps and the last line were found: {shown:?}");
    let whole = steps(&told);
    assert!(whole.len() > 10, "the control: the demo has steps: {whole:?}");
    let mut left = whole.iter();
    for step in &shown {
        assert!(left.any(|told| told == step), "the demo does not say, at this place: {step:#?}\n\n{told}");
    }
}

/// The help texts of the programs.
struct Help {
    directory: PathBuf,
    known: BTreeMap<Vec<String>, String>,
}

impl Help {
    fn new() -> Self {
        let directory = Binaries::find().expect("built").quorated.parent().expect("a directory").to_owned();
        Self { directory, known: BTreeMap::new() }
    }

    /// The help of a program, or of one of its commands.
    fn of(&mut self, words: &[String]) -> &str {
        let directory = &self.directory;
        self.known.entry(words.to_vec()).or_insert_with(|| {
            let mut command = Command::new(directory.join(&words[0]));
            command.args(&words[1..]).arg("--help");
            let output = Tool::start(command, b"").expect("runs").success(PATIENCE);
            String::from_utf8(output.unwrap_or_else(|error| panic!("{words:?}: {error}"))).expect("text")
        })
    }

    fn commands(&mut self, words: &[String]) -> BTreeSet<String> {
        let listed = self.of(words).lines().skip_while(|line| *line != "Commands:").skip(1);
        let listed = listed.take_while(|line| !line.is_empty());
        listed.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    }

    fn has_option(&mut self, words: &[String], option: &str) -> bool {
        let ends = |rest: &str| !rest.starts_with(|next: char| next.is_ascii_alphanumeric() || next == '-');
        let help = self.of(words);
        help.match_indices(option)
            .any(|(at, _)| ends(&help[at + option.len()..]) && help[..at].ends_with([' ', '[', '\n']))
    }

    /// Every program, and every command of each.
    fn all(&mut self) -> Vec<Vec<String>> {
        let mut all: Vec<_> = PROGRAMS.iter().map(|program| vec![(*program).to_owned()]).collect();
        let mut next = 0;
        while next < all.len() {
            let words = all[next].clone();
            all.extend(self.commands(&words).into_iter().map(|command| [&words[..], &[command]].concat()));
            next += 1;
        }
        all
    }
}

/// The calls of our programs in a line of shell: each is the program and the words behind it.
fn calls(line: &str) -> Vec<Vec<String>> {
    let mut calls = Vec::new();
    let mut segment: Vec<&str> = Vec::new();
    for word in line.split_whitespace().chain(["|"]) {
        if !matches!(word, "|" | "||" | "&&" | ";" | "#" | ">" | "<" | "or:") {
            segment.push(word);
            continue;
        }
        // The last one: `sudo -u quorate quorate …` runs as a user of that name.
        let program = |word: &str| PROGRAMS.contains(&word.rsplit_once("/bin/").map_or(word, |(_, program)| program));
        if let Some(at) = segment.iter().rposition(|word| program(word)) {
            let name = segment[at].rsplit('/').next().expect("always one").to_owned();
            calls.push(
                [&[name][..], &segment[at + 1..].iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()].concat(),
            );
        }
        segment.clear();
        if word == "#" {
            break;
        }
    }
    calls
}

/// What is wrong with a call, if anything.
fn check(help: &mut Help, call: &[String]) -> Result<(), String> {
    let mut words = vec![call[0].clone()];
    for word in &call[1..] {
        let option = word.split('=').next().expect("always one").trim_matches(['[', ']', ',', ')', '(']);
        if option.len() > 1 && option.starts_with('-') {
            if !help.has_option(&words, option) {
                return Err(format!("{words:?} has no option {option}"));
            }
        } else if !help.commands(&words).is_empty() && word.starts_with(|first: char| first.is_ascii_lowercase()) {
            let command = word.trim_end_matches(['.', ',', ':', ';', '…']).to_owned();
            if !help.commands(&words).contains(&command) {
                return Err(format!("{words:?} has no command {command}"));
            }
            words.push(command);
        }
    }
    Ok(())
}

#[test]
fn documents_name_only_commands_and_options_that_exist() {
    let mut help = Help::new();
    let all = help.all();
    let (mut checked, mut wrong) = (BTreeSet::new(), Vec::new());
    for document in DOCUMENTS {
        let (blocks, paragraphs) = parts(&read(document));
        let lines = blocks.iter().filter(|block| block.language != "rust").flat_map(|block| block.text.lines());
        for code in lines.chain(paragraphs.iter().flat_map(|paragraph| spans(paragraph))) {
            let first = code.split_whitespace().next().unwrap_or_default();
            if first.starts_with("--") {
                // An option by itself belongs to some command.
                let exists = all.iter().any(|words| help.has_option(words, first));
                wrong.extend((!exists).then(|| format!("{document}: nothing has an option {first}")));
                checked.insert(vec![first.to_owned()]);
                continue;
            }
            for call in calls(code) {
                wrong.extend(check(&mut help, &call).err().map(|reason| format!("{document}: {code}: {reason}")));
                checked.insert(call);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked.len() > 20, "the control: the calls were found: {checked:?}");
    for made_up in
        ["quorate node explode", "quorate status --colour", "quorated --turbo", "quorate-testnet up --nodez 3"]
    {
        let call = calls(made_up).remove(0);
        assert!(check(&mut help, &call).is_err(), "the control: {made_up} does not exist");
    }
}

/// What a link to a heading of a page says behind `#`.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page
        .lines()
        .filter_map(|line| line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with("##")));
    let letter = |letter: char| match letter {
        ' ' | '-' => Some('-'),
        letter if letter.is_alphanumeric() || letter == '_' => Some(letter.to_ascii_lowercase()),
        _ => None,
    };
    headings.map(|heading| heading.chars().filter_map(letter).collect()).collect()
}

/// The table at the top of OPERATING leads to each of its pages.
#[test]
fn operating_lists_its_pages() {
    let operating = read("docs/OPERATING.md");
    let (top, _) = operating.split_once("\n## ").expect("there are pages");
    let pages: Vec<_> = operating.lines().filter(|line| line.starts_with("## ")).flat_map(anchors).collect();
    assert!(pages.len() > 15, "the control: they were found: {pages:?}");
    let missing: Vec<_> = pages.iter().filter(|page| !top.contains(&format!("](#{page})"))).collect();
    assert!(missing.is_empty(), "the top of OPERATING does not lead to {missing:?}");
}

#[test]
fn documents_name_only_variables_files_and_targets_that_exist() {
    let programs = Binaries::find().expect("built");
    // The set-up is a script.
    let programs: String = [programs.quorated, programs.quorate, root().join(".ci/rocksdb")]
        .map(|program| String::from_utf8_lossy(&fs::read(program).expect("reads")).into_owned())
        .concat();
    let makefile = read("Makefile");
    let mut checked = 0;
    let decisions = fs::read_dir(root().join("docs/decisions")).expect("the folder").flatten();
    let decisions: Vec<_> =
        decisions.map(|entry| format!("docs/decisions/{}", entry.file_name().to_string_lossy())).collect();
    assert!(decisions.len() >= 10, "the control: {decisions:?}");
    for document in DOCUMENTS.into_iter().chain(OTHER_DOCUMENTS).chain(decisions.iter().map(String::as_str)) {
        let text = read(document);
        let mut wrong = Vec::new();
        for variable in text.split(|letter: char| !letter.is_ascii_uppercase() && letter != '_') {
            // The variables of tests, in CONTRIBUTING, have a test of their own (contributing.rs).
            if document != "CONTRIBUTING.md" && variable.starts_with("QUORATE_") && !variable.ends_with('_') {
                checked += 1;
                wrong.extend((!programs.contains(variable)).then(|| format!("no program reads {variable}")));
            }
        }
        let beside = root().join(document).parent().expect("a directory").to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            checked += 1;
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { root().join(document) } else { beside.join(file) };
            let there = match heading {
                "" => target.exists(),
                heading => fs::read_to_string(&target).is_ok_and(|text| anchors(&text).contains(heading)),
            };
            wrong.extend((!there).then(|| format!("nothing is at {link}")));
        }
        let (blocks, paragraphs) = parts(&text);
        let spans = paragraphs.iter().flat_map(|paragraph| spans(paragraph));
        for code in spans.chain(blocks.iter().flat_map(|block| block.text.lines())) {
            let file = code.split_whitespace().next().unwrap_or_default();
            if FOLDERS.iter().any(|top| file.starts_with(top)) {
                checked += 1;
                wrong.extend((!root().join(file).exists()).then(|| format!("there is no file {file}")));
            }
            if let Some(target) = command(code).strip_prefix("make ") {
                checked += 1;
                let exists = makefile.lines().any(|line| line.starts_with(&format!("{target}:")));
                wrong.extend((!exists).then(|| format!("the Makefile has no target {target}")));
            }
        }
        assert!(wrong.is_empty(), "{document}: {}", wrong.join(", "));
    }
    assert!(checked > 30, "the control: {checked} names were found");
    assert!(!programs.contains(&["QUORATE", "TURBO"].join("_")), "the control: not every variable is known");
}
