//! What `make setup` does on a machine that has no RocksDB yet: `.ci/rocksdb` with a compiler that only copies.
//!
//! The real compiler takes minutes and is shown by every build on a new machine. Here it is about the order of things: each
//! source is compiled once, an interrupted build goes on, and after a unit that does not compile the crate's build script
//! does the work. The last test looks whether programs and tests share one build of each dependency.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use quorate_testnet::wait_until;
use tempfile::TempDir;

use crate::harness::PATIENCE;
use crate::harness::documents::{read, root};

/// Called as `clang++ @flags -c UNIT -o OBJECT`: the object is a copy of the unit. What it does with unit `$UNIT` is `$FATE`.
const COMPILER: &str = r#"#!/usr/bin/env bash
case "$1" in
  -dumpversion | --version) echo 99.0; exit ;;
  -march=*) exit ;;
esac
unit=${3%.cc}
echo "$unit" >> "$COMPILED"
[ "$unit" = "$UNIT" ] || FATE=
case "$FATE" in
  clash) echo "table.cc:7:3: error: redefinition of 'kMagic'" >&2; exit 1 ;;
  killed) kill -9 $$ ;;
  silent) exit ;;
  slow) sleep 60 ;;
esac
cp "$3" "$5"
"#;

/// `cargo build` makes the archive of the crate at once; everything else is what cargo says.
const CARGO: &str = r#"#!/usr/bin/env bash
[ "$1" = build ] || exec "$REAL_CARGO" "$@"
while [ "$1" != --target-dir ]; do shift; done
mkdir -p "$2/release/build/librocksdb-sys-0/out"
echo "made by the crate with $RUSTFLAGS" > "$2/release/build/librocksdb-sys-0/out/librocksdb.a"
"#;

/// A clone in which nothing was built, on a machine with the compiler above.
struct FreshClone {
    directory: TempDir,
}

impl FreshClone {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        for entry in fs::read_dir(root()).expect("the repository").map(|entry| entry.expect("an entry").file_name()) {
            let name = entry.to_str().expect("text");
            if !name.starts_with('.') && !["target", "fuzz", "Cargo.lock"].contains(&name) {
                symlink(root().join(name), at(name)).expect("our own directory");
            }
        }
        fs::copy(root().join("Cargo.lock"), at("Cargo.lock")).expect("our own directory");
        for name in [".ci", "tools", "cache"] {
            fs::create_dir(at(name)).expect("our own directory");
        }
        fs::copy(root().join(".ci/rocksdb"), at(".ci/rocksdb")).expect("our own directory");
        for (name, text) in
            [("clang", COMPILER), ("clang++", COMPILER), ("cargo", CARGO), ("nproc", "#!/bin/sh\necho 2\n")]
        {
            let tool = at("tools").join(name);
            fs::write(&tool, text).expect("our own directory");
            fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).expect("our own file");
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The set-up, whose compiler has `fate` at `unit`.
    fn set_up(&self, unit: &str, fate: &str) -> Command {
        let compiled = self.path("compiled");
        fs::write(&compiled, "").expect("our own directory");
        let path = format!("{}:{}", self.path("tools").display(), std::env::var("PATH").expect("a path"));
        let mut command = Command::new("bash");
        command
            .arg(self.path(".ci/rocksdb"))
            .envs([("PATH", path.as_str()), ("CARGO_NET_OFFLINE", "true")])
            .envs([("UNIT", unit), ("FATE", fate), ("REAL_CARGO", env!("CARGO"))])
            .env("COMPILED", &compiled)
            .env("QUORATE_CACHE", self.path("cache"))
            .env_remove("RUSTFLAGS")
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// The units that the last set-up gave to the compiler.
    fn compiled(&self) -> Vec<String> {
        let compiled = fs::read_to_string(self.path("compiled")).expect("our own file");
        compiled.lines().map(str::to_owned).collect()
    }

    /// Runs the set-up to its end.
    fn run(&self, unit: &str, fate: &str) -> Output {
        self.set_up(unit, fate).output().expect("bash runs")
    }

    /// The objects of units that are ready.
    fn objects(&self) -> Vec<PathBuf> {
        let units = fs::read_dir(self.cached()).expect("the cache").map(|entry| entry.expect("an entry").path());
        let units = units.filter(|path| path.is_dir()).flat_map(|folder| fs::read_dir(folder).expect("the units"));
        units
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "o"))
            .collect()
    }

    /// The one folder of the cache.
    fn cached(&self) -> PathBuf {
        let folders: Vec<_> = fs::read_dir(self.path("cache"))
            .expect("the cache")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.is_dir())
            .collect();
        let [folder] = &folders[..] else { panic!("one folder, not {folders:?}") };
        folder.clone()
    }

    /// The archive that cargo is pointed at.
    fn archive(&self) -> PathBuf {
        let config = fs::read_to_string(self.path(".cargo/config.toml")).expect("cargo's configuration");
        let folder = config.split("ROCKSDB_LIB_DIR = \"").nth(1).and_then(|rest| rest.split('"').next());
        assert!(config.contains("ROCKSDB_STATIC = \"1\""), "{config}");
        Path::new(folder.expect("a folder")).join("librocksdb.a")
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The sources in an archive whose objects are copies of their units.
fn sources(archive: &Path) -> Vec<String> {
    let printed = Command::new("ar").arg("p").arg(archive).output().expect("ar runs");
    let text = String::from_utf8(printed.stdout).expect("text");
    let includes = text.lines().map(|line| line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"')));
    includes.map(|source| source.expect("an include").to_owned()).collect()
}

/// The folder of librocksdb-sys that this build links.
fn crate_folder() -> PathBuf {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--locked", "--format-version", "1"])
        .args(["--filter-platform", &format!("{}-unknown-linux-gnu", std::env::consts::ARCH)])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let package = packages.iter().find(|package| package["name"] == "librocksdb-sys").expect("a dependency");
    Path::new(package["manifest_path"].as_str().expect("text")).parent().expect("a folder").to_owned()
}

/// Mutated once: with `write_units` leaving out the first source of each unit, this fails.
#[test]
fn every_source_of_the_crate_is_compiled_once() {
    let clone = FreshClone::new();
    let output = clone.run("", "");
    assert!(output.status.success(), "{}", said(&output));
    let compiled = clone.compiled();
    let units: BTreeSet<_> = compiled.iter().collect();
    assert_eq!((units.len(), compiled.len()), (21, 21), "each of 21 units once: {compiled:?}");

    let list = fs::read_to_string(crate_folder().join("rocksdb_lib_sources.txt")).expect("the crate's list");
    // As in the crate's build.rs.
    let mut wanted: Vec<_> =
        list.lines().filter(|source| *source != "util/build_version.cc").map(str::to_owned).collect();
    wanted.push("build_version.cc".to_owned());
    let mut found = sources(&clone.archive());
    wanted.sort();
    found.sort();
    assert_eq!(found, wanted);
    assert!(clone.objects().is_empty(), "what only the build needed is gone");

    let output = clone.run("", "");
    assert!(output.status.success() && clone.compiled().is_empty(), "the second time nothing is left to do");
}

/// The set-up alone is told to end, not its compilers: it ends them, and takes up later what was whole. What a loss of power cut
/// short is compiled again.
///
/// Mutated twice: with `compile_unit` compiling what has an object already, and with it taking an empty object, this fails.
#[test]
fn an_interrupted_build_goes_on() {
    let clone = FreshClone::new();
    let mut setup = clone.set_up("unit-09", "slow").spawn().expect("bash runs");
    wait_until("unit 9", PATIENCE, || clone.compiled().contains(&"unit-09".to_owned()).then_some(())).expect("begins");
    let begin = Instant::now();
    let told = Command::new("kill").arg(setup.id().to_string()).status().expect("kill runs");
    assert!(told.success() && !setup.wait().expect("ends").success(), "it was interrupted");
    assert!(begin.elapsed() < PATIENCE, "it does not wait for a slow compiler");
    assert!(!clone.path(".cargo/config.toml").exists(), "cargo is not pointed at half an archive");
    let mut ready = clone.objects();
    assert!(ready.len() >= 7, "the control: some were ready: {ready:?}");
    fs::write(ready.pop().expect("the control"), "").expect("our own file");

    let output = clone.run("", "");
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains(&format!("going on: {} of 21 units are ready", ready.len())), "{}", said(&output));
    let compiled = clone.compiled();
    let ready: BTreeSet<_> = ready.iter().map(|path| path.file_stem().expect("a name").to_string_lossy()).collect();
    let again: Vec<_> = compiled.iter().filter(|unit| ready.contains(unit.as_str())).collect();
    assert!(again.is_empty(), "ready before, and compiled again: {again:?}");
    assert_eq!(compiled.len() + ready.len(), 21);
    assert_eq!(sources(&clone.archive()).len(), 343);
}

/// Mutated once: without the fallback, this fails.
#[test]
fn after_a_unit_that_does_not_compile_the_build_script_of_the_crate_does_the_work() {
    let clone = FreshClone::new();
    let output = clone.run("unit-03", "clash");
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("unit-03 did not compile") && said.contains("redefinition of 'kMagic'"), "{said}");
    assert!(said.contains("built by its crate's build script"), "{said}");
    let compiled = clone.compiled();
    assert!(compiled.len() < 21, "the units after it are not tried: {compiled:?}");
    let archive = fs::read_to_string(clone.archive()).expect("the archive");
    assert!(archive.starts_with("made by the crate"), "{archive}");
}

/// The crate's build script would need as much memory and as much room.
///
/// Mutated once: with every failure ending in the fallback, this fails.
#[test]
fn a_compiler_that_dies_ends_the_build_with_the_reason() {
    for fate in ["killed", "silent"] {
        let clone = FreshClone::new();
        let output = clone.run("unit-03", fate);
        let said = said(&output);
        assert!(!output.status.success(), "{fate}: {said}");
        assert!(said.contains("unit-03 did not compile") && said.contains("enough memory"), "{fate}: {said}");
        assert!(!said.contains("build script") && !clone.path(".cargo/config.toml").exists(), "{fate}: {said}");
    }
}

/// Mutated once: without `check_owner`, this fails.
#[test]
fn a_cache_that_others_can_write_in_is_refused() {
    let clone = FreshClone::new();
    fs::set_permissions(clone.path("cache"), fs::Permissions::from_mode(0o777)).expect("our own directory");
    let output = clone.run("", "");
    assert!(!output.status.success() && clone.compiled().is_empty(), "nothing is taken from there");
    assert!(
        said(&output).contains("others can write in") && said(&output).contains("QUORATE_CACHE"),
        "{}",
        said(&output)
    );
}

/// The units are compiled as the crate would: a new version of it may need other definitions, flags or files. The lines of its
/// build script that hold for every machine stand at one indent.
///
/// Mutated twice: with a definition less in the script, and with another line in `everywhere`, this fails.
#[test]
fn the_units_are_compiled_as_the_crate_would() {
    let build = fs::read_to_string(crate_folder().join("build.rs")).expect("the crate's build script");
    let rocksdb = build.split("fn build_rocksdb").nth(1).and_then(|rest| rest.split("\nfn ").next()).expect("its part");
    let everywhere: Vec<_> = rocksdb
        .lines()
        .filter_map(|line| line.strip_prefix("    config."))
        .filter(|line| !line.starts_with("include("))
        .collect();
    let known = [
        r#"define("NDEBUG", Some("1"));"#,
        r#"define("HAVE_ALIGNED_NEW", None);"#,
        r#"file("build_version.cc");"#,
        "cpp(true);",
        r#"compile("librocksdb.a");"#,
    ];
    assert_eq!(everywhere, known, "the crate compiles in another way: does .ci/rocksdb?");
    let defined = |text: &str| -> BTreeSet<String> {
        let names = text.split("config.define(\"").skip(1);
        names.map(|rest| rest.split('"').next().expect("a name").to_owned()).collect()
    };
    let linux = rocksdb.split("target.contains(\"linux\") {").nth(1).and_then(|rest| rest.split('}').next());
    let mut wanted = defined(linux.expect("a part for Linux"));
    assert!(wanted.contains("OS_LINUX"), "{wanted:?}");
    wanted.extend(["NDEBUG", "LZ4", "HAVE_ALIGNED_NEW", "HAVE_UINT128_EXTENSION"].map(str::to_owned));
    let all = defined(rocksdb);
    assert!(wanted.is_subset(&all), "the crate defines no longer: {:?}", wanted.difference(&all));
    for line in [r#"config.define("LZ4", Some("1"));"#, r#"config.flag("-include").flag("cstdint");"#] {
        assert!(rocksdb.contains(line), "the crate no longer says {line}");
    }

    let script = read(".ci/rocksdb");
    let flags = script.split("flags=(").nth(1).and_then(|rest| rest.split("\n)").next()).expect("the flags");
    let given = flags.split_whitespace().filter_map(|flag| flag.strip_prefix("-D"));
    let given: BTreeSet<_> = given.map(|flag| flag.split('=').next().expect("a name").to_owned()).collect();
    assert_eq!(given, wanted);
    let standard = flags.split_whitespace().find(|flag| flag.starts_with("-std=")).expect("a standard");
    assert!(build.contains(&format!("\"{standard}\"")), "the crate's standard is not {standard}");
}

/// Every dependency with its features, as cargo chooses them along some kinds of edges.
fn chosen(edges: &str) -> BTreeSet<String> {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--offline", "--locked", "--prefix", "none", "-f", "{p} [{f}]", "-e", edges])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(tree.status.success(), "{}", said(&tree));
    let lines = String::from_utf8(tree.stdout).expect("text");
    // Our own crates are named with their folder. They are compiled for the tests in any case.
    let dependencies = lines.lines().filter(|line| !line.contains(" (/"));
    dependencies.map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
}

/// `make demo` and `make test` share one build of each dependency: tests may bring more of them, but choose no other features.
///
/// Mutated twice: without `proptest`, and without `fuser` under `[dependencies]` of this crate, this fails.
#[test]
fn the_programs_and_the_tests_share_one_build_of_each_dependency() {
    let name = |line: &String| line.split(" [").next().expect("a name").to_owned();
    let (programs, tests) = (chosen("normal,no-proc-macro"), chosen("normal,dev,no-proc-macro"));
    assert!(programs.len() > 100, "the control: {programs:?}");
    let names: BTreeSet<_> = programs.iter().map(name).collect();
    let again: Vec<_> = tests.difference(&programs).filter(|line| names.contains(&name(line))).collect();
    assert!(again.is_empty(), "compiled once more for the tests, with other features: {again:?}");

    // A macro or a build script may need a second set of features. Each set that the programs use is one that the tests use.
    let (programs, tests) = (chosen("normal,build"), chosen("normal,build,dev"));
    let again: Vec<_> = programs.difference(&tests).collect();
    assert!(again.is_empty(), "compiled once more for the tests, with other features than these: {again:?}");
}
