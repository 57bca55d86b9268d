//! Clients that work while nodes die and return notice nothing but a pause.

use std::time::Duration;

use quorate_testnet::load::{Load, Options};

use crate::harness::Site;

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// What is done before and after everything that happens to a node.
const MORE: u64 = 200;

/// L1, D6, D7: each node in turn is killed and started again, then one is cut off and healed. No client sees an error that
/// does not pass within its patience, none reads another plaintext, and whatever was handed out opens at every node in the
/// end. Answering from a state that is behind, or acknowledging before a key is ready, ends on the list.
#[test]
fn clients_that_never_stop_see_no_error_while_nodes_die_and_return() {
    let mut site = Site::found();
    let options = Options { clients: 6, rest: Duration::from_millis(20), ..Options::default() };
    let load = site.block(Load::start(&site.file(), &site.token(), &options)).expect("clients start");
    let goes_on = |site: &Site, when: &str| {
        let before = load.tally().done;
        site.until(&format!("clients to go on {when}"), || (load.tally().done >= before + MORE).then_some(()));
        println!("{when}: {:?}", load.tally());
    };
    goes_on(&site, "in peace");
    for node in NODES {
        site.cluster.kill(node).expect("dies");
        goes_on(&site, &format!("without {node}"));
        site.start(&[node]);
        site.cluster.wait_serving(&[node]).expect("boots alone");
        goes_on(&site, &format!("with {node} again"));
    }
    let status = site.block(site.client(None).status()).expect("status");
    let leader = status.leader.expect("a leader").to_string();
    site.cluster.cut(&leader).expect("cut");
    goes_on(&site, "while the leader is cut off");
    site.cluster.heal().expect("heals");
    site.cluster.wait_serving(&NODES).expect("serve");
    goes_on(&site, "when it is healed");

    let outcome = site.block(load.stop());
    assert_eq!(outcome.unexpected, Vec::<String>::new());
    assert_eq!((outcome.tally.unexpected, outcome.kept() as u64), (0, outcome.sealed), "all are remembered");
    for node in NODES {
        let unopened = site.block(outcome.open_all(&site.client(Some(node))));
        assert_eq!(unopened, Vec::<String>::new(), "{node}");
    }
}
