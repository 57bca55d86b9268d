//! Founding through the real command line, as an operator would type it on each machine.

use std::collections::BTreeSet;
use std::process::Command;

use quorate_node::vault::invitation::Invitation;

use crate::base::error::Error;
use crate::base::wait::wait_until;
use crate::cluster::{Cluster, PATIENCE};
use crate::procs::tool::Tool;

/// Runs `cluster init` on the first node and `node join` on each other with an invitation that it printed.
pub(crate) fn found(cluster: &mut Cluster, threshold: Option<u8>) -> Result<(), Error> {
    let names = cluster.names();
    let init = Tool::start(init(cluster, &names[0], names.len(), threshold), b"")?;
    let others = &names[1..];
    let invitations = wait_until(format!("{} invitations", others.len()), PATIENCE, || {
        let found = invitations(&init.so_far());
        (found.len() >= others.len()).then_some(found)
    });
    let Ok(invitations) = invitations else {
        // A command that has failed says why; one that still waits shows what it has said.
        return init.success(PATIENCE).map(|_| ()).and(Err(Error::Story("init ended without invitations".to_owned())));
    };
    let mut joins = Vec::new();
    for (name, invitation) in others.iter().zip(invitations) {
        joins.push(Tool::start(join_command(cluster, name), format!("{invitation}\n").as_bytes())?);
    }
    for join in joins {
        join.success(PATIENCE)?;
    }
    init.success(PATIENCE)?;
    cluster.wait_all_serving()
}

fn init(cluster: &Cluster, name: &str, founders: usize, threshold: Option<u8>) -> Command {
    let directory = cluster.directory();
    let mut command = cluster.quorate(["cluster", "init", "--founders"]);
    command.arg(founders.to_string());
    command.arg("--socket").arg(directory.socket(name)).arg("--token-file").arg(directory.token());
    if let Some(threshold) = threshold {
        command.args(["--threshold", &threshold.to_string()]);
    }
    match founders {
        1 => drop(command.arg("--allow-solo")),
        2 => drop(command.arg("--accept-no-redundancy")),
        _ => {}
    }
    command
}

/// Runs `node join` on a node, and waits until it serves.
pub(crate) fn join(cluster: &Cluster, name: &str, invitation: &str) -> Result<(), Error> {
    Tool::start(join_command(cluster, name), format!("{invitation}\n").as_bytes())?.success(PATIENCE).map(drop)
}

fn join_command(cluster: &Cluster, name: &str) -> Command {
    let mut command = cluster.quorate(["node", "join", "-", "--socket"]);
    command.arg(cluster.directory().socket(name));
    command
}

/// Every word that is an invitation.
fn invitations(text: &str) -> BTreeSet<String> {
    text.split_whitespace().filter(|word| word.parse::<Invitation>().is_ok()).map(str::to_owned).collect()
}
