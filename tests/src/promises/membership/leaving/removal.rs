//! A removal: clients notice nothing, and nothing is lost. A removed node that is cut off serves no client, whatever it
//! remembers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use quorate_client::wire::{KeyInfo, Phase};
use quorate_client::{Client, Code, Context, Error, NodeName, Removal};
use quorate_shares::ids::Epoch;
use quorate_testnet::Cluster;
use quorate_testnet::load::{Load, Options as LoadOptions};

use super::{LANES, LEASE, all_open, client_of, cold, goes_on, none_wrong, run, seal_many, settled, status, typed};
use crate::harness::{PATIENCE, TestCluster, name};

const STAY: [&str; 3] = ["n1", "n2", "n3"];
/// Keys stay in memory without a lease, longer than any test runs.
const FORGETS_NOTHING: &str = "[timing]\nwipe_after_ms = 3600000\n";
/// A removal ends some hundredths of a second after its epoch is ACTIVE. The test must act in between, so it tries this often.
const TRIES: usize = 8;

/// n4 of four is removed while clients make keys, encrypt and decrypt at every node. No node keeps a key in
/// memory. Every error of a client passes within its patience, and everything opens at the nodes that stay.
///
/// Mutated: an epoch that becomes ACTIVE before every key is dealt to it.
#[test]
fn clients_notice_nothing_while_a_node_is_removed() {
    let cluster = cold(4);
    let sealed = seal_many(&cluster, 200);
    let options = LoadOptions { clients: 4, ..LoadOptions::default() };
    let load = cluster.block(Load::start(&cluster.file(), &cluster.token(), &options)).expect("clients start");
    goes_on(&cluster, &load, "in peace");

    let removal = typed(&cluster, &["node", "remove", "n4", "--yes"]);
    let mut shown = BTreeSet::new();
    cluster.until("the removal to be over", || {
        let status = status(&cluster, &STAY)?;
        shown.extend(status.operation.as_ref().map(|operation| operation.name.clone()));
        (status.epoch.0 == 2 && status.operation.is_none()).then_some(())
    });
    let finished = removal.outcome(PATIENCE).expect("it ends");
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(finished.stderr.contains("n4 is out of the cluster"), "{}", finished.stderr);
    assert_eq!(shown, ["remove n4".to_owned()].into(), "every node shows what is under way");

    goes_on(&cluster, &load, "without n4");
    none_wrong(&cluster, load, &STAY);
    all_open(&cluster, &STAY, &sealed);
    for node in STAY {
        let status = settled(&cluster, &[node], 2);
        assert_eq!((status.threshold, status.theft_threshold), (2, 2), "{node}");
        assert!(status.alarms.is_empty(), "{:?}", status.alarms);
    }
}

/// T28: keys are made without stop while a node is removed, so that some are made right when the next epoch is opened, filled
/// and made the active one. Each that was acknowledged is there, ready, and opens. Mutated as above.
#[test]
fn t28_no_key_is_lost_that_is_made_during_a_removal() {
    let cluster = cold(4);
    let stop = Arc::new(AtomicBool::new(false));
    let makers: Vec<_> = (0..LANES)
        .map(|maker| {
            let (client, stop) = (client_of(&cluster, &STAY), Arc::clone(&stop));
            cluster.spawn(async move {
                let mut made = Vec::new();
                for number in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let key = format!("made/{maker}/{number}");
                    match client.create_key(&name(&key), BTreeMap::new()).await {
                        Ok(info) => assert!(info.newest().is_some_and(|newest| newest.ready), "{info:?}"),
                        Err(error) => panic!("{key}: {} ({error})", error.code()),
                    }
                    made.push(key);
                }
                made
            })
        })
        .collect();
    let keys = |cluster: &TestCluster| status(cluster, &STAY).map_or(0, |status| status.keys);
    cluster.until("some keys", || (keys(&cluster) > 50).then_some(()));
    let removed = run(&cluster, &["node", "remove", "n4", "--yes"]);
    assert_eq!(removed.code, Some(0), "{}", removed.stderr);
    let (then, before) = (Instant::now(), keys(&cluster));
    cluster.until("some more keys", || (keys(&cluster) > before + 50).then_some(()));
    stop.store(true, Ordering::SeqCst);
    let made: Vec<String> = makers.into_iter().flat_map(|maker| cluster.block(maker).expect("no error")).collect();
    println!("{} keys were made, {before} of them before the removal was over, {:?} ago", made.len(), then.elapsed());

    settled(&cluster, &STAY, 2);
    let known = cluster.block(client_of(&cluster, &STAY).list_keys()).expect("lists");
    let known: BTreeSet<_> = known.iter().map(|key| key.name.to_string()).collect();
    assert_eq!(known, made.iter().cloned().collect(), "what was acknowledged is there, and nothing else");
    let lanes: Vec<_> = made
        .chunks(made.len().div_ceil(LANES))
        .map(|lane| {
            let (lane, clients) = (lane.to_vec(), STAY.map(|node| cluster.client(Some(node))));
            cluster.spawn(async move {
                for (number, key) in lane.iter().enumerate() {
                    let (here, there) = (&clients[number % 3], &clients[(number + 1) % 3]);
                    let ready = |info: KeyInfo| info.versions.iter().all(|version| version.ready);
                    assert!(ready(there.show_key(&name(key)).await.expect("is there")), "{key}");
                    let sealed = here.encrypt(&name(key), &Context::empty(), key.as_bytes()).await.expect("encrypts");
                    let opened = there.decrypt(&sealed, &Context::empty()).await.expect("decrypts");
                    assert_eq!(opened.expose(), key.as_bytes());
                }
            })
        })
        .collect();
    lanes.into_iter().for_each(|lane| cluster.block(lane).expect("all are as good as others"));
}

/// n3 of three is cut off while it is removed. The epoch without it is ACTIVE, and it still decrypts, from memory and by an
/// earlier lease. Returns what was encrypted before, and when n3 was cut off; `None` if n3 already knew that it was out.
fn cut_off_with_a_warm_memory() -> Option<(TestCluster, String, Instant)> {
    let cluster = TestCluster::of(Cluster::builder().settings(FORGETS_NOTHING));
    cluster.create("key");
    let old = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    assert_eq!(cluster.decrypt(Some("n3"), &old).expect("warms it"), b"secret");
    let removal = typed(&cluster, &["node", "remove", "n3", "--yes", "--accept-no-redundancy"]);
    cluster.until("n3 to be without a share", || {
        let status = cluster.testnet.status("n3").ok()?;
        (status.public.phase == Phase::Revoked || status.full?.epoch.0 == 2).then_some(())
    });
    cluster.testnet.cut("n3").expect("cut");
    let cut = Instant::now();
    let warm = cluster.hasty("n3");
    let decrypted = cluster.block(warm.decrypt(&old, &Context::empty()));
    let phase = cluster.testnet.status("n3").expect("it runs").public.phase;
    let removed = removal.outcome(PATIENCE).expect("the others go on without it");
    assert!(removed.stderr.contains("n3 is out of the cluster"), "{}", removed.stderr);
    println!("cut off, n3 was {phase} and answered {:?}", decrypted.as_ref().map_err(Error::code).map(|_| ()));
    (decrypted.is_ok() && phase == Phase::Serving).then_some((cluster, old, cut))
}

/// The promise that other systems break: a node that was removed decrypts nothing, although it still remembers the key. n3 is
/// cut off while it is removed, with its memory warm, and then the others die. No node can tell it that it was removed, and it
/// never forgets the key in its memory here; its lease alone stops it. Mutated: a lease that never ends.
#[test]
fn a_removed_node_that_is_cut_off_with_a_warm_memory_decrypts_nothing() {
    let (mut cluster, old, cut) =
        (0..TRIES).find_map(|_| cut_off_with_a_warm_memory()).expect("n3 is cut off while warm");
    let warm = cluster.hasty("n3");
    let decrypt = |cluster: &TestCluster| cluster.block(warm.decrypt(&old, &Context::empty())).map(|_| ());
    let rotated = cluster.block(client_of(&cluster, &["n1", "n2"]).rotate_key(&name("key"), None)).expect("rotates");
    let new = cluster.encrypt(Some("n1"), "key", b"another").expect("encrypts");
    assert!(rotated.newest().is_some_and(|newest| new.starts_with(&format!("qrt1:key:{}:", newest.version))), "{new}");
    cluster.testnet.kill("n1").expect("dies");
    cluster.testnet.kill("n2").expect("dies");

    // Whatever it answers now rests on a lease from before it was cut off.
    cluster.until("n3 to refuse", || {
        let asked = cut.elapsed();
        let refused = decrypt(&cluster).is_err();
        assert!(refused || asked < LEASE, "n3 decrypts {asked:?} after it was cut off");
        refused.then_some(())
    });
    println!("n3 refused {:?} after it was cut off", cut.elapsed());
    let refuses = |cluster: &TestCluster, when: &str| {
        for (what, refusal) in cluster.block(everything(&warm, &old, &new)) {
            let error = refusal.expect_err(what);
            assert!(is_refusal(error.code()), "{what} {when}: {}: {error}", error.code());
        }
    };
    refuses(&cluster, "alone");
    let phase = cluster.testnet.status("n3").expect("it runs").public.phase;
    assert_eq!(phase, Phase::Open, "it knows of nothing, and has no lease");

    // Back on the network it gets nothing from the others, however long it asks: they have been granted leases since.
    cluster.start(&["n1", "n2"]);
    cluster.testnet.wait_serving(&["n1", "n2"]).expect("two of two");
    cluster.testnet.heal().expect("heals");
    assert_eq!(cluster.decrypt(Some("n2"), &old).expect("decrypts"), b"secret");
    let begin = Instant::now();
    cluster.until("twice a lease to pass", || {
        refuses(&cluster, "among the others again");
        (begin.elapsed() > 2 * LEASE).then_some(())
    });
    // Nor after a start: then it does not even read what is on its disk.
    cluster.testnet.kill("n3").expect("dies");
    match cluster.testnet.start("n3") {
        Ok(()) => cluster.until_turned_away(&cluster.testnet.directory().socket("n3"), &["n1", "n2"]),
        // A node that knows that it is out may as well not run.
        Err(quorate_testnet::Error::Ended { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    refuses(&cluster, "started again");
}

/// One of each request that only a node with a lease answers. The other requests ask for the status of nodes or give them
/// orders that touch no key, and must work without a quorum.
async fn everything(warm: &Client, old: &str, new: &str) -> [(&'static str, Result<(), Error>); 14] {
    let (key, empty, stranger) = (name("key"), Context::empty(), node("n9"));
    [
        ("decrypt", warm.decrypt(old, &empty).await.map(|_| ())),
        ("decrypt what is newer", warm.decrypt(new, &empty).await.map(|_| ())),
        ("encrypt", warm.encrypt(&key, &empty, b"x").await.map(|_| ())),
        ("data key", warm.data_key(&key, &empty, 32).await.map(|_| ())),
        ("show", warm.show_key(&key).await.map(|_| ())),
        ("list", warm.list_keys().await.map(|_| ())),
        ("create", warm.create_key(&name("other"), BTreeMap::new()).await.map(|_| ())),
        ("rotate", warm.rotate_key(&key, None).await.map(|_| ())),
        ("invite", warm.invite_node(None, PATIENCE).await.map(|_| ())),
        ("replace", warm.replace_node(&node("n1"), b"no invitation").await),
        ("remove", warm.remove_node(&stranger, &Removal::default()).await.map(|_| ())),
        ("revoke", warm.revoke_nodes(&[stranger], &[]).await.map(|_| ())),
        ("progress", warm.progress(Epoch(2)).await.map(|_| ())),
        ("echo", warm.echo(b"x").await.map(|_| ())),
    ]
}

fn node(name: &str) -> NodeName {
    name.parse().expect("a name")
}

/// What a node without lease, a locked one, and one that is down let a client see; and what it sees of a process that is gone.
fn is_refusal(code: Code) -> bool {
    matches!(code, Code::NoQuorum | Code::NotServing | Code::Locked | Code::Unreachable | Code::Deadline)
}
