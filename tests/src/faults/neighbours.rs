//! A neighbour that is dead or hangs: those who ask it do not wait for it.

use std::fs;

use quorate_testnet::faults::shim::Shim;
use quorate_testnet::procs::Tool;

use crate::harness::{PATIENCE, TestCluster};

/// Enough commands that some ask the node first that does not answer: each begins with a random one.
const COMMANDS: usize = 8;

/// Makes keys by the real command line. None of the commands waits until a node counts as unreachable: with `-v` it would say so.
fn make_keys(cluster: &TestCluster, name: &str) {
    for number in 0..COMMANDS {
        let typed = format!("-v key create {name}/{number}");
        let ended = Tool::start(cluster.testnet.quorate(typed.split(' ')), b"").expect("runs").outcome(PATIENCE);
        let ended = ended.expect("ends");
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(!ended.stderr.contains("does not answer"), "{typed}: {}", ended.stderr);
    }
}

/// T79: with one of three nodes that hangs, and then is dead, each change is made as soon as with all. Mutated: with one node dialled at
/// a time, a command says after three seconds that the node does not answer.
#[test]
fn t79_one_of_three_that_does_not_answer_holds_up_no_change() {
    let mut cluster = TestCluster::found();
    make_keys(&cluster, "control");
    let leader = cluster.leader();
    let other = ["n1", "n2", "n3"].into_iter().find(|node| *node != leader).expect("three");
    let process = cluster.testnet.process(other).expect("a node").expect("it runs");
    process.pause().expect("stops");
    make_keys(&cluster, "hangs");
    process.resume().expect("goes on");
    cluster.testnet.kill(other).expect("dies");
    make_keys(&cluster, "dead");
}

/// T79: as many of nine nodes are gone as may be, two dead and two that hang. Mutated: with one node dialled at a time, commands wait
/// for one after the other.
#[test]
fn t79_four_of_nine_that_do_not_answer_hold_up_no_change() {
    let mut cluster = TestCluster::of_nodes(9);
    make_keys(&cluster, "control");
    let leader = cluster.leader();
    let others: Vec<_> = cluster.testnet.names().into_iter().filter(|name| *name != leader).take(4).collect();
    let (dead, hanging) = others.split_at(2);
    dead.iter().for_each(|node| cluster.testnet.kill(node).expect("dies"));
    let process = |node: &String| cluster.testnet.process(node).expect("a node").expect("it runs");
    hanging.iter().for_each(|node| process(node).pause().expect("stops"));
    make_keys(&cluster, "gone");
    hanging.iter().for_each(|node| process(node).resume().expect("goes on"));
}

/// T79: the name server is silent for ever. A command that has its answer ends, and a daemon that is told to stop stops. Mutated: with a
/// resolver on the threads of the runtime, the command waits for it.
#[test]
fn t79_a_silent_name_server_holds_up_no_end() {
    let shim = Shim::build().expect("a compiler");
    let mut cluster = TestCluster::found();
    let mut file = cluster.file();
    for node in file.nodes.iter_mut().filter(|node| node.name.as_str() != "n1") {
        node.addresses = vec![format!("{}.example:7250", node.name)];
    }
    file.write(&cluster.testnet.directory().client_file()).expect("written");
    // The first node is chosen at random, so some of these commands begin with a name.
    for number in 0..COMMANDS {
        let key = format!("silent/{number}");
        let mut command = cluster.testnet.quorate(["key", "create", &key]);
        command.envs(shim.with_silent_names());
        Tool::start(command, b"").expect("runs").success(PATIENCE).expect("n1 answers, and the command ends");
    }
    cluster.testnet.terminate("n1").expect("the control: it stops");
    let config = cluster.testnet.directory().config("n1");
    fs::write(config, "[peers]\nn2 = ['n2.example:7250']\nn3 = ['n3.example:7250']\n").expect("our own directory");
    cluster.testnet.kill("n2").expect("dies, so that its name is dialled again and again");
    cluster.testnet.set_environment("n1", shim.with_silent_names()).expect("a node");
    cluster.start(&["n1"]);
    cluster.testnet.wait_serving(&["n1"]).expect("it finds n3 at the address that is recorded");
    cluster.testnet.terminate("n1").expect("it stops while its resolver hangs");
}
