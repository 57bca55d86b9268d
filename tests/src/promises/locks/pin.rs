//! Where the pin lies and from where a node may be unlocked: two settings that make a stolen disk less useful.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use quinn::AsyncUdpSocket;
use quinn::udp::Transmit;
use quorate_client::Context;
use quorate_client::wire::Phase;
use quorate_node::vault;
use quorate_shares::envelope::Ciphertext;
use quorate_shares::lock::{Lock, LockOpenCode, PinPlace};
use quorate_testnet::cluster::Special;
use quorate_testnet::thief::canary::{self, Canary};
use quorate_testnet::{Cluster, thief};

use crate::harness::TestCluster;
use crate::harness::impostor::Impostor;
use crate::harness::wire::{self, Tricks};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// One renewal, right after the start.
const SOON: &str = "[timing]\nrenew_lock_after_ms = 100\n";

fn configure(cluster: &TestCluster, node: &str, settings: &str) {
    fs::write(cluster.testnet.directory().config(node), settings).expect("our own directory");
}

fn lock_of(cluster: &TestCluster, node: &str) -> Lock {
    let stolen = tempfile::tempdir().expect("a directory");
    let disk = cluster.testnet.steal(&[node], stolen.path()).expect("steals").remove(0);
    vault::inspect(&disk).expect("a vault").lock.expect("a lock")
}

fn restart(cluster: &mut TestCluster, node: &str) {
    cluster.testnet.kill(node).expect("dies");
    cluster.start(&[node]);
    cluster.testnet.wait_serving(&[node]).expect("boots");
}

/// Starts `node`, which ends at once and names `missing` as it does.
fn refuses_to_start(cluster: &mut TestCluster, node: &str, missing: &str) {
    let (status, said) = cluster.testnet.start_and_wait_end(node, &Special::default()).expect("ends by itself");
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains(missing) && said.contains("hint: make the pin available again"), "{said}");
}

/// T13: founded with pins elsewhere; all drives together open nothing, whatever the thief tries in the place of the pins, and the
/// pins lie on none of them. The control is the same thief with the pins: the drives then give away every key. Without its pin
/// a node refuses to start, with its peers there and without them, and names it; with it, it starts. Mutated: a missing pin is
/// made again; a bundle key that leaves the pin out, or takes zeros or the path of the pin in its place (`bundle_key`); a pin
/// that is left in the vault as well.
#[test]
fn t13_without_its_pin_a_node_does_not_start() {
    let pins = tempfile::tempdir().expect("another device");
    let settings = format!("pin_file = '{}/{{name}}.pin'\n", pins.path().display());
    let mut cluster = TestCluster::of(Cluster::builder().settings(settings));
    cluster.create("key");
    let ciphertext = cluster.encrypt(None, "key", b"secret").expect("encrypts");
    for node in NODES {
        let pin = fs::metadata(pins.path().join(format!("{node}.pin"))).expect("it was made");
        assert_eq!((pin.len(), pin.permissions().mode() & 0o7777), (32, 0o600), "{node}");
    }
    let stolen = tempfile::tempdir().expect("a directory");
    let drives = cluster.testnet.steal(&NODES, stolen.path()).expect("steals");
    let loot = thief::rob(&drives);
    assert!(loot.is_nothing(), "{loot}");
    let found = NODES.map(|node| fs::read(pins.path().join(format!("{node}.pin"))).expect("ours"));
    let sought: Vec<_> = found.iter().filter_map(|pin| Canary::bytes("a pin", pin)).map(Canary::as_written).collect();
    assert_eq!(sought.len(), NODES.len());
    assert_eq!(canary::search(stolen.path(), &sought).expect("every file is read"), []);
    assert!(!canary::search(pins.path(), &sought).expect("every file is read").is_empty(), "the control");
    let wrong = thief::rob_with(&drives, &found[..1]);
    assert_eq!((wrong.bundles, wrong.keys.len()), (1, 0), "a pin opens the lock of its own node: {wrong}");
    let loot = thief::rob_with(&drives, &found);
    let sealed = Ciphertext::parse_text(&ciphertext).expect("our own ciphertext");
    let opened = loot.keys.iter().find_map(|key| key.open(&sealed, &Context::empty()));
    assert_eq!(opened.as_deref(), Some(b"secret".as_slice()), "the control: only the pins were missing: {loot}");

    let (pin, away) = (pins.path().join("n1.pin"), pins.path().join("away"));
    let named = pin.display().to_string();
    cluster.testnet.kill("n1").expect("dies");
    fs::rename(&pin, &away).expect("ours");
    refuses_to_start(&mut cluster, "n1", &named);
    cluster.kill_all();
    refuses_to_start(&mut cluster, "n1", &named);
    assert!(!pin.exists(), "nothing was made in its place");
    // Another pin: all pieces are there, and the status says why they are of no use.
    fs::write(&pin, [7; 32]).expect("ours");
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o600)).expect("ours");
    cluster.start(&NODES);
    cluster.until("n1 to say what is wrong", || {
        let status = cluster.testnet.status("n1").ok()?;
        assert_eq!(status.public.phase, Phase::Locked);
        status.operation?.step.contains("wrong pin").then_some(())
    });
    cluster.kill_all();
    fs::rename(&away, &pin).expect("ours");
    cluster.start(&NODES);
    cluster.testnet.wait_serving(&NODES).expect("boots");
    assert_eq!(cluster.decrypt(Some("n1"), &ciphertext).expect("decrypts"), b"secret");
}

/// A running node moves its pin where the configuration says, and back. The thief with two drives is the control: he has the
/// keys before and after, and not in between. Mutated: a pin that stays wherever the last lock had it.
#[test]
fn a_pin_moves_where_the_configuration_says() {
    let mut cluster = TestCluster::with_lasting_locks();
    cluster.create("key");
    let robbed = |cluster: &TestCluster| {
        let stolen = tempfile::tempdir().expect("a directory");
        thief::rob(&cluster.testnet.steal(&["n1", "n2"], stolen.path()).expect("steals")).keys.len()
    };
    assert_eq!(robbed(&cluster), 1, "the control: the pins lie in the vaults");
    let pins = tempfile::tempdir().expect("another device");
    let pin = pins.path().join("n1.pin");
    configure(&cluster, "n1", &format!("pin_file = '{}'\n{SOON}", pin.display()));
    restart(&mut cluster, "n1");
    let elsewhere = PinPlace::File(pin.display().to_string());
    cluster.until("the pin to move", || (*lock_of(&cluster, "n1").pin() == elsewhere).then_some(()));
    assert_eq!(robbed(&cluster), 0);
    configure(&cluster, "n1", "[timing]\nrenew_lock_after_ms = 3600000\n");
    restart(&mut cluster, "n1");
    assert_eq!(*lock_of(&cluster, "n1").pin(), elsewhere, "the control: nothing moves but with a new lock");

    configure(&cluster, "n1", SOON);
    restart(&mut cluster, "n1");
    cluster
        .until("the pin to move back", || matches!(lock_of(&cluster, "n1").pin(), PinPlace::Inline(_)).then_some(()));
    fs::remove_file(&pin).expect("of no use any more");
    restart(&mut cluster, "n1");
    assert_eq!(robbed(&cluster), 1);
}

/// A pin that is taken away under a running node is missed at the next renewal, while it can still be put back.
#[test]
fn a_missing_pin_is_an_alarm_before_it_is_needed() {
    let mut cluster = TestCluster::with_lasting_locks();
    let pins = tempfile::tempdir().expect("another device");
    let [pin, away] = ["pin", "away"].map(|name| pins.path().join(name));
    let settings =
        |after_ms: u32| format!("pin_file = '{}'\n[timing]\nrenew_lock_after_ms = {after_ms}\n", pin.display());
    configure(&cluster, "n1", &settings(100));
    restart(&mut cluster, "n1");
    cluster.until("the pin to move", || matches!(lock_of(&cluster, "n1").pin(), PinPlace::File(_)).then_some(()));
    configure(&cluster, "n1", &settings(2_000));
    restart(&mut cluster, "n1");
    fs::rename(&pin, &away).expect("ours");
    let client = cluster.client(None);
    let alarm = cluster.until("the pin to be missed", || {
        let alarms = cluster.block(client.alarms()).ok()?;
        alarms.into_iter().find(|alarm| alarm.code == "pin_missing")
    });
    assert!(alarm.message.contains(&pin.display().to_string()), "{alarm:?}");
    let generation = lock_of(&cluster, "n1").generation();
    fs::rename(&away, &pin).expect("ours");
    cluster
        .until("the renewal to be made up for", || (lock_of(&cluster, "n1").generation() > generation).then_some(()));
}

/// The pin as a systemd credential: what `CREDENTIALS_DIRECTORY` holds is used, and missed by name.
#[test]
fn a_pin_may_be_a_systemd_credential() {
    let mut cluster = TestCluster::with_lasting_locks();
    let credentials = tempfile::tempdir().expect("a directory");
    let pin = credentials.path().join("quorate.pin");
    fs::write(&pin, [7; 32]).expect("ours");
    // As systemd makes it.
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o400)).expect("ours");
    let variable = ("CREDENTIALS_DIRECTORY".to_owned(), credentials.path().display().to_string());
    cluster.testnet.set_environment("n2", vec![variable]).expect("a node");
    configure(&cluster, "n2", &format!("pin_credential = 'quorate.pin'\n{SOON}"));
    restart(&mut cluster, "n2");
    let moved = |cluster: &TestCluster| *lock_of(cluster, "n2").pin() == PinPlace::Credential("quorate.pin".to_owned());
    cluster.until("the pin to move", || moved(&cluster).then_some(()));
    restart(&mut cluster, "n2");
    cluster.testnet.kill("n2").expect("dies");
    cluster.testnet.set_environment("n2", Vec::new()).expect("a node");
    refuses_to_start(&mut cluster, "n2", "the pin is the systemd credential quorate.pin");
}

/// `unlock_from`: a node that asks from elsewhere stays locked, says why, and raises an alarm; from there it is let in.
/// Mutated: without the check n3 serves at once.
#[test]
fn a_node_is_unlocked_only_from_the_networks_that_are_named() {
    let mut cluster = TestCluster::of(Cluster::builder().settings("unlock_from = ['10.9.0.0/16']\n"));
    cluster.testnet.kill("n3").expect("dies");
    cluster.start(&["n3"]);
    let client = cluster.client(None);
    let alarm = cluster.until("an alarm", || {
        let alarms = cluster.block(client.alarms()).ok()?;
        alarms.into_iter().find(|alarm| alarm.code == "foreign_address")
    });
    assert!(alarm.message.contains("127.0.0.1"), "{alarm:?}");
    let said = cluster.until("n3 to say why it is locked", || cluster.testnet.status("n3").ok()?.operation);
    assert!(said.step.contains("not allowed"), "{said:?}");
    assert_eq!(cluster.testnet.status("n3").expect("answers").public.phase, Phase::Locked);
    cluster.kill_all();
    for node in NODES {
        configure(&cluster, node, "unlock_from = ['fd00::/8', '127.0.0.0/8']\n");
    }
    cluster.start(&NODES);
    cluster.testnet.wait_serving(&NODES).expect("boots");
}

/// Sends one datagram from another address, right behind the end of the handshake: before the node looks at the address.
#[derive(Debug)]
struct Forger {
    /// The socket of the other address.
    elsewhere: UdpSocket,
    /// Whether the server has answered: from then on everything that the client sends completes the handshake.
    is_answered: AtomicBool,
    /// Datagrams that complete the handshake. They leave together with the forged one.
    withheld: Mutex<Vec<Vec<u8>>>,
    has_forged: AtomicBool,
}

impl Forger {
    fn at(elsewhere: &str) -> Arc<Self> {
        Arc::new(Self {
            elsewhere: UdpSocket::bind(format!("{elsewhere}:0")).expect("a port"),
            is_answered: AtomicBool::new(false),
            withheld: Mutex::default(),
            has_forged: AtomicBool::new(false),
        })
    }
}

impl Tricks for Forger {
    fn send(&self, datagram: &Transmit<'_>, socket: &dyn AsyncUdpSocket) -> io::Result<()> {
        if !self.is_answered.load(Ordering::SeqCst) || self.has_forged.load(Ordering::SeqCst) {
            return socket.try_send(datagram);
        }
        let is_of_handshake = datagram.contents[0] & 0x80 != 0;
        if is_of_handshake {
            self.withheld.lock().push(datagram.contents.to_vec());
            return Ok(());
        }
        for contents in self.withheld.lock().drain(..) {
            socket.try_send(&Transmit { contents: &contents, ..datagram.clone() })?;
        }
        self.has_forged.store(true, Ordering::SeqCst);
        self.elsewhere.send_to(datagram.contents, datagram.destination).map(drop)
    }

    fn takes(&self, _: &[u8]) -> bool {
        self.is_answered.store(true, Ordering::SeqCst);
        true
    }
}

/// The address that is judged is the one that the handshake proved. A thief at another one, who sends the first datagram after the
/// handshake from an address of `unlock_from`, is refused like any other. Mutated: with `migration(true)` in `server_config`, n1
/// opens its piece for the thief.
#[test]
fn an_address_that_is_forged_after_the_handshake_opens_nothing() {
    const ALLOWED: &str = "127.0.0.1";
    const ELSEWHERE: &str = "127.0.0.2";
    let settings = format!("unlock_from = ['{ALLOWED}/32']\n[timing]\nrenew_lock_after_ms = 3600000\n");
    let mut cluster = TestCluster::of(Cluster::builder().settings(&settings));
    let thief = Impostor::steal(&cluster, "n3");
    cluster.testnet.kill("n3").expect("dies");
    let plainly = |from: &str| {
        let endpoint =
            cluster.block(async { quinn::Endpoint::client(format!("{from}:0").parse().expect("an address")) });
        thief.ask_through(&cluster, "n1", &endpoint.expect("a socket")).expect("connects")
    };
    // The controls: the address alone makes the difference.
    cluster.until("n1 to give the piece", || (plainly(ALLOWED) == LockOpenCode::Ok).then_some(()));
    assert_eq!(plainly(ELSEWHERE), LockOpenCode::Denied);
    let forging = |from: &str, forged: &str| {
        cluster.until("a handshake that the lost datagram does not hold up for too long", || {
            let (endpoint, forger) = cluster.block(async {
                let forger = Forger::at(forged);
                (wire::endpoint(from.parse().expect("an address"), forger.clone()), forger)
            });
            let code = thief.ask_through(&cluster, "n1", &endpoint).ok()?;
            assert!(forger.has_forged.load(Ordering::SeqCst), "the control: a datagram was forged");
            Some(code)
        })
    };
    for _ in 0..10 {
        assert_eq!(forging(ELSEWHERE, ALLOWED), LockOpenCode::Denied);
    }
    // Nor does a forged datagram take anything from the owner of the address.
    assert_eq!(forging(ALLOWED, ELSEWHERE), LockOpenCode::Ok);
    let alarms = cluster.block(cluster.client(None).alarms()).expect("answers");
    let alarm = alarms.into_iter().find(|alarm| alarm.code == "foreign_address").expect("an alarm");
    assert!(alarm.message.contains(ELSEWHERE), "{alarm:?}");
}
