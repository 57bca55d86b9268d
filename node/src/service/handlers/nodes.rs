//! The cluster and its nodes: how they are, and what an operator may tell one of them or all.

use std::collections::BTreeSet;

use futures::future::join_all;
use quorate_client::conn::Lane;
use quorate_client::error::Code;
use quorate_client::wire::{Alarm, Answer, Response, WireError};
use quorate_shares::ids::NodeName;
use tracing::info;

use crate::cluster::alarms;
use crate::cluster::status;
use crate::lease::seal;
use crate::lock::absence;
use crate::memory::alarms::{Which, is_meant, is_same};
use crate::messages::peer::ForwardedRequest;
use crate::node::peers::roster::{member, unknown_node};
use crate::service::Call;
use crate::service::forward::{self, NotDone};

/// Everything about the cluster on one screen.
pub async fn status(call: Call<'_>) -> Answer {
    Ok(Response::Status(Box::new(status::full(call.node, call.replica).await)))
}

/// The client file.
pub fn export(call: Call<'_>) -> Response {
    Response::Export(status::cluster_file(call.node))
}

/// All nodes, with what they report.
pub async fn list(call: Call<'_>) -> Answer {
    Ok(Response::Nodes(status::nodes(call.node, call.replica).await))
}

/// One node, with what it reports.
pub async fn show(call: Call<'_>, name: &NodeName) -> Answer {
    let mut nodes = status::nodes(call.node, call.replica).await;
    match nodes.iter().position(|node| node.name == *name) {
        Some(position) => Ok(Response::Node(Box::new(nodes.swap_remove(position)))),
        None => Err(unknown_node(&call.node.roster(), name)),
    }
}

/// Seals or unseals the node of that name, which may be this one.
pub async fn seal(call: Call<'_>, name: &NodeName, sealed: bool) -> Answer {
    let Call { node, caller, .. } = call;
    let meant = member(&node.roster(), name)?;
    if meant == node.id() {
        return seal::set(node, sealed, caller).await.map(|()| Response::Done);
    }
    let locally = || format!("on the machine of {name}: `quorate node {}`", if sealed { "seal" } else { "unseal" });
    let told = forward::to_member(call, meant, Lane::Urgent, ForwardedRequest::Seal { sealed }).await;
    told.map(|()| Response::Done).map_err(|not_done| match not_done {
        NotDone::Failed(error) => WireError::new(Code::NotServing, format!("{name} refuses: {error}"))
            .hint(error.hint.unwrap_or_else(locally)),
        NotDone::Refused(refusal) => {
            WireError::new(Code::NotServing, format!("{name} refuses: {refusal}")).hint(locally())
        }
        NotDone::Silent(error) => {
            WireError::new(Code::Unreachable, format!("{} cannot tell {name}: {error}", node.name())).hint(locally())
        }
    })
}

/// Lets a node come back, however long it was away: here, and at each member that this node has a session with.
pub async fn admit(call: Call<'_>, name: &NodeName) -> Answer {
    let Call { node, caller, .. } = call;
    let meant = member(&node.roster(), name)?;
    if meant != node.id() {
        absence::admit(node, meant, caller).await?;
    }
    let roster = node.roster();
    let others = roster.members.iter().filter(|member| ![node.id(), meant].contains(&member.node));
    let answers = join_all(others.map(|member| async move {
        let told = forward::to_member(call, member.node, Lane::Urgent, ForwardedRequest::Admit { node: meant }).await;
        (member.name.clone(), told.is_ok())
    }));
    let (mut at, mut silent) = (Vec::new(), Vec::new());
    at.extend((meant != node.id()).then(|| node.name()));
    for (member, admitted) in answers.await {
        if admitted { at.push(member) } else { silent.push(member) }
    }
    at.sort();
    Ok(Response::Admitted { at, silent })
}

/// The open alarms of all nodes.
pub async fn alarms(call: Call<'_>) -> Answer {
    Ok(Response::Alarms(alarms_everywhere(call).await))
}

/// Closes alarms at all nodes.
///
/// # Errors
/// [`Code::NotFound`] for a code of which no alarm is open: it was mistyped, or disarmed before.
pub async fn disarm(call: Call<'_>, which: Which) -> Answer {
    let Call { node, caller, .. } = call;
    let before = alarms_everywhere(call).await;
    if let Some(code) = which.iter().flatten().find(|code| !before.iter().any(|alarm| alarm.code == **code)) {
        let codes: BTreeSet<_> = before.iter().map(|alarm| alarm.code.as_str()).collect();
        let open = codes.into_iter().collect::<Vec<_>>().join(", ");
        let hint = if open.is_empty() { "no alarm is open".to_owned() } else { format!("the open alarms are {open}") };
        return Err(WireError::new(Code::NotFound, format!("no alarm {code} is open")).hint(hint));
    }
    alarms::disarm(node, &which).await?;
    let (roster, request) = (node.roster(), &ForwardedRequest::Disarm { codes: which.clone() });
    let peers = roster.members.iter().filter(|member| member.node != node.id());
    let answers = join_all(peers.map(|member| async move {
        (member, forward::to_member(call, member.node, Lane::Ordinary, request.clone()).await.is_ok())
    }));
    let mut silent = Vec::new();
    for (member, disarmed) in answers.await {
        if !disarmed {
            silent.push(member.name.clone());
        } else if let Some((report, _)) = node.peers().reports.lock().get_mut(&member.node) {
            report.alarms.retain(|alarm| !is_meant(&which, alarm));
        }
    }
    let after = status::alarms(node);
    let gone = |alarm: &Alarm| is_meant(&which, alarm) && !after.iter().any(|open| is_same(open, alarm));
    let alarms: Vec<_> = before.into_iter().filter(gone).collect();
    for Alarm { code, node, message, .. } in &alarms {
        info!(%code, about = node.as_ref().map_or("-", NodeName::as_str), %message, %caller, "alarm disarmed");
    }
    Ok(Response::Disarmed { alarms, silent })
}

/// The open alarms of every node that answers, and those that the others had when they were last heard of.
async fn alarms_everywhere(call: Call<'_>) -> Vec<Alarm> {
    // Asks each node how it is; the answers are kept.
    status::nodes(call.node, call.replica).await;
    status::alarms(call.node)
}
