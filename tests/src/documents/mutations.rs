//! Every row of the tables of promises was broken by hand, and its test was seen to fail.
//!
//! A patch in `tests/mutations/` is the program with one promise broken. Its first lines say which rows it breaks (`Shows:`), what
//! the changed program does (`Breaks:`), and which tests must fail then (`Test:`). `make mutations` looks whether they do. Here the
//! patches are compared with the documents, and the page that lists them with the patches: `UPDATE_GOLDENFILES=1` writes it again.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::process::Command;

use crate::harness::documents::{read, root};

const PAGE: &str = "tests/mutations/README.md";
/// The documents with promises, and the headings over their tables and lists.
const PROMISES: [(&str, &str, &[&str]); 3] = [
    ("README", "README.md", &["Who learns what", "How it fails"]),
    ("THREATS", "docs/THREATS.md", &["What an attacker learns", "The rules of LockOpen"]),
    ("OPERATING", "docs/OPERATING.md", &["Limits for strangers"]),
];

/// A file of `tests/mutations/`.
struct Mutation {
    name: String,
    shows: Vec<String>,
    breaks: String,
    tests: Vec<String>,
}

impl Mutation {
    fn all() -> Vec<Self> {
        let entries = fs::read_dir(root().join("tests/mutations")).expect("it is there");
        let paths = entries.map(|entry| entry.expect("it is read").path());
        let mut all: Vec<Self> = paths
            .filter(|path| path.extension().is_some_and(|extension| extension == "patch"))
            .map(|path| {
                let name = path.file_stem().expect("a name").to_str().expect("UTF-8").to_owned();
                let text = fs::read_to_string(&path).expect("it is read");
                let head = text.split("\ndiff ").next().unwrap_or_default();
                let lines = |field: &str| -> Vec<String> {
                    head.lines()
                        .filter_map(|line| line.strip_prefix(field))
                        .map(|line| line.trim().to_owned())
                        .collect()
                };
                let (shows, breaks, tests) = (lines("Shows:"), lines("Breaks:").concat(), lines("Test:"));
                assert!(!shows.is_empty() && !breaks.is_empty() && !tests.is_empty(), "{name} lacks a line");
                Self { name, shows, breaks, tests }
            })
            .collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    /// Whether it breaks this promise of this document. It may name the beginning only, if no other promise is named so.
    fn breaks(&self, document: &str, promise: &str, all: &[(&'static str, String)]) -> bool {
        let mut named = self.shows.iter().filter_map(|shows| shows.strip_prefix(document)?.strip_prefix(": "));
        let is_another = |named: &str| all.iter().any(|(of, other)| *of == document && other == named);
        named.any(|named| promise == named || (promise.starts_with(named) && !is_another(named)))
    }
}

/// The first cells of the tables, and the points of the lists, under this heading.
fn promises<'a>(page: &'a str, heading: &str) -> Vec<&'a str> {
    let is_heading = |line: &&str| line.starts_with('#') && line.trim_start_matches('#').trim() == heading;
    let under = page.lines().skip_while(|line| !is_heading(line)).skip(1).take_while(|line| !line.starts_with('#'));
    let (mut promises, mut table) = (Vec::new(), false);
    for line in under {
        match line.strip_prefix("| ") {
            Some(row) if table => promises.extend(row.split(" | ").next()),
            _ => promises.extend(line.strip_prefix("- ")),
        }
        // The head of a table is no promise.
        table = line.starts_with("|---") || (table && line.starts_with('|'));
    }
    promises
}

/// Each promise, with the name of its document.
fn all_promises() -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    for (document, path, headings) in PROMISES {
        let page = read(path);
        for heading in headings {
            let found = promises(&page, heading);
            assert!(found.len() > 5, "the control: {} promises under {heading} of {path}", found.len());
            all.extend(found.into_iter().map(|promise| (document, promise.to_owned())));
        }
    }
    all
}

/// Mutated: a row whose patch is gone, and a patch that names a row which is not there.
#[test]
fn every_promise_was_broken_by_hand() {
    let (promises, mutations) = (all_promises(), Mutation::all());
    let broken =
        |(document, promise): &&(&str, String)| mutations.iter().any(|it| it.breaks(document, promise, &promises));
    let whole: Vec<_> = promises.iter().filter(|promise| !broken(promise)).collect();
    assert!(whole.is_empty(), "write a file of tests/mutations/ for each of these: {whole:#?}");

    let points = |path: &str| -> Vec<String> {
        read(path).lines().filter_map(|line| line.strip_prefix("- ")).map(str::to_owned).collect()
    };
    // What is not promised has limits, and these are shown, too.
    let limits = points("docs/THREATS.md");
    for Mutation { name, shows, .. } in mutations.iter().filter(|mutation| !mutation.name.starts_with("named-")) {
        for shown in shows {
            let (document, row) = shown.split_once(": ").expect("a document and a row");
            let is_promise = promises.iter().any(|(of, promise)| *of == document && promise.starts_with(row));
            assert!(!row.is_empty(), "{name}");
            let is_limit = document == "THREATS" && limits.iter().any(|limit| limit.starts_with(row));
            assert!(is_promise || is_limit, "{name}: there is no row {shown:?}");
        }
    }
}

/// Mutated: a patch whose place in the program has changed.
#[test]
fn every_patch_applies() {
    let fails = |patch: &&Mutation| {
        let file = root().join("tests/mutations").join(format!("{}.patch", patch.name));
        let applied = Command::new("git").current_dir(root()).args(["apply", "--check"]).arg(file).output();
        !applied.expect("git").status.success()
    };
    let mutations = Mutation::all();
    let stale: Vec<_> = mutations.iter().filter(fails).map(|patch| &patch.name).collect();
    assert!(stale.is_empty(), "write these again: {stale:#?}");
}

/// The page in which each promise stands beside its mutations and their tests.
fn page() -> String {
    let mut page = String::from(
        "# Promises that were broken by hand\n\nA test that passes although its promise is broken shows nothing. So for each promise there is at \
         least one patch here\nthat breaks it, and a test that was seen to fail with it. `make mutations` applies the patches one by one, and \
         says which\ntest sees each ([CONTRIBUTING](../../CONTRIBUTING.md#show-that-a-test-can-fail)). Most patches, `named-…`, are those that the \
         comment of a test names.\n",
    );
    let mutations = Mutation::all();
    let all = all_promises();
    let mut of_document: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (document, promise) in &all {
        of_document.entry(document).or_default().push(promise);
    }
    for (document, path, _) in PROMISES {
        let _ = write!(
            page,
            "\n## [{document}](../../{path})\n\n| promise | mutation | the changed program | must fail |\n|---|---|---|---|\n"
        );
        for promise in &of_document[document] {
            for mutation in mutations.iter().filter(|mutation| mutation.breaks(document, promise, &all)) {
                let tests: Vec<_> =
                    mutation.tests.iter().map(|test| format!("`{}`", test.replace(' ', "` `"))).collect();
                let (name, breaks) = (&mutation.name, mutation.breaks.replace('|', "or"));
                let _ = writeln!(page, "| {promise} | [{name}]({name}.patch) | {breaks} | {} |", tests.join(", "));
            }
        }
    }
    page
}

#[test]
fn the_page_of_mutations_is_up_to_date() {
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        fs::write(root().join(PAGE), page()).expect("written");
    }
    assert!(read(PAGE) == page(), "{PAGE}: UPDATE_GOLDENFILES=1 writes it again");
}
