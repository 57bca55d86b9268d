//! `node list`, `node status`, `node seal`, `node unseal`, `node admit`, `node set-address` and `cluster export`.

use quorate_client::wire::{AdminRequest, AdminResponse};
use quorate_client::{ClusterFile, NodeName};
use serde_json::{Value, json};

use crate::args::{Export, Format};
use crate::commands::status;
use crate::failure::Failure;
use crate::reach::cluster::{Cluster, has_cluster_file};
use crate::reach::daemon;
use crate::terminal::output;
use crate::{Session, exit, is_stream};

pub(crate) async fn list(session: &mut Session<'_>) -> Result<u8, Failure> {
    let cluster = Cluster::open(session).await?;
    let answer = cluster.client.nodes().await;
    cluster.close(session).await;
    let nodes = answer?;
    let result = match session.common.output {
        Format::Json => output::pretty(&Value::Array(nodes.iter().map(output::node).collect())),
        Format::Text => output::nodes(&nodes),
    };
    session.result(result.as_bytes())?;
    Ok(exit::DONE)
}

/// Shows one node as the cluster sees it. Without a name, it shows the node of this machine as the node sees itself.
pub(crate) async fn status(session: &mut Session<'_>, name: Option<NodeName>) -> Result<u8, Failure> {
    let Some(name) = name else {
        let status = daemon::status(session).await?;
        return status::show_local(session, &status);
    };
    let cluster = Cluster::open(session).await?;
    let answer = cluster.client.node(&name).await;
    let node = cluster.finish(session, std::slice::from_ref(&name), answer).await?;
    let result = match session.common.output {
        Format::Json => output::pretty(&output::node(&node)),
        Format::Text => output::nodes(&[node]),
    };
    session.result(result.as_bytes())?;
    Ok(exit::DONE)
}

/// Seals or unseals a node. Without a name, the node of this machine.
pub(crate) async fn seal(session: &mut Session<'_>, name: Option<NodeName>, sealed: bool) -> Result<u8, Failure> {
    let name = match name {
        Some(name) => {
            let cluster = Cluster::open(session).await?;
            let client = &cluster.client;
            let answer = if sealed { client.seal_node(&name).await } else { client.unseal_node(&name).await };
            cluster.finish(session, std::slice::from_ref(&name), answer).await?;
            name
        }
        None => match daemon::answer(session, &AdminRequest::Seal { sealed }).await? {
            AdminResponse::Sealed { node, .. } => node,
            _ => return Err(daemon::unexpected()),
        },
    };
    let result = match session.common.output {
        Format::Json => output::pretty(&json!({ "node": name.as_str(), "sealed": sealed })),
        Format::Text => format!("{} {name}\n", if sealed { "sealed" } else { "unsealed" }),
    };
    session.result(result.as_bytes())?;
    Ok(exit::DONE)
}

/// Admits a node again after a long absence: at every member, or only at the node of this machine.
pub(crate) async fn admit(session: &mut Session<'_>, name: NodeName, local: bool) -> Result<u8, Failure> {
    let (at, silent) = match local || !has_cluster_file(session)? {
        true => match daemon::answer(session, &AdminRequest::Admit { name: name.clone() }).await? {
            AdminResponse::Admitted { at } => (vec![at], Vec::new()),
            _ => return Err(daemon::unexpected()),
        },
        false => {
            let cluster = Cluster::open(session).await?;
            let answer = cluster.client.admit_node(&name).await;
            cluster.finish(session, std::slice::from_ref(&name), answer).await?
        }
    };
    let names = |names: &[NodeName]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let result = match session.common.output {
        Format::Json => output::pretty(&json!({ "node": name.as_str(), "at": names(&at), "silent": names(&silent) })),
        Format::Text => format!("admitted {name} at {}\n", names(&at).join(", ")),
    };
    session.result(result.as_bytes())?;
    if !silent.is_empty() {
        session.note(&format!("not told: {}", names(&silent).join(", ")));
        session.note("hint: that matters only if too few others unlock it; repeat the command when they are up");
    }
    Ok(exit::DONE)
}

/// Records where a node listens.
pub(crate) async fn set_address(
    session: &mut Session<'_>,
    name: NodeName,
    addresses: Vec<String>,
) -> Result<u8, Failure> {
    let cluster = Cluster::open(session).await?;
    let answer = cluster.client.set_addresses(&name, &addresses).await;
    cluster.finish(session, std::slice::from_ref(&name), answer).await?;
    let result = match session.common.output {
        Format::Json => output::pretty(&json!({ "node": name.as_str(), "addresses": addresses })),
        Format::Text => format!("{name} is recorded at {}\n", addresses.join(", ")),
    };
    session.result(result.as_bytes())?;
    session.note("hint: `quorate cluster export -o cluster.toml` writes the client file with its new address");
    Ok(exit::DONE)
}

/// Shows the client file. It comes from the cluster or, on a machine without a client file, from the daemon.
pub(crate) async fn export(session: &mut Session<'_>, options: Export) -> Result<u8, Failure> {
    let file = if options.local || !has_cluster_file(session)? {
        match daemon::answer(session, &AdminRequest::Export).await? {
            AdminResponse::Export(file) => file,
            _ => return Err(daemon::unexpected()),
        }
    } else {
        let cluster = Cluster::open(session).await?;
        let answer = cluster.client.export().await;
        cluster.close(session).await;
        answer?
    };
    if let Some(path) = options.out.filter(|path| !is_stream(path)) {
        file.write(&path)?;
        return Ok(exit::DONE);
    }
    let result = match session.common.output {
        Format::Json => output::pretty(&as_json(&file)),
        Format::Text => file.to_text(),
    };
    session.result(result.as_bytes())?;
    Ok(exit::DONE)
}

fn as_json(file: &ClusterFile) -> Value {
    let node = |node: &quorate_client::cluster_file::ClusterNode| {
        json!({
            "name": node.name.as_str(),
            "id": node.id.0,
            "addresses": node.addresses,
            "key": node.key.to_string(),
            "boot_key": node.boot_key.to_string(),
        })
    };
    json!({ "cluster": file.cluster.to_string(), "nodes": file.nodes.iter().map(node).collect::<Vec<_>>() })
}
