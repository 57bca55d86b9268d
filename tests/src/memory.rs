//! Where the system grants no locked memory, a node says so and works all the same.

use quorate_testnet::Cluster;

use crate::site::Site;

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// What operators are told.
const WARNING: &str = "raise RLIMIT_MEMLOCK";

fn log(site: &Site, node: &str) -> String {
    std::fs::read_to_string(site.cluster.directory().log(node)).expect("a node writes its log")
}

/// T47: without any memory to lock, secrets lie on the heap. That is worth a warning and no reason to refuse service.
#[test]
fn t47_a_node_that_may_not_lock_memory_warns_and_goes_on() {
    let usual = Site::found();
    let mut site = Site::of(Cluster::builder().memlock_bytes(0));
    for node in NODES {
        assert!(!log(&usual, node).contains(WARNING), "the control: {node} may lock memory by default");
        assert!(log(&site, node).contains(WARNING), "{node} says nothing: {}", log(&site, node));
    }
    site.create("key");
    let ciphertext = site.encrypt(None, "key", b"secret").expect("encrypts");
    site.kill_all();
    site.start(&NODES);
    site.cluster.wait_serving(&NODES).expect("boots");
    for node in NODES {
        assert_eq!(site.decrypt(Some(node), &ciphertext).expect("decrypts"), b"secret");
    }
}
