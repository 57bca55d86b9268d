//! `quorate doctor`: it finds each thing on a machine that weakens the promises, and says nothing on a good one.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use quorate::doctor::{Daemon, Finding, Machine, examine};
use quorate_client::wire::SecretMemory;
use quorate_testnet::Cluster;
use quorate_testnet::procs::{Finished, Tool};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{PATIENCE, TestCluster};

const SWAP: &str = "Filename\t\t\tType\t\tSize\tUsed\tPriority\n";
const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max core file size        0                    0                    bytes     \n\
                      Max locked memory         8388608              8388608              bytes     \n";

/// A machine on which all is well.
struct Good {
    directory: TempDir,
    machine: Machine,
}

impl Good {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let machine = Machine {
            proc: at("proc"),
            daemon: Some(Daemon { pid: 7, memory: SecretMemory::Locked }),
            data: at("data"),
            socket: at("socket"),
            token: at("home/token"),
            clock: Some(true),
        };
        let good = Self { machine, directory };
        good.put("proc/swaps", SWAP, 0o444);
        good.put("proc/mounts", "/dev/sda1 / ext4 rw 0 0\nproc /proc proc rw 0 0\n", 0o444);
        good.put("proc/7/limits", LIMITS, 0o444);
        good.put("proc/7/comm", "quorated\n", 0o444);
        good.put("proc/sys/kernel/core_pattern", "|/usr/lib/systemd/systemd-coredump\n", 0o444);
        good.put("data/vault", "QVLT", 0o600);
        good.put("socket", "", 0o600);
        good.put("home/token", "qrt-operator-x\n", 0o600);
        fs::set_permissions(good.at("data"), Permissions::from_mode(0o700)).expect("ours");
        good
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn put(&self, name: &str, text: &str, mode: u32) {
        let path = self.at(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        drop(fs::remove_file(&path));
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("ours");
    }

    /// The checks that warn.
    fn warnings(&self) -> Vec<&'static str> {
        let findings = examine(&self.machine);
        findings.into_iter().filter(|finding| !finding.is_fine()).map(|finding| finding.check).collect()
    }
}

/// T49: swap is on and secrets are not in locked memory: a warning. With locked memory, or without swap, there is none.
#[test]
fn t49_swap_is_a_warning_unless_memory_is_locked() {
    let mut good = Good::new();
    assert_eq!(good.warnings(), [""; 0], "the control: {:?}", examine(&good.machine));
    good.put("proc/swaps", &format!("{SWAP}/dev/sda2 partition 8388604 0 -2\n"), 0o444);
    assert_eq!(good.warnings(), [""; 0], "locked memory is not swapped");
    good.machine.daemon = Some(Daemon { pid: 7, memory: SecretMemory::Ordinary });
    assert_eq!(good.warnings(), ["secret memory", "swap"]);
    let swap = examine(&good.machine).into_iter().find(|finding| finding.check == "swap").expect("a finding");
    assert!(swap.found.contains("/dev/sda2") && swap.advice.is_some_and(|advice| advice.contains("swapoff")));
    good.put("proc/swaps", SWAP, 0o444);
    assert_eq!(good.warnings(), ["secret memory"]);
    good.machine.daemon = Some(Daemon { pid: 7, memory: SecretMemory::Hidden });
    assert_eq!(good.warnings(), [""; 0]);
}

/// Each thing that can be wrong, alone, is found by its own check and no other.
#[test]
fn every_check_finds_its_own_weakness() {
    type Spoil = fn(&mut Good);
    let cases: [(&str, Spoil); 11] = [
        ("secret memory", |good| good.put("proc/7/limits", &LIMITS.replace("8388608", "65536  "), 0o444)),
        ("core dumps", |good| {
            good.put("proc/7/limits", &LIMITS.replace("size        0 ", "size        unlimited "), 0o444)
        }),
        ("data directory", |good| fs::set_permissions(good.at("data"), Permissions::from_mode(0o750)).expect("ours")),
        ("data directory", |good| good.put("data/vault", "QVLT", 0o640)),
        ("socket", |good| good.put("socket", "", 0o666)),
        ("token", |good| good.put("home/token", "qrt-operator-x\n", 0o644)),
        ("token place", |good| good.put("data/notes", "qrt-operator-x\n", 0o600)),
        ("token place", |good| {
            good.put("data/deep/token", "anything", 0o600);
            std::os::unix::fs::symlink(good.at("data/deep"), good.at("elsewhere")).expect("ours");
            good.machine.token = good.at("elsewhere/token");
        }),
        ("clock", |good| good.machine.clock = Some(false)),
        ("clock", |good| good.machine.clock = None),
        ("file system", |good| good.put("proc/mounts", "zroot / zfs rw 0 0\n", 0o444)),
    ];
    for (number, (check, spoil)) in cases.into_iter().enumerate() {
        let mut good = Good::new();
        spoil(&mut good);
        assert_eq!(good.warnings(), [check], "case {number}: {:?}", examine(&good.machine));
    }
    let mut good = Good::new();
    good.machine.clock = None;
    good.put("proc/8/comm", "chronyd\n", 0o444);
    assert_eq!(good.warnings(), [""; 0], "where systemd says nothing, a program that keeps the clock is believed");
    good.machine.daemon = None;
    assert_eq!(good.warnings(), ["secret memory", "core dumps"], "of no daemon nothing is known");
}

/// What cannot be read is not taken for good.
#[test]
fn what_cannot_be_read_is_a_warning() {
    let good = Good::new();
    for name in ["proc/swaps", "proc/mounts", "proc/7/limits"] {
        fs::remove_file(good.at(name)).expect("there");
    }
    assert_eq!(good.warnings(), ["secret memory", "swap", "core dumps", "file system"]);
    let all_advise = |finding: &Finding| finding.is_fine() || finding.found.contains("No such file");
    assert!(examine(&good.machine).iter().all(all_advise));
}

fn doctor(cluster: &TestCluster, node: &str, further: &[&str]) -> Finished {
    let mut command = cluster.testnet.quorate(["doctor"].into_iter().chain(further.iter().copied()));
    command.env("QUORATE_SOCKET", cluster.testnet.directory().socket(node));
    Tool::start(command, b"").expect("runs").outcome(PATIENCE).expect("ends")
}

/// The checks of a real machine that warn; the exit code says whether there are any.
fn warnings(cluster: &TestCluster, node: &str) -> Vec<String> {
    let finished = doctor(cluster, node, &["--output", "json"]);
    let findings: Value = serde_json::from_slice(&finished.stdout).expect("JSON");
    let findings = findings.as_array().expect("a list");
    assert_eq!(findings.len(), 9);
    let bad = findings.iter().filter(|finding| finding["ok"] == false);
    let bad: Vec<_> = bad.map(|finding| finding["check"].as_str().expect("text").to_owned()).collect();
    assert_eq!(finished.code, Some(i32::from(!bad.is_empty())), "{}", finished.stderr);
    let text = String::from_utf8(doctor(cluster, node, &[]).stdout).expect("text");
    assert_eq!(text.lines().filter(|line| line.starts_with("warning  ")).count(), bad.len(), "{text}");
    bad
}

/// On a real machine, the test knows only the things that the daemon sets itself.
#[test]
fn a_real_daemon_is_examined() {
    let cluster = TestCluster::found();
    let ours = ["secret memory", "core dumps", "data directory", "socket", "token", "token place"];
    let of_ours = |cluster: &TestCluster| {
        warnings(cluster, "n1").into_iter().filter(|check| ours.contains(&check.as_str())).collect::<Vec<_>>()
    };
    assert_eq!(of_ours(&cluster), [""; 0], "a daemon as it is started here is in order");
    let data = cluster.testnet.directory().data("n1");
    fs::copy(cluster.testnet.directory().token(), data.join("token")).expect("ours");
    fs::set_permissions(data.join("vault"), Permissions::from_mode(0o644)).expect("ours");
    assert_eq!(of_ours(&cluster), ["data directory", "token place"]);
    let cluster = TestCluster::of(Cluster::builder().memlock_bytes(0));
    assert_eq!(of_ours(&cluster), ["secret memory"]);
}
