//! Clients that work while nodes die and return notice nothing but a pause.

use std::time::Duration;

use quorate_testnet::load::{Load, Options};

use crate::harness::TestCluster;

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// What is done before and after everything that happens to a node.
const MORE: u64 = 200;

/// L1, D6, D7: each node in turn is killed and started again, then one is cut off and healed. No client sees an error that
/// does not pass within its patience, none reads another plaintext, and whatever was handed out opens at every node in the
/// end. Answering from a state that is behind, or acknowledging before a key is ready, ends on the list.
#[test]
fn clients_that_never_stop_see_no_error_while_nodes_die_and_return() {
    let mut cluster = TestCluster::found();
    let options = Options { clients: 6, rest: Duration::from_millis(20), ..Options::default() };
    let load = cluster.block(Load::start(&cluster.file(), &cluster.token(), &options)).expect("clients start");
    let goes_on = |cluster: &TestCluster, when: &str| {
        let before = load.tally().done;
        cluster.until(&format!("clients to go on {when}"), || (load.tally().done >= before + MORE).then_some(()));
        println!("{when}: {:?}", load.tally());
    };
    goes_on(&cluster, "in peace");
    for node in NODES {
        cluster.testnet.kill(node).expect("dies");
        goes_on(&cluster, &format!("without {node}"));
        cluster.start(&[node]);
        cluster.testnet.wait_serving(&[node]).expect("boots alone");
        goes_on(&cluster, &format!("with {node} again"));
    }
    let status = cluster.block(cluster.client(None).status()).expect("status");
    let leader = status.leader.expect("a leader").to_string();
    cluster.testnet.cut(&leader).expect("cut");
    goes_on(&cluster, "while the leader is cut off");
    cluster.testnet.heal().expect("heals");
    cluster.testnet.wait_serving(&NODES).expect("serve");
    goes_on(&cluster, "when it is healed");

    let outcome = cluster.block(load.stop());
    assert_eq!(outcome.unexpected, Vec::<String>::new());
    assert_eq!((outcome.tally.unexpected, outcome.kept() as u64), (0, outcome.sealed), "all are remembered");
    for node in NODES {
        let unopened = cluster.block(outcome.open_all(&cluster.client(Some(node))));
        assert_eq!(unopened, Vec::<String>::new(), "{node}");
    }
}
