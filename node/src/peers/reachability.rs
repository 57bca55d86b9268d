//! Whether members answer at the addresses that the cluster records.
//!
//! A session does not show that. Scenario: two of three nodes were started at other addresses. Both dial the third one, and
//! everything works over these sessions. But when the third node dies, the two do not find each other, and no command finds
//! them. So each member dials each recorded address of each other member from time to time: a handshake on `quorate-boot/1`,
//! which proves the boot key, and nothing more. What it finds is in its report, and an alarm is raised if a member that is there
//! cannot be dialled. A node whose configuration names another address than the cluster records says so, too.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use quorate_client::NodeName;
use quorate_client::conn::close;
use quorate_client::identity::{Identity, Protocol, PublicKey};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::node::Node;
use crate::peers::dial::dial;
use crate::vault::{Roster, RosterMember};

/// How long one handshake may take.
const DIAL: Duration = Duration::from_secs(2);
/// The longest pause between the start of a node and the first round.
const FIRST: Duration = Duration::from_secs(5);

/// Dials the members again and again. Never returns.
pub async fn watch(node: Arc<Node>) {
    let every = Duration::from_millis(node.config.timing.dial_every_ms);
    sleep(every.min(FIRST)).await;
    loop {
        round(&node).await;
        sleep(every).await;
    }
}

/// Logs what in the configuration differs from the roster. It is said before the node is unlocked: a node that finds no quorum
/// raises no alarm about it.
pub fn say_what_is_configured(node: &Node) {
    let roster = node.roster();
    if let Some(message) = differs(node, &roster) {
        warn!("{message}");
    }
    for (name, addresses) in &node.config.peers {
        match roster.members.iter().find(|member| member.name == *name) {
            Some(_) => info!(%name, ?addresses, "dialled at these addresses as well, as the configuration says"),
            None => warn!(%name, "the configuration names addresses of a peer that is no member"),
        }
    }
}

/// Dials each member once, and compares the own address.
async fn round(node: &Node) {
    let enrolment = node.enrolment();
    let Some(me) = enrolment.identity.boot() else { return };
    let roster = enrolment.roster.current();
    let is_other = |member: &&RosterMember| member.node != enrolment.identity.id() && !member.standing.denied;
    let others = roster.members.iter().filter(|member| member.standing.voter || member.standing.learner);
    let others: Vec<_> = others.filter(is_other).collect();
    enrolment.peers.dial_misses.keep(&others.iter().map(|member| member.node).collect());
    let dialled = join_all(others.iter().map(|member| dial_recorded(node, &me, member))).await;
    for (member, dialled) in others.iter().zip(dialled) {
        let is_unreached = enrolment.peers.dial_misses.note(member.node, dialled.is_ok());
        match dialled {
            Ok(()) => node.set_alarm("unreachable_address", member.node, None),
            // A member that is away answers nowhere, and the status shows that.
            Err(reason) if is_unreached && is_there(node, member).await => {
                let name = &member.name;
                let message = format!("{} has a session with {name}, and cannot dial it: {reason}", node.name());
                let hint = format!("if {name} has moved: `quorate node set-address {name} HOST:PORT`");
                node.set_alarm("unreachable_address", member.node, Some(format!("{message}; {hint}")));
            }
            Err(reason) => debug!(name = %member.name, %reason, "not dialled"),
        }
    }
    let is_watched = |node: &Option<NodeName>| others.iter().any(|member| Some(&member.name) == node.as_ref());
    node.alarms.close(|alarm| alarm.code == "unreachable_address" && !is_watched(&alarm.node));
    // With a lease this node has applied what the cluster agreed on.
    if node.serving.lease.is_valid() {
        node.set_alarm("address_differs", node.id(), differs(node, &node.roster()));
    }
}

/// Dials every recorded address of a member.
///
/// # Errors
/// If none leads to it: the reason of each address.
async fn dial_recorded(node: &Node, me: &Identity, member: &RosterMember) -> Result<(), String> {
    let dialled = member.addresses.iter().map(|address| async move {
        let (addresses, key) = ([address.to_string()], PublicKey(member.boot_pk));
        let connection = dial(&node.endpoint, &addresses, me, key, Protocol::Boot, DIAL).await?;
        connection.close(close::DONE.into(), b"reached");
        Ok::<_, String>(())
    });
    let (mut reached, mut reasons) = (false, Vec::new());
    for dialled in join_all(dialled).await {
        match dialled {
            Ok(()) => reached = true,
            Err(reason) => reasons.push(reason),
        }
    }
    let reasons = reasons.join("; ");
    if reached && !reasons.is_empty() {
        debug!(name = %member.name, %reasons, "one of its addresses fails");
    }
    if reached { Ok(()) } else { Err(reasons) }
}

/// Whether a member is there, although it cannot be dialled.
async fn is_there(node: &Node, member: &RosterMember) -> bool {
    match node.peers().sessions.with(member.node) {
        Some(session) => session.is_alive().await,
        None => false,
    }
}

/// What is wrong if this node is configured to be reached at an address that the cluster does not record.
fn differs(node: &Node, roster: &Roster) -> Option<String> {
    let (recorded, here) = (&roster.member(node.id())?.addresses, &node.config.advertise);
    if recorded.iter().any(|address| address.as_str() == here) {
        return None;
    }
    let recorded = recorded.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let name = node.name();
    Some(format!(
        "{name} is configured to be reached at {here}, and the cluster records {recorded}: \
         `quorate node set-address {name} {here}`, or correct `advertise` in its configuration"
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::base::random;
    use crate::node::testing::{member, node_of};
    use crate::vault::Vault;
    use crate::vault::layout::Address;
    use quorate_client::identity::server_config;
    use quorate_shares::ids::{ClusterId, NodeId};
    use quorate_shares::secret::Secret;

    /// A member of which one address answers, one whose address another node has, and one without an answer. Mutated: without the
    /// key, the second one counts as reached.
    #[tokio::test]
    async fn a_member_is_reached_where_its_own_key_answers() {
        let any = "127.0.0.1:0".parse().expect("an address");
        let answers = Identity::random();
        let server = quinn::Endpoint::server(server_config(&answers, None, &[Protocol::Boot]), any).expect("a socket");
        let at: Address = server.local_addr().expect("bound").to_string().parse().expect("an address");
        tokio::spawn(async move {
            while let Some(incoming) = server.accept().await {
                drop(incoming.await);
            }
        });
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let dead: Address = silent.local_addr().expect("bound").to_string().parse().expect("an address");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut vault = Vault::new(ClusterId([1; 16]), Secret::random(&mut random::system()));
        vault.identity.node = Some(NodeId(1));
        let elsewhere = |id, addresses: &[&Address]| RosterMember {
            addresses: addresses.iter().copied().cloned().collect(),
            ..member(id)
        };
        let mut members =
            vec![member(1), elsewhere(2, &[&dead, &at]), elsewhere(3, &[&at]), elsewhere(4, &[&dead, &dead])];
        members[1].boot_pk = answers.public().0;
        vault.roster.members = members;
        let node = node_of(dir.path(), vault);
        let unreached = || node.peers().dial_misses.unreached();
        round(&node).await;
        assert_eq!(unreached(), BTreeSet::new(), "once is not enough");
        round(&node).await;
        assert_eq!(unreached(), BTreeSet::from([NodeId(3), NodeId(4)]));
        assert!(node.alarms.open().is_empty(), "they have no session, so they are away");
        assert!(differs(&node, &node.roster()).is_none(), "the control: it is recorded where it is configured");
        let mut moved = (*node.roster()).clone();
        moved.members[0].addresses = vec!["10.0.0.9:7250".parse().expect("an address")];
        assert!(differs(&node, &moved).expect("it moved").contains("records 10.0.0.9:7250"));
    }
}
