//! `status`: one screen that says whether keys can be used and, if not, why, and which nodes are missing.

use std::time::Duration;

use quorate_client::route::survey;
use quorate_client::wire::{LocalStatus, OperationStatus, Phase, PublicStatus, SOCKET, Status, WireError};
use quorate_client::{ClusterFile, Code, NodeName, Options};
use serde_json::{Value, json};

use crate::args::Format;
use crate::failure::{Failure, exit_code};
use crate::reach::cluster::{Cluster, has_cluster_file};
use crate::reach::daemon;
use crate::terminal::output;
use crate::{Session, exit};

/// How long the cluster may take to answer.
const ASK_MAX: Duration = Duration::from_secs(2);
/// After this time without an answer, each node is also asked for its public state.
const SURVEY_AFTER: Duration = Duration::from_millis(300);
/// How long each node may take to answer with its public state.
const SURVEY_MAX: Duration = Duration::from_secs(2);

/// Shows the state of the cluster, from a serving node. If no node serves, it shows the public state of each. Without a
/// client file, it shows the node of this machine.
pub(crate) async fn status(session: &mut Session<'_>) -> Result<u8, Failure> {
    if !has_cluster_file(session)? && (session.common.socket.exists() || session.common.socket.as_os_str() != SOCKET) {
        let status = daemon::status(session).await?;
        return show_local(session, &status);
    }
    // The state now is wanted, not a better one later.
    let impatient = Options { patience: Duration::ZERO, deadline: ASK_MAX, ..Options::default() };
    let cluster = Cluster::open_with(session, impatient).await?;
    let file = cluster.file.clone();
    let mut ask = Box::pin(cluster.client.status());
    // A node may be silent. While the client waits for it, each node is asked for its public state.
    let (answer, nodes) = match tokio::time::timeout(SURVEY_AFTER, &mut ask).await {
        Ok(answer) => (answer, None),
        Err(_) => {
            let mut surveyed = Box::pin(survey(&file, SURVEY_MAX));
            tokio::select! {
                // If a node answers, what the others would say is not waited for.
                answer = &mut ask => match answer {
                    Ok(status) => (Ok(status), None),
                    Err(error) => (Err(error), Some(surveyed.await)),
                },
                nodes = &mut surveyed => (ask.as_mut().await, Some(nodes)),
            }
        }
    };
    drop(ask);
    cluster.close(session).await;
    match answer {
        Ok(status) => show(session, &status),
        Err(error) if exit_code(error.code()) == exit::NO_QUORUM || error.code() == Code::Deadline => {
            let nodes = match nodes {
                Some(nodes) => nodes,
                None => survey(&file, SURVEY_MAX).await,
            };
            show_survey(session, &file, &nodes, &error.to_string())
        }
        Err(error) => Err(error.into()),
    }
}

/// Shows a node as it sees itself.
pub(crate) fn show_local(session: &mut Session<'_>, status: &LocalStatus) -> Result<u8, Failure> {
    if let Some(full) = &status.full {
        return show(session, full);
    }
    let public = &status.public;
    let result = match session.common.output {
        Format::Json => output::pretty(&json!({
            "node": status.name.as_ref().map(NodeName::as_str),
            "cluster": status.cluster.map(|cluster| cluster.to_string()),
            "phase": public.phase.as_str(),
            "have": public.have,
            "need": public.need,
            "waiting_for": names(&public.waiting_for),
            "operation": status.operation.as_ref().map(operation),
            "quorum": false,
        })),
        Format::Text => {
            let name = status.name.as_ref().map_or_else(|| "this node".to_owned(), ToString::to_string);
            let mut text = format!("{name}: {public}\n");
            if let Some(cluster) = status.cluster {
                text += &format!("cluster: {cluster}\n");
            }
            if let Some(operation) = &status.operation {
                text += &operation_line(operation);
            }
            text
        }
    };
    session.result(result.as_bytes())?;
    if public.phase == Phase::Uninitialised {
        session.note("hint: `quorate cluster init` founds a cluster, `quorate node join -` joins one");
    }
    Ok(exit::NO_QUORUM)
}

fn show(session: &mut Session<'_>, status: &Status) -> Result<u8, Failure> {
    let serving = status.quorum && status.phase == Phase::Serving;
    let result = match session.common.output {
        Format::Json => output::pretty(&json!({
            "cluster": status.cluster.to_string(),
            "quorum": status.quorum,
            "reason": status.reason,
            "threshold": status.threshold,
            "voters": status.voters,
            "theft_threshold": status.theft_threshold,
            "may_lose": status.may_lose(),
            "epoch": status.epoch.0,
            "leader": status.leader.as_ref().map(NodeName::as_str),
            "answered_by": status.node.as_str(),
            "version": status.version,
            "phase": status.phase.as_str(),
            "lease_ms": status.lease_ms,
            "keys": status.keys,
            "one_disk_keys": status.one_disk_keys,
            "operation": status.operation.as_ref().map(operation),
            "waiting_for": names(&status.waiting_for),
            "alarms": status.alarms.iter().map(output::alarm).collect::<Vec<_>>(),
            "nodes": status.nodes.iter().map(output::node).collect::<Vec<_>>(),
        })),
        Format::Text => text(status, serving),
    };
    session.result(result.as_bytes())?;
    Ok(match (serving && status.may_lose().is_some(), status.alarms.is_empty()) {
        (false, _) => exit::NO_QUORUM,
        (true, false) => exit::ALARM,
        (true, true) => exit::DONE,
    })
}

fn text(status: &Status, serving: bool) -> String {
    let mut text = String::new();
    let verdict = match (serving, &status.reason) {
        (true, _) if status.may_lose().is_some() => "quorate: keys can be used".to_owned(),
        (true, _) => "quorate, but too few nodes give shares: only keys that are in memory can be used".to_owned(),
        (false, Some(reason)) => format!("not quorate: {}", output::printable(reason)),
        (false, None) => format!("not quorate: {} is {}", status.node, status.phase),
    };
    text += &format!("{verdict}\n");
    let waiting = names(&status.waiting_for);
    if !waiting.is_empty() {
        text += &format!("waiting for: {}\n", waiting.join(", "));
    }
    text += &format!("cluster: {}\n", status.cluster);
    text += &format!("threshold: {} of {} nodes open a key\n", status.threshold, status.voters);
    let theft = status.theft_threshold;
    let weaker = if theft < status.threshold { " until the change under way is over" } else { "" };
    let disks = if theft == 1 { "1 stolen disk" } else { &format!("{theft} stolen disks") };
    text += &format!("theft: {disks} of one moment would open them{weaker}\n");
    if let Some(count) = status.may_lose() {
        let nodes = if count == 1 { "1 more node" } else { &format!("{count} more nodes") };
        text += &format!("outage: {nodes} may fail, and keys can still be used\n");
    }
    text += &format!("epoch: {}\n", status.epoch);
    let leader = status.leader.as_ref().map_or("none known", NodeName::as_str);
    text += &format!("leader: {leader}\n");
    let lease = status.lease_ms.map_or_else(|| "none".to_owned(), |left| format!("{left} ms left"));
    text += &format!("answered by: {} ({}, lease {lease})\n", status.node, output::printable(&status.version));
    text += &format!("keys: {}\n", status.keys);
    if status.one_disk_keys > 0 && status.theft_threshold > 1 {
        let count = status.one_disk_keys;
        text +=
            &format!("rotate: {count} of them were once on one disk that opened all; `quorate key list` shows which\n");
    }
    if let Some(operation) = &status.operation {
        text += &operation_line(operation);
    }
    for (node, away_ms) in status.nodes.iter().filter_map(|node| Some((node, node.away_ms?))) {
        let name = &node.name;
        text += &format!("away: {name} for {} while others served; ", output::span(away_ms));
        text += &format!("after the absence window only `quorate node admit {name}` lets it back in\n");
    }
    for alarm in &status.alarms {
        let about = alarm.node.as_ref().map(|node| format!(" {node}:")).unwrap_or_default();
        let [code, message] = [&alarm.code, &alarm.message].map(|text| output::printable(text));
        text += &format!("ALARM{about} {code}: {message} ({})\n", output::age_since(alarm.since_ms));
    }
    text + "\n" + &output::nodes(&status.nodes)
}

/// A node, and its public state or why it has none.
type Surveyed = (NodeName, Result<PublicStatus, WireError>);

/// Which nodes serve: at least one.
fn serving_text(names: &[&str]) -> String {
    format!("{} {}", names.join(", "), if names.len() == 1 { "serves" } else { "serve" })
}

fn is_serving(answer: &Result<PublicStatus, WireError>) -> bool {
    answer.as_ref().is_ok_and(|public| public.phase == Phase::Serving)
}

/// Shows the public state of each node, because no node that was asked serves.
fn show_survey(session: &mut Session<'_>, file: &ClusterFile, nodes: &[Surveyed], reason: &str) -> Result<u8, Failure> {
    let result = match session.common.output {
        Format::Json => {
            let node = |(name, answer): &Surveyed| match answer {
                Ok(public) => json!({
                    "name": name.as_str(),
                    "phase": public.phase.as_str(),
                    "have": public.have,
                    "need": public.need,
                    "waiting_for": names(&public.waiting_for),
                }),
                Err(error) => json!({ "name": name.as_str(), "phase": Value::Null, "error": error.message }),
            };
            output::pretty(&json!({
                "cluster": file.cluster.to_string(),
                "quorum": false,
                "reason": reason,
                "nodes": nodes.iter().map(node).collect::<Vec<_>>(),
            }))
        }
        Format::Text => {
            let row = |(name, answer): &Surveyed| {
                let said = match answer {
                    Ok(public) => public.to_string(),
                    Err(error) => output::printable(&error.message),
                };
                vec![name.to_string(), said]
            };
            let rows: Vec<_> = nodes.iter().map(row).collect();
            let table = output::table(&["NAME", "STATE"], &rows);
            let serving: Vec<_> =
                nodes.iter().filter(|(_, answer)| is_serving(answer)).map(|(name, _)| name.as_str()).collect();
            let verdict = match (&session.common.node, &serving[..]) {
                (_, []) => "not quorate: no node serves".to_owned(),
                // Only the named node was asked for the state of the cluster.
                (Some(asked), serving) => {
                    format!("{asked} did not answer: {reason}. {} (leave out --node)", serving_text(serving))
                }
                // They began to serve while they were asked, or do not let this client in.
                (None, serving) => format!("no node answered this client: {reason}. {}", serving_text(serving)),
            };
            format!("{}\ncluster: {}\n\n{table}", output::printable(&verdict), file.cluster)
        }
    };
    session.result(result.as_bytes())?;
    if session.common.verbose {
        session.note(reason);
    }
    Ok(exit::NO_QUORUM)
}

fn names(names: &[NodeName]) -> Vec<&str> {
    names.iter().map(NodeName::as_str).collect()
}

fn operation(operation: &OperationStatus) -> Value {
    let OperationStatus { name, nodes, step, left, waiting_for } = operation;
    json!({ "name": name, "nodes": nodes, "step": step, "left": left, "waiting_for": waiting_for })
}

fn operation_line(operation: &OperationStatus) -> String {
    let waiting = match &operation.waiting_for[..] {
        [] => String::new(),
        names => format!(", waiting for {}", names.join(", ")),
    };
    // The step is empty until the leader has reported it.
    let left = operation.left.map_or_else(String::new, |left| format!(": {left} key versions left"));
    let step = if operation.step.is_empty() { String::new() } else { format!(": {}{left}", operation.step) };
    output::printable(&format!("under way: {}{step}{waiting}", operation.name)) + "\n"
}
