//! From which addresses members come: those of the roster and of the configuration, resolved. A node dials from the address at which it listens. A member
//! that comes from another address, behind a router for example, is treated like a stranger until it has proved its key.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use quorate_client::resolve;
use tokio::time::{Instant, sleep, timeout};

use crate::node::Node;
use crate::vault::Roster;

/// How often the roster is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How often names are resolved again.
const RESOLVE: Duration = Duration::from_secs(30);
/// How long the resolution of one name may take.
const ONE_NAME: Duration = Duration::from_secs(2);

/// The addresses of the roster, each with what it was last resolved to.
#[derive(Default)]
pub(super) struct MemberAddresses(RwLock<BTreeMap<String, Vec<SocketAddr>>>);

impl MemberAddresses {
    /// Whether a member is reached at exactly this address.
    pub(super) fn contain(&self, address: SocketAddr) -> bool {
        let address = canonical(address);
        self.0.read().values().flatten().any(|known| *known == address)
    }

    /// Whether a member is reached at this host. Its clients and other programs are there, too.
    pub(super) fn contain_host(&self, host: IpAddr) -> bool {
        self.0.read().values().flatten().any(|known| known.ip() == host.to_canonical())
    }

    /// Follows the roster. Never returns.
    pub(super) async fn follow(&self, node: &Node) {
        let mut resolved: Option<(Arc<Roster>, Instant)> = None;
        loop {
            let roster = node.roster();
            let is_known = resolved.as_ref().is_some_and(|(known, at)| *known == roster && at.elapsed() < RESOLVE);
            if !is_known {
                self.resolve(&roster, node.config.peers.values().flatten().cloned().collect()).await;
                resolved = Some((roster, Instant::now()));
            }
            sleep(LOOK).await;
        }
    }

    /// Resolves the addresses of a roster, and others that the configuration names.
    async fn resolve(&self, roster: &Roster, mut addresses: Vec<String>) {
        let members = roster.members.iter().filter(|member| !member.standing.denied);
        addresses.extend(members.flat_map(|member| &member.addresses).map(ToString::to_string));
        self.0.write().retain(|address, _| addresses.contains(address));
        let resolving = addresses.into_iter().map(|address| async {
            let found = match address.parse::<SocketAddr>() {
                Ok(literal) => vec![literal],
                // A name that is not resolved now keeps what it was last resolved to.
                Err(_) => timeout(ONE_NAME, resolve::lookup(&address).fresh?.addresses()).await.ok()?.ok()?,
            };
            Some((address, found.into_iter().map(canonical).collect()))
        });
        let resolved: Vec<Option<(String, Vec<SocketAddr>)>> = futures::future::join_all(resolving).await;
        self.0.write().extend(resolved.into_iter().flatten());
    }
}

/// An IPv4 address as such, also if the socket wrote it as an IPv6 address.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use quorate_shares::ids::NodeId;

    use super::*;
    use crate::vault::{RosterLogId, RosterMember, Standing};

    fn roster(addresses: &[&str]) -> Roster {
        let member = RosterMember {
            node: NodeId(1),
            boot_pk: [1; 32],
            op_pk: [2; 32],
            standing: Standing::default(),
            name: "n1".parse().expect("a name"),
            addresses: addresses.iter().map(|address| address.parse().expect("an address")).collect(),
        };
        let log_id = RosterLogId { term: 1, leader: 1, index: 1 };
        Roster { log_id, members: vec![member], revoked: Vec::new() }
    }

    /// Mutated: if `contain` compares hosts alone, every client on the machine of a member is taken for a member.
    #[tokio::test]
    async fn the_addresses_of_the_roster_are_known_and_no_others() {
        let known = MemberAddresses::default();
        let contain = |address: &str| known.contain(address.parse().expect("an address"));
        let contain_host = |host: &str| known.contain_host(host.parse().expect("an address"));
        known
            .resolve(
                &roster(&["192.0.2.1:7250", "[2001:db8::1]:7250", "localhost:7250"]),
                vec!["192.0.2.9:1".to_owned()],
            )
            .await;
        assert!(contain("192.0.2.9:1"), "a configured one");
        assert!(contain("192.0.2.1:7250") && contain("[::ffff:192.0.2.1]:7250") && contain("[2001:db8::1]:7250"));
        assert!(!contain("192.0.2.1:7251") && !contain("192.0.2.2:7250") && !contain("[2001:db8::2]:7250"));
        assert!(contain_host("192.0.2.1") && contain_host("::ffff:192.0.2.1") && !contain_host("192.0.2.2"));
        assert!(contain("127.0.0.1:7250") || contain("[::1]:7250"), "a name is resolved");
        known.resolve(&roster(&["192.0.2.2:7250"]), Vec::new()).await;
        assert!(contain("192.0.2.2:7250") && !contain_host("192.0.2.1"), "it follows the roster");
    }
}
