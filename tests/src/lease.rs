//! A node that is cut off from the quorum stops answering when its lease ends.

use std::time::Instant;

use quorate_client::Code;
use quorate_client::wire::Phase;
use quorate_testnet::Cluster;

use crate::site::Site;

/// The followers and the leader alike: cut off, they refuse within the lease; healed, they serve again.
#[test]
fn a_node_that_is_cut_off_refuses_within_its_lease() {
    let settings = "[timing]\nlease_ms = 1500\nlease_tick_ms = 300\nwipe_after_ms = 1000\n";
    let mut site = Site::of(Cluster::builder().settings(settings));
    site.create("key");
    let ciphertext = site.encrypt(None, "key", b"secret").expect("encrypts");
    for node in ["n1", "n2", "n3"] {
        assert_eq!(site.decrypt(Some(node), &ciphertext).expect("the control: warm and serving"), b"secret");
        site.cluster.cut(node).expect("cut");
        let cut = Instant::now();
        site.cluster.wait_phase(node, Phase::Open).expect("leaves Serving");
        // Its clients still reach it, and its key was warm: only the lease stands between them and the key.
        let error = site.decrypt(Some(node), &ciphertext).expect_err("no lease, no answer");
        assert_eq!(error.code(), Code::NoQuorum, "{error}");
        println!("{node} refused {:?} after the cut", cut.elapsed());
        let others: Vec<_> = ["n1", "n2", "n3"].into_iter().filter(|other| *other != node).collect();
        site.cluster.wait_serving(&others).expect("the others go on");
        assert_eq!(site.decrypt(Some(others[0]), &ciphertext).expect("a quorum serves"), b"secret");
        site.cluster.heal().expect("heals");
        site.cluster.wait_serving(&[node]).expect("serves again");
        assert_eq!(site.decrypt(Some(node), &ciphertext).expect("decrypts"), b"secret");
    }
}

/// Two nodes that cannot see each other, but both see the third, both serve: relayed trust is enough.
#[test]
fn two_nodes_that_cannot_see_each_other_both_serve() {
    let mut site = Site::found();
    site.create("key");
    let ciphertext = site.encrypt(None, "key", b"secret").expect("encrypts");
    let status = site.block(site.client(None).status()).expect("status");
    let leader = status.leader.expect("a leader").to_string();
    let followers: Vec<_> = ["n1", "n2", "n3"].into_iter().filter(|node| *node != leader).collect();
    site.cluster.cut_pair(followers[0], followers[1]).expect("cut");
    for node in ["n1", "n2", "n3"] {
        site.until("decrypts", || site.decrypt(Some(node), &ciphertext).ok().filter(|plain| plain == b"secret"));
    }
    site.cluster.heal().expect("heals");
    site.cluster.wait_serving(&["n1", "n2", "n3"]).expect("serve");
}
