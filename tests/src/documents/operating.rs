//! OPERATING, followed to the letter: the test looks up every command in its page, and types it into a shell. The shell is at a
//! node, or at the machine of an operator, which has a home directory and nothing else. The daemons are real.

use std::path::{Path, PathBuf};
use std::process::Command;

use quorate_testnet::Cluster;
use quorate_testnet::procs::{Binaries, Finished, Tool};
use tempfile::TempDir;

use crate::harness::PATIENCE;
use crate::harness::commands::invitations;
use crate::harness::documents::read;

/// How the message of `Use it` is decrypted, and what it says.
const READ: &str = "quorate decrypt -c customer=4711 message.qrt";
const MESSAGE: &str = "attack at dawn";
const EXPORT: &str = "quorate cluster export -o cluster.toml";

/// An operator with the page that they read.
struct Operator {
    testnet: Cluster,
    programs: PathBuf,
    home: TempDir,
    page: String,
}

impl Operator {
    /// The daemons of n1 to n3 wait.
    fn new() -> Self {
        let testnet = Cluster::builder().spares(3).start().expect("starts");
        let daemon = Binaries::find().expect("built").quorated;
        let programs = daemon.parent().expect("a directory").to_owned();
        Self { testnet, programs, home: tempfile::tempdir().expect("a directory"), page: String::new() }
    }

    fn opens(&mut self, title: &str) {
        let document = read("docs/OPERATING.md");
        let (_, page) = document.split_once(&format!("\n## {title}\n")).expect("the page is there");
        self.page = page.split_once("\n## ").map_or(page, |(page, _)| page).to_owned();
    }

    fn home(&self) -> &Path {
        self.home.path()
    }

    /// Starts a command of the page at a node, or without one at the operator's own machine, which has no daemon.
    fn begins(&self, command: &str, node: Option<&str>, input: &str) -> Tool {
        assert!(self.page.contains(command), "the page does not say: {command}");
        self.shell(command, node, input)
    }

    fn shell(&self, script: &str, node: Option<&str>, input: &str) -> Tool {
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", script]).current_dir(self.home()).env_clear().env("HOME", self.home());
        shell.env("PATH", format!("{}:/usr/bin:/bin", self.programs.display()));
        if let Some(node) = node {
            shell.env("QUORATE_SOCKET", self.testnet.directory().socket(node));
        }
        Tool::start(shell, input.as_bytes()).expect("runs")
    }

    fn does(&self, command: &str, node: Option<&str>, input: &str) -> Finished {
        let ended = self.begins(command, node, input).outcome(PATIENCE).expect("ends");
        assert_eq!(ended.code, Some(0), "{command}: {}", ended.stderr);
        ended
    }

    /// Runs a command of the page at the operator's own machine.
    fn types(&self, command: &str) -> String {
        String::from_utf8(self.does(command, None, "").stdout).expect("text")
    }

    /// Joins a new node with its invitation.
    fn joins(&mut self, node: &str, invitation: &str) {
        self.testnet.start(node).expect("its daemon waits");
        self.does("quorate node join -", Some(node), invitation);
    }

    /// The last step of every page about members.
    fn hands_out_the_client_file(&self) {
        self.types(EXPORT);
        self.shell("mv cluster.toml .config/quorate/cluster.toml", None, "").success(PATIENCE).expect("its place");
    }

    fn settles(&self) -> String {
        quorate_testnet::wait_until("nothing to be under way", PATIENCE, || {
            let said = self.shell("quorate status", None, "").success(PATIENCE).ok()?;
            let said = String::from_utf8(said).expect("text");
            (!said.contains("under way:")).then_some(said)
        })
        .expect("in time")
    }

    /// The message that `Use it` encrypted, if it can be decrypted now.
    fn reads(&self) -> Option<String> {
        let read = self.shell(READ, None, "").outcome(PATIENCE).expect("ends");
        (read.code == Some(0)).then(|| String::from_utf8(read.stdout).expect("text"))
    }
}

#[test]
fn each_page_works_as_it_is_typed() {
    let mut operator = Operator::new();
    founds(&mut operator);
    uses(&mut operator);
    adds(&mut operator);
    replaces(&mut operator);
    moves(&mut operator);
    seals(&mut operator);
    removes(&mut operator);
    revokes(&mut operator);
    loses_the_quorum(&mut operator);
}

fn founds(operator: &mut Operator) {
    operator.opens("Found a cluster");
    let init = operator.begins("quorate cluster init --founders 3", Some("n1"), "");
    let invited = invitations(&init, 2);
    let begins = |(node, invitation): (&str, &String)| operator.begins("quorate node join -", Some(node), invitation);
    let joins: Vec<_> = ["n2", "n3"].into_iter().zip(&invited).map(begins).collect();
    joins.into_iter().for_each(|join| drop(join.success(PATIENCE).expect("joins")));
    init.success(PATIENCE).expect("founded");
    assert!(
        operator.page.contains("~/.config/quorate/token") && operator.home().join(".config/quorate/token").exists()
    );
    assert!(operator.home().join(".config/quorate/cluster.toml").exists());
}

fn uses(operator: &mut Operator) {
    operator.opens("Use it");
    let typed = operator.page.split("```").nth(1).expect("a block").to_owned();
    assert!(typed.contains(MESSAGE) && typed.contains(READ), "the control: {typed}");
    let said = operator.types(&typed);
    assert!(said.contains(MESSAGE) && said.contains("billing/cards"), "{said}");
}

fn adds(operator: &mut Operator) {
    operator.opens("Add a node");
    let invitation = operator.types("quorate node invite");
    operator.joins("n4", &invitation);
    assert!(operator.settles().contains("threshold: 3 of 4 nodes open a key"));
    operator.hands_out_the_client_file();
}

fn replaces(operator: &mut Operator) {
    operator.opens("Replace a dead node");
    operator.testnet.erase("n3").expect("lost with its disk");
    operator.types("umask 077; quorate node invite > invitation");
    operator.types("quorate node replace n3 --with - --yes < invitation");
    operator.testnet.start("n5").expect("its daemon waits");
    let join = "quorate node join -";
    assert!(operator.page.contains(join));
    let joined = operator.shell(&format!("{join} < invitation"), Some("n5"), "");
    joined.success(PATIENCE).expect("joins in its place");
    operator.types("rm invitation");
    assert!(operator.settles().contains("threshold: 3 of 4 nodes open a key"));
    operator.hands_out_the_client_file();
    assert_eq!(operator.reads().as_deref(), Some(MESSAGE));
}

/// One pair of machines: n6 for n1.
fn moves(operator: &mut Operator) {
    operator.opens("Move a cluster to other machines");
    let invitation = operator.types("quorate node invite");
    operator.joins("n6", &invitation);
    operator.settles();
    operator.does("quorate node remove n1", None, "n1\n");
    operator.settles();
    operator.testnet.erase("n1").expect("stopped, and its disk erased");
    operator.hands_out_the_client_file();
}

/// Of n2, n4, n5 and n6.
fn seals(operator: &mut Operator) {
    operator.opens("Seal a node");
    operator.types("quorate node seal n2");
    assert_eq!(operator.reads().as_deref(), Some(MESSAGE), "the others serve");
    let listed = operator.shell("quorate node list", None, "").success(PATIENCE).expect("listed");
    assert!(String::from_utf8(listed).expect("text").contains("sealed"));
    operator.types("quorate node unseal n2");
    operator.testnet.wait_serving(&["n2"]).expect("serves again");
}

fn removes(operator: &mut Operator) {
    operator.opens("Remove a node");
    let refused = operator.begins("quorate node remove n4", None, "n5\n").outcome(PATIENCE).expect("ends");
    assert_eq!(refused.code, Some(1), "another name was typed: {}", refused.stderr);
    let said = operator.does("quorate node remove n4", None, "n4\n").stderr;
    let steps: Vec<_> = operator.page.lines().map(str::trim).filter(|line| line.starts_with("n4 is out")).collect();
    assert!(steps.len() == 1 && said.contains(steps[0]), "{said}");
    assert!(operator.settles().contains("threshold: 2 of 3 nodes open a key"));
    operator.testnet.erase("n4").expect("stopped, and its disk erased");
    operator.hands_out_the_client_file();
    assert_eq!(operator.reads().as_deref(), Some(MESSAGE));
}

fn revokes(operator: &mut Operator) {
    operator.opens("Revoke a node");
    let said = operator.does("quorate node revoke n2", None, "n2\n").stderr;
    assert!(said.contains("decisive"), "{said}");
    operator.settles();
    operator.testnet.wait_phase("n2", quorate_client::wire::Phase::Revoked).expect("it is told, and stays revoked");
    operator.hands_out_the_client_file();
    assert_eq!(operator.reads().as_deref(), Some(MESSAGE));
}

/// n5 and n6 are left, of which each is needed.
fn loses_the_quorum(operator: &mut Operator) {
    operator.opens("When too few nodes are left");
    operator.testnet.kill("n5").expect("dies");
    operator.testnet.kill("n6").expect("dies");
    operator.testnet.start("n6").expect("starts");
    assert_eq!(operator.reads(), None, "one of two opens nothing");
    // The machines come back.
    operator.testnet.start("n5").expect("starts");
    operator.testnet.wait_serving(&["n5", "n6"]).expect("they unlock each other");
    assert_eq!(operator.reads().as_deref(), Some(MESSAGE));
}
