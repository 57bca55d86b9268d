//! Who finds a place: limits on handshakes that are under way, and on open connections.
//!
//! Anyone who reaches the port can begin a handshake, and stop in the middle of it. So a handshake has a deadline, there is a limit
//! on those of one source, and above a low mark the other side proves first that it can be reached at the address that it
//! claims. A first packet that finds no place gets no answer: an honest sender sends it again, a moment later.
//!
//! The addresses of members have places of their own, and so do the keys of members. So strangers do not keep out a member that
//! starts again. They do keep out others as long as they come from enough sources.
//!
//! A source is one IPv4 address, or the 64 leading bits of an IPv6 address: a host chooses the other 64 as it likes.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_client::identity::PublicKey;

/// How long a handshake may take. Its place is free again after it.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(2);
/// Handshakes under way at most, without those of members. Beyond it, first packets are dropped.
const HANDSHAKES_MAX: usize = 512;
/// Handshakes under way above which an address must be proved, by a retry token. It costs a round trip.
const UNPROVED_MAX: usize = 64;
/// Handshakes of one source under way, once it must prove its address. Beyond it, its first packets are dropped.
const SOURCE_HANDSHAKES_MAX: usize = 32;
/// As [`SOURCE_HANDSHAKES_MAX`], for one address of a member, in places that no other address may take.
const MEMBER_HANDSHAKES_MAX: usize = 32;
/// Open connections of others than members, mostly clients. The next one is closed with a reason, and a client asks another
/// node. An idle connection costs about 40 KiB.
const GUESTS_MAX: usize = 10_240;
/// Open connections of one source, as [`GUESTS_MAX`].
const SOURCE_GUESTS_MAX: usize = 1024;
/// Open connections that prove the key of one member. Beyond it, they are counted as those of guests.
const MEMBER_CONNECTIONS_MAX: usize = 16;

/// Whose handshakes and connections are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Source(IpAddr);

impl Source {
    fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        })
    }
}

/// Counts what each of many holds.
struct Counts<K>(Arc<Mutex<HashMap<K, usize>>>);

impl<K: Copy + Eq + Hash> Counts<K> {
    fn new() -> Self {
        Self(Arc::default())
    }

    /// Counts one more for `key`; `None` if it has `max` of them.
    fn take(&self, key: K, max: usize) -> Option<Counted<K>> {
        let mut counts = self.0.lock();
        let count = counts.get(&key).copied().unwrap_or_default();
        if count >= max {
            return None;
        }
        counts.insert(key, count + 1);
        Some(Counted { counts: Arc::clone(&self.0), key })
    }
}

/// One that is counted until it is dropped.
struct Counted<K: Eq + Hash> {
    counts: Arc<Mutex<HashMap<K, usize>>>,
    key: K,
}

impl<K: Eq + Hash> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

/// The places of one node.
pub(super) struct Places {
    handshakes: Counts<()>,
    source_handshakes: Counts<Source>,
    member_handshakes: Counts<IpAddr>,
    guests: Counts<()>,
    source_guests: Counts<Source>,
    members: Counts<PublicKey>,
}

/// What becomes of a first packet.
pub(super) enum Entry {
    /// The handshake begins.
    Begin(HandshakePlace),
    /// The other side proves first that it is at its address.
    Prove,
    /// The packet is dropped: no place is free.
    Drop,
}

/// A place for a handshake.
pub(super) struct HandshakePlace {
    _source: Option<Counted<Source>>,
    _general: Option<Counted<()>>,
    _member: Option<Counted<IpAddr>>,
}

/// A place for a connection.
pub(super) struct Place {
    _member: Option<Counted<PublicKey>>,
    _source: Option<Counted<Source>>,
    _guest: Option<Counted<()>>,
}

impl Places {
    pub(super) fn new() -> Self {
        Self {
            handshakes: Counts::new(),
            source_handshakes: Counts::new(),
            member_handshakes: Counts::new(),
            guests: Counts::new(),
            source_guests: Counts::new(),
            members: Counts::new(),
        }
    }

    /// A place for a handshake with `address`, which has `proved` that it can be reached there, and may be one `of_member`.
    ///
    /// An address that is not proved is not counted: otherwise packets with forged addresses would shut out their owners.
    pub(super) fn handshake(&self, address: IpAddr, proved: bool, of_member: bool) -> Entry {
        let begin = |source, general, member| {
            Entry::Begin(HandshakePlace { _source: source, _general: general, _member: member })
        };
        if !proved {
            return match self.handshakes.take((), UNPROVED_MAX) {
                Some(general) => begin(None, Some(general), None),
                None => Entry::Prove,
            };
        }
        if of_member && let Some(member) = self.member_handshakes.take(address.to_canonical(), MEMBER_HANDSHAKES_MAX) {
            return begin(None, None, Some(member));
        }
        let Some(source) = self.source_handshakes.take(Source::of(address), SOURCE_HANDSHAKES_MAX) else {
            return Entry::Drop;
        };
        match self.handshakes.take((), HANDSHAKES_MAX) {
            Some(general) => begin(Some(source), Some(general), None),
            None => Entry::Drop,
        }
    }

    /// A place for a connection of `address`, which proved the key `member` if it is that of a member.
    ///
    /// # Errors
    /// The reason to close the connection.
    pub(super) fn connection(&self, address: IpAddr, member: Option<PublicKey>) -> Result<Place, &'static str> {
        if let Some(member) = member.and_then(|key| self.members.take(key, MEMBER_CONNECTIONS_MAX)) {
            return Ok(Place { _member: Some(member), _source: None, _guest: None });
        }
        let source = self.source_guests.take(Source::of(address), SOURCE_GUESTS_MAX);
        let source = source.ok_or("too many connections from this address are open at this node")?;
        let guest = self.guests.take((), GUESTS_MAX).ok_or("too many connections are open at this node")?;
        Ok(Place { _member: None, _source: Some(source), _guest: Some(guest) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// The address of a stranger; each has a source of its own.
    fn stranger(number: usize) -> IpAddr {
        IpAddr::V4((0x0a00_0000 + u32::try_from(number).expect("small")).into())
    }

    fn begins(entry: Entry) -> Option<HandshakePlace> {
        match entry {
            Entry::Begin(place) => Some(place),
            Entry::Prove | Entry::Drop => None,
        }
    }

    /// Mutated: with whole IPv6 addresses as sources this fails.
    #[test]
    fn a_source_is_an_ipv4_address_or_the_network_of_an_ipv6_address() {
        assert_eq!(Source::of(ip("::ffff:10.0.0.1")), Source::of(ip("10.0.0.1")));
        assert_ne!(Source::of(ip("10.0.0.1")), Source::of(ip("10.0.0.2")));
        assert_eq!(Source::of(ip("2001:db8:0:7::1")), Source::of(ip("2001:db8:0:7:ffff::2")));
        assert_ne!(Source::of(ip("2001:db8:0:7::1")), Source::of(ip("2001:db8:0:8::1")));
    }

    /// Mutated: without the limit of a source the 33rd begins; if places are not given back, the last one finds none.
    #[test]
    fn one_source_takes_few_places_and_gives_them_back() {
        let places = Places::new();
        let mut taken: Vec<_> = (0..SOURCE_HANDSHAKES_MAX)
            .map(|_| begins(places.handshake(stranger(1), true, false)).expect("room"))
            .collect();
        assert!(matches!(places.handshake(stranger(1), true, false), Entry::Drop));
        let other = begins(places.handshake(stranger(2), true, false));
        assert!(other.is_some(), "the control: another source finds one");
        taken.pop();
        assert!(begins(places.handshake(stranger(1), true, false)).is_some());
        drop((taken, other));
        assert!(places.handshakes.0.lock().is_empty() && places.source_handshakes.0.lock().is_empty());
    }

    /// Forged packets do not use up the places of the address that they name, nor all places. Mutated: with unproved addresses
    /// counted like proved ones, the owner finds no place.
    #[test]
    fn forged_addresses_do_not_shut_out_their_owner() {
        let places = Places::new();
        let victim = stranger(1);
        let forged: Vec<_> =
            (0..2 * HANDSHAKES_MAX).map_while(|_| begins(places.handshake(victim, false, true))).collect();
        assert_eq!(forged.len(), UNPROVED_MAX);
        assert!(matches!(places.handshake(victim, false, true), Entry::Prove));
        assert!(begins(places.handshake(victim, true, false)).is_some());
    }

    /// Mutated: without places for the addresses of members, the member finds none.
    #[test]
    fn a_member_finds_a_place_among_any_number_of_strangers() {
        let places = Places::new();
        let crowd: Vec<_> = (0..2 * HANDSHAKES_MAX)
            .filter_map(|number| begins(places.handshake(stranger(number), true, false)))
            .collect();
        assert_eq!(crowd.len(), HANDSHAKES_MAX, "the control: all places are taken");
        assert!(matches!(places.handshake(stranger(5000), true, false), Entry::Drop));
        let member = ip("::ffff:192.0.2.1");
        let own: Vec<_> =
            (0..=MEMBER_HANDSHAKES_MAX).map_while(|_| begins(places.handshake(member, true, true))).collect();
        assert_eq!(own.len(), MEMBER_HANDSHAKES_MAX, "these places have a limit, too");
        assert!(begins(places.handshake(ip("192.0.2.2"), true, true)).is_some(), "each address has its own");
    }

    #[test]
    fn connections_have_a_limit_for_each_source_and_one_for_all() {
        let places = Places::new();
        let from_one: Vec<_> = (0..SOURCE_GUESTS_MAX)
            .map(|_| places.connection(stranger(0), None).map_err(str::to_owned).expect("room"))
            .collect();
        assert_eq!(
            places.connection(stranger(0), None).err(),
            Some("too many connections from this address are open at this node")
        );
        let mut others = Vec::new();
        let refused = (1..=GUESTS_MAX).find_map(|number| match places.connection(stranger(number), None) {
            Ok(place) => {
                others.push(place);
                None
            }
            Err(reason) => Some(reason),
        });
        assert_eq!(refused, Some("too many connections are open at this node"));
        assert_eq!(from_one.len() + others.len(), GUESTS_MAX);
        // A member finds a place, though not without end.
        let key = PublicKey([7; 32]);
        let members: Vec<_> =
            (0..=MEMBER_CONNECTIONS_MAX).map_while(|_| places.connection(stranger(0), Some(key)).ok()).collect();
        assert_eq!(members.len(), MEMBER_CONNECTIONS_MAX);
        drop(members);
        assert!(places.members.0.lock().is_empty());
        drop((from_one, others));
        assert!(places.connection(stranger(0), None).is_ok());
    }
}
