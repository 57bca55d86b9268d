//! Shares: dealt, sealed, opened, combined. For each refusal, the test was seen to fail without the check.

use proptest::prelude::*;
use quorate_shares::error::{CommitteeError, DealError, FormatError, QuorumError, ShareError};
use quorate_shares::ids::{BatchId, ClusterId, Epoch, KeyUid, KeyVersion, NodeId, ShareKeyGeneration};
use quorate_shares::master::{KeyIdentity, MasterKey};
use quorate_shares::quorum::{Quorum, ShareCount};
use quorate_shares::seal::{BATCH_RECORDS_MAX, BatchHeader, BatchOpener, Committee, Dealer, ShareRecord};
use quorate_shares::secret::Secret;

use crate::kit::{CLUSTER, Holder, IDENTITY, committee, holders, opener, rng};

/// One key, dealt to three of five.
struct Dealt {
    holders: Vec<Holder>,
    committee: Committee,
    header: BatchHeader,
    record: ShareRecord,
    kcv: [u8; 32],
}

fn dealt(needed: u8, count: u64, epoch: u64) -> Dealt {
    let holders = holders(count, epoch);
    let committee = committee(epoch, needed, &holders);
    let key = MasterKey::from_secret(Secret::take(&mut [0x4b; 32]));
    let kcv = key.kcv(&IDENTITY);
    let mut dealer = Dealer::open(CLUSTER, NodeId(10), &committee, &mut rng(epoch));
    let record = dealer.deal(&key, &IDENTITY, &kcv).unwrap();
    Dealt { holders, committee, header: dealer.header().clone(), record, kcv }
}

impl Dealt {
    fn share(&self, position: usize) -> Secret<32> {
        let opener = opener(&self.header, &self.committee, &self.holders[position]);
        opener.open_share(&self.record, &IDENTITY, &self.kcv).unwrap()
    }

    fn quorum(&self) -> Quorum {
        Quorum::new(self.record.clone(), IDENTITY, &self.committee, self.kcv).unwrap()
    }

    fn node(&self, position: usize) -> NodeId {
        self.holders[position].member.node
    }
}

fn refused<T>(result: Result<T, ShareError>) -> ShareError {
    result.err().unwrap()
}

/// S7: every subset of t members rebuilds the key, through seals and commitments. t - 1 members never do.
#[test]
fn every_quorum_rebuilds_the_key_and_no_fewer() {
    for (needed, count) in [(1, 1), (2, 2), (2, 3), (3, 4), (3, 5)] {
        let dealt = dealt(needed, count, 1);
        for mask in 0..1u32 << count {
            let mut quorum = dealt.quorum();
            let members = (0..count as usize).filter(|position| mask >> position & 1 == 1);
            for position in members {
                quorum.add(dealt.node(position), position as u8 + 1, dealt.share(position)).unwrap();
            }
            let have = mask.count_ones() as usize;
            assert_eq!(quorum.missing().count(), count as usize - have);
            match (have >= needed.into(), quorum.close()) {
                (true, closed) => assert!(closed.unwrap().matches(&IDENTITY, &dealt.kcv)),
                (false, closed) => {
                    assert_eq!(closed.err(), Some(QuorumError::TooFew { have, need: needed.into() }));
                }
            }
        }
    }
}

/// T29: a wrong share is refused, its sender is named, and other members complete the quorum. Without the check of the
/// commitment in `Quorum::add`, the wrong share would be counted and the key could not be rebuilt.
#[test]
fn a_wrong_share_names_its_sender_and_the_quorum_goes_on() {
    let this = dealt(3, 5, 1);
    let next = dealt(3, 5, 2);
    let mut quorum = this.quorum();
    let mut flipped = this.share(0);
    flipped.expose_mut()[0] ^= 0x80;
    let wrong = |position| Some(QuorumError::WrongShare(this.node(position)));
    assert_eq!(quorum.add(this.node(0), 1, flipped).err(), wrong(0));
    assert_eq!(quorum.add(this.node(1), 2, this.share(0)).err(), wrong(1), "a share of another number");
    assert_eq!(quorum.add(this.node(2), 3, next.share(2)).err(), wrong(2), "a share of another epoch");
    assert_eq!(quorum.add(this.node(3), 4, Secret::zero()).err(), wrong(3));
    let not_theirs = |x| Some(QuorumError::NotAHolder { member: this.node(0), x, epoch: Epoch(1) });
    for x in [0, 2, 6, 255] {
        assert_eq!(quorum.add(this.node(0), x, this.share(1)).err(), not_theirs(x), "a number of another member");
    }
    let stranger = NodeId(99);
    let no_holder = QuorumError::NotAHolder { member: stranger, x: 1, epoch: Epoch(1) };
    assert_eq!(quorum.add(stranger, 1, this.share(0)).err(), Some(no_holder));
    assert_eq!(quorum.progress(), ShareCount { have: 0, need: 3 });

    quorum.add(this.node(0), 1, this.share(0)).unwrap();
    assert_eq!(quorum.add(this.node(0), 1, this.share(0)).err(), Some(QuorumError::Counted(this.node(0))));
    quorum.add(this.node(4), 5, this.share(4)).unwrap();
    assert!(quorum.add(this.node(2), 3, this.share(2)).unwrap().reached());
    assert!(quorum.close().unwrap().matches(&IDENTITY, &this.kcv));
}

/// The last line of defence: shares that match all commitments but belong to another key than the metadata says.
#[test]
fn a_wrong_rebuilt_key_is_never_returned() {
    let dealt = dealt(2, 3, 1);
    let mut quorum = Quorum::new(dealt.record.clone(), IDENTITY, &dealt.committee, [0; 32]).unwrap();
    quorum.add(dealt.node(0), 1, dealt.share(0)).unwrap();
    quorum.add(dealt.node(1), 2, dealt.share(1)).unwrap();
    assert_eq!(quorum.close().err(), Some(QuorumError::WrongKey));
}

#[test]
fn a_quorum_belongs_to_one_key_and_one_epoch() {
    let dealt = dealt(2, 3, 1);
    let other_epoch = committee(2, 2, &dealt.holders);
    let other_threshold = committee(1, 3, &dealt.holders);
    for committee in [other_epoch, other_threshold] {
        let refused = Quorum::new(dealt.record.clone(), IDENTITY, &committee, dealt.kcv).err();
        assert_eq!(refused, Some(QuorumError::Committee));
    }
    let other = KeyIdentity { version: KeyVersion(4), ..IDENTITY };
    assert!(Quorum::new(dealt.record.clone(), other, &dealt.committee, dealt.kcv).is_err());
}

/// S3, and the separation of epochs: a batch opens only for its committee, in the place and with the key that it names.
#[test]
fn a_batch_opens_only_for_its_holders() {
    let dealt = dealt(2, 3, 1);
    let holder = &dealt.holders[1].member;
    let seed = &dealt.holders[1].seed;
    let open = |header: &BatchHeader, committee: &Committee, node, generation| {
        refused(BatchOpener::open(header, committee, node, ShareKeyGeneration(generation), seed))
    };
    let stranger = NodeId(99);
    assert_eq!(open(&dealt.header, &dealt.committee, stranger, 1), ShareError::NotAHolder(stranger));
    assert_eq!(open(&dealt.header, &dealt.committee, holder.node, 2), ShareError::Generation);
    let larger = committee(1, 3, &holders(4, 1));
    assert_eq!(open(&dealt.header, &larger, holder.node, 1), ShareError::Committee);
    let mut header = dealt.header.clone();
    header.recipients[1].generation = ShareKeyGeneration(2);
    assert_eq!(open(&header, &dealt.committee, holder.node, 1), ShareError::Committee);

    // If a field that the HPKE info binds is changed, the batch seems to open, but then it opens no record.
    let opens = |header: &BatchHeader| {
        let opener = opener(header, &dealt.committee, &dealt.holders[1]);
        let record = ShareRecord { batch: header.batch, ..dealt.record.clone() };
        opener.open_share(&record, &IDENTITY, &dealt.kcv).err()
    };
    assert_eq!(opens(&dealt.header), None);
    let mut header = dealt.header.clone();
    header.dealer = NodeId(13);
    assert_eq!(opens(&header), Some(ShareError::Sealed));
    let mut header = dealt.header.clone();
    header.batch = BatchId([9; 16]);
    assert_eq!(opens(&header), Some(ShareError::Sealed));
    let mut header = dealt.header.clone();
    header.recipients[1].encapsulation = header.recipients[2].encapsulation.clone();
    assert_eq!(opens(&header), Some(ShareError::Sealed));
}

/// S6: after any change to a record, its holder gets no share from it.
#[test]
fn a_record_opens_only_as_what_it_is() {
    let dealt = dealt(2, 3, 1);
    let opener = opener(&dealt.header, &dealt.committee, &dealt.holders[0]);
    let open = |record: &ShareRecord, identity: &KeyIdentity, kcv| refused(opener.open_share(record, identity, kcv));
    let record = &dealt.record;
    let version = KeyVersion(4);
    assert_eq!(
        open(record, &KeyIdentity { version, ..IDENTITY }, &dealt.kcv),
        ShareError::Record("key"),
        "another version than expected"
    );
    let renamed = ShareRecord { version, ..record.clone() };
    assert_eq!(open(&renamed, &KeyIdentity { version, ..IDENTITY }, &dealt.kcv), ShareError::Sealed);
    let other_cluster = KeyIdentity { cluster: ClusterId([0; 16]), ..IDENTITY };
    assert_eq!(open(record, &other_cluster, &dealt.kcv), ShareError::Record("cluster"));
    assert_eq!(open(record, &IDENTITY, &[0; 32]), ShareError::Sealed, "another key-check value");
    let moved = ShareRecord { epoch: Epoch(2), ..record.clone() };
    assert_eq!(open(&moved, &IDENTITY, &dealt.kcv), ShareError::Record("epoch"));
    let moved = ShareRecord { index: 1, ..record.clone() };
    assert_eq!(open(&moved, &IDENTITY, &dealt.kcv), ShareError::Sealed);
    let mut exchanged = record.clone();
    exchanged.shares.swap(0, 1);
    assert_eq!(open(&exchanged, &IDENTITY, &dealt.kcv), ShareError::Sealed);
    let mut wrong = record.clone();
    wrong.shares[0].commitment[15] ^= 1;
    assert_eq!(open(&wrong, &IDENTITY, &dealt.kcv), ShareError::Sealed);
}

#[test]
fn a_dealer_never_repeats_an_index_and_never_deals_a_wrong_key() {
    let holders = holders(1, 1);
    let mut dealer = Dealer::open(CLUSTER, NodeId(10), &committee(1, 1, &holders), &mut rng(1));
    let key = MasterKey::random(&mut rng(2));
    let kcv = key.kcv(&IDENTITY);
    assert_eq!(dealer.deal(&key, &IDENTITY, &[0; 32]), Err(DealError::WrongKey));
    let elsewhere = KeyIdentity { cluster: ClusterId([0; 16]), ..IDENTITY };
    assert_eq!(dealer.deal(&key, &elsewhere, &key.kcv(&elsewhere)), Err(DealError::WrongCluster));
    for index in 0..BATCH_RECORDS_MAX {
        assert_eq!(dealer.deal(&key, &IDENTITY, &kcv).unwrap().index, index);
    }
    assert_eq!(dealer.deal(&key, &IDENTITY, &kcv), Err(DealError::BatchFull));
    assert_eq!(dealer.dealt(), BATCH_RECORDS_MAX);
}

/// T08: two dealings of one key have nothing in common, so old and new shares do not mix. A test beside `split`, where
/// commitments can be ignored, shows what they give if they are combined nevertheless. Mutated: a polynomial that follows from the key
/// gives the same shares again.
#[test]
fn shares_of_two_dealings_do_not_mix() {
    let (old, new) = (dealt(2, 3, 1), dealt(2, 3, 2));
    let mut quorum = new.quorum();
    quorum.add(new.node(0), 1, new.share(0)).unwrap();
    assert_eq!(quorum.add(new.node(1), 2, old.share(1)).err(), Some(QuorumError::WrongShare(new.node(1))));
    assert!(!old.share(0).same_as(&new.share(0)));
    assert!((0..3).all(|i| old.record.shares[i].commitment != new.record.shares[i].commitment));
}

/// T31 at the level of committees.
#[test]
fn committees_with_wrong_members_are_refused() {
    let make = |needed, ids: &[u64]| {
        let mut members: Vec<_> = holders(ids.len() as u64, 1).into_iter().map(|holder| holder.member).collect();
        members.iter_mut().zip(ids).for_each(|(member, id)| member.node = NodeId(*id));
        Committee::new(Epoch(1), needed, members)
    };
    assert!(make(2, &[5, 3, 4]).unwrap().holders().is_sorted_by_key(|holder| (holder.x, holder.member.node)));
    assert_eq!(make(2, &[5, 5, 4]), Err(CommitteeError::Member(NodeId(5))));
    assert_eq!(make(2, &[0, 5, 4]), Err(CommitteeError::Member(NodeId(0))));
    for (needed, ids) in [(1, &[1, 2, 3][..]), (4, &[1, 2, 3]), (0, &[1]), (1, &[1, 2]), (1, &[]), (6, &[1; 10])] {
        assert!(matches!(make(needed, ids), Err(CommitteeError::Threshold(_))), "{needed} of {ids:?}");
    }
}

/// A structure has one byte form: any prefix, any suffix and most changed bytes are refused, and what is read is
/// written back with the same bytes.
#[test]
fn headers_and_records_are_read_strictly() {
    let dealt = dealt(2, 3, 1);
    let (header, record) = (dealt.header.encode(), dealt.record.encode());
    assert_eq!((header.len(), record.len()), (87 + 1137 * 3, 55 + 64 * 3));
    for length in 0..record.len() {
        assert!(ShareRecord::parse(&record[..length]).is_err());
    }
    for length in (0..header.len()).step_by(7) {
        assert!(BatchHeader::parse(&header[..length]).is_err());
    }
    assert_eq!(ShareRecord::parse(&[&record[..], &[0]].concat()), Err(FormatError::Trailing(1)));
    assert_eq!(BatchHeader::parse(&[&header[..], &[0]].concat()), Err(FormatError::Trailing(1)));
    let changed = |bytes: &[u8], at: usize, to: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = to;
        bytes
    };
    assert_eq!(BatchHeader::parse(&changed(&header, 4, 2)), Err(FormatError::Invalid("suite")));
    assert_eq!(BatchHeader::parse(&changed(&header, 85, 0)), Err(FormatError::Invalid("number of holders")));
    assert_eq!(BatchHeader::parse(&changed(&header, 85, 10)), Err(FormatError::Invalid("number of holders")));
    for x in [0, 2, 255] {
        assert_eq!(BatchHeader::parse(&changed(&header, 86, x)), Err(FormatError::Invalid("share number")));
    }
    assert_eq!(BatchHeader::parse(&changed(&header, 94, 0)), Err(FormatError::Invalid("order of holders")));
    assert_eq!(BatchHeader::parse(&changed(&header, header.len() - 1, 2)), Err(FormatError::Invalid("recovery flag")));
    for t in [0, 1, 4] {
        assert_eq!(ShareRecord::parse(&changed(&record, 52, t)), Err(FormatError::Invalid("threshold")));
    }
    assert_eq!(ShareRecord::parse(&changed(&record, record.len() - 1, 1)), Err(FormatError::Short("share record")));
}

proptest! {
    #[test]
    fn what_parses_is_written_back_as_it_was_read(mut bytes in prop::collection::vec(any::<u8>(), 0..400), n in 1u8..4) {
        for (magic, counts) in [(b"QSH1", 52), (b"QBH1", 85)] {
            if bytes.len() > counts + 1 {
                bytes[..4].copy_from_slice(magic);
                bytes[counts..counts + 2].copy_from_slice(&[n, n]);
            }
            if let Ok(record) = ShareRecord::parse(&bytes) {
                prop_assert_eq!(record.encode(), &bytes[..]);
            }
            if let Ok(header) = BatchHeader::parse(&bytes) {
                prop_assert_eq!(header.encode(), &bytes[..]);
            }
        }
    }

    #[test]
    fn records_survive_their_bytes(
        ids in any::<([u8; 16], u32, u64, [u8; 16], u32)>(),
        shares in prop::collection::vec((any::<[u8; 16]>(), any::<[u8; 32]>()), 1..=9),
        recovery in any::<Option<[u8; 32]>>(),
    ) {
        let (batch, index, epoch, uid, version) = ids;
        let sealed = |bytes: [u8; 32]| <[u8; 48]>::try_from([&bytes[..], &bytes[..16]].concat()).unwrap();
        let holders = shares.len() as u8;
        let record = ShareRecord {
            batch: BatchId(batch), index, epoch: Epoch(epoch), uid: KeyUid(uid), version: KeyVersion(version),
            threshold: quorate_shares::split::Threshold::new(holders / 2 + 1, holders).unwrap(),
            shares: shares.iter().map(|(commitment, bytes)| {
                quorate_shares::seal::RecordedShare { commitment: *commitment, sealed: sealed(*bytes) }
            }).collect(),
            recovery: recovery.map(sealed),
        };
        prop_assert_eq!(ShareRecord::parse(&record.encode()), Ok(record));
    }
}
