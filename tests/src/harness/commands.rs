//! Commands of the real command line that many tests type.

use std::time::Duration;

use quorate_node::vault::invitation::Invitation;
use quorate_testnet::procs::Tool;
use quorate_testnet::{Cluster, wait_until};

use super::{PATIENCE, TestCluster};

/// `cluster init` at a node, with these further options.
pub(crate) fn init(testnet: &Cluster, node: &str, options: &[&str]) -> Tool {
    let directory = testnet.directory();
    let mut command = testnet.quorate(["cluster", "init", "--token-file"]);
    command.arg(directory.token()).arg("--socket").arg(directory.socket(node)).args(options);
    Tool::start(command, b"").expect("runs")
}

/// `node join` at a node, with the invitation to read.
pub(crate) fn join(testnet: &Cluster, node: &str, invitation: &str) -> Tool {
    join_with(testnet, node, invitation, &[])
}

/// [`join`], with further options.
pub(crate) fn join_with(testnet: &Cluster, node: &str, invitation: &str, options: &[&str]) -> Tool {
    let mut command = testnet.quorate(["node", "join", "-"]);
    command.args(options).arg("--socket").arg(testnet.directory().socket(node));
    Tool::start(command, format!("{invitation}\n").as_bytes()).expect("runs")
}

/// The invitations that `init` has printed so far.
pub(crate) fn printed_invitations(init: &Tool) -> Vec<String> {
    let printed = init.so_far();
    let is_invitation = |word: &&str| word.parse::<Invitation>().is_ok();
    let mut found: Vec<_> = printed.split_whitespace().filter(is_invitation).map(str::to_owned).collect();
    found.dedup();
    found
}

/// As many invitations, once `init` has printed them.
pub(crate) fn invitations(init: &Tool, count: usize) -> Vec<String> {
    wait_until("invitations", PATIENCE, || Some(printed_invitations(init)).filter(|found| found.len() >= count))
        .expect("in time")
}

/// An invitation, as an operator gets one.
pub(crate) fn invite(cluster: &TestCluster) -> String {
    let text = cluster.block(cluster.client(None).invite_node(None, Duration::from_secs(600))).expect("an invitation");
    String::from_utf8(text.expose().to_vec()).expect("text")
}
