//! `node list`, `node status` and `cluster export`.

use quorate_client::wire::{AdminRequest, AdminResponse};
use quorate_client::{ClusterFile, Code, NodeName};
use serde_json::{Value, json};

use crate::args::{Export, Format};
use crate::failure::Failure;
use crate::nearest::nearest;
use crate::place::{Cluster, cluster_path};
use crate::{Session, exit, local, output, status};

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

/// One node as the cluster sees it; without a name this machine's, as it sees itself.
pub(crate) async fn status(session: &mut Session<'_>, name: Option<NodeName>) -> Result<u8, Failure> {
    let Some(name) = name else {
        let status = local::status(session).await?;
        return status::show_local(session, &status);
    };
    let cluster = Cluster::open(session).await?;
    let answer = cluster.client.node(&name).await;
    let names: Vec<_> = cluster.file.nodes.iter().map(|node| node.name.to_string()).collect();
    cluster.close(session).await;
    let node = answer.map_err(|error| match nearest(name.as_str(), names.iter().map(String::as_str)) {
        Some(meant) if error.code() == Code::NotFound => Failure::from(error).hint(format!("did you mean {meant}?")),
        _ => error.into(),
    })?;
    let result = match session.common.output {
        Format::Json => output::pretty(&output::node(&node)),
        Format::Text => output::nodes(&[node]),
    };
    session.result(result.as_bytes())?;
    Ok(exit::DONE)
}

/// The client file, from the cluster or, on a machine that has none yet, from its own daemon.
pub(crate) async fn export(session: &mut Session<'_>, options: Export) -> Result<u8, Failure> {
    let file = if options.local || !cluster_path(session)?.exists() {
        match local::answer(session, &AdminRequest::Export).await? {
            AdminResponse::Export(file) => file,
            _ => return Err(local::unexpected()),
        }
    } else {
        let cluster = Cluster::open(session).await?;
        let answer = cluster.client.export().await;
        cluster.close(session).await;
        answer?
    };
    if let Some(path) = options.out {
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
