//! Where the pin lies and from where a node may be unlocked: two settings that make a stolen disk less useful.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use quorate_client::wire::Phase;
use quorate_node::vault;
use quorate_shares::lock::{Lock, PinPlace};
use quorate_testnet::cluster::Special;
use quorate_testnet::{Cluster, thief};

use crate::harness::Site;

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// One renewal, right after the start.
const SOON: &str = "[timing]\nrenew_lock_after_ms = 100\n";

fn configure(site: &Site, node: &str, settings: &str) {
    fs::write(site.cluster.directory().config(node), settings).expect("our own directory");
}

fn lock_of(site: &Site, node: &str) -> Lock {
    let stolen = tempfile::tempdir().expect("a directory");
    let disk = site.cluster.steal(&[node], stolen.path()).expect("steals").remove(0);
    vault::inspect(&disk).expect("a vault").lock.expect("a lock")
}

fn rob(site: &Site) -> thief::Loot {
    let stolen = tempfile::tempdir().expect("a directory");
    thief::rob(&site.cluster.steal(&NODES, stolen.path()).expect("steals"))
}

fn restart(site: &mut Site, node: &str) {
    site.cluster.kill(node).expect("dies");
    site.start(&[node]);
    site.cluster.wait_serving(&[node]).expect("boots");
}

/// Starts `node`, which ends at once and names `missing` as it does.
fn refuses_to_start(site: &mut Site, node: &str, missing: &str) {
    let (status, said) = site.cluster.start_and_wait_end(node, &Special::default()).expect("ends by itself");
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains(missing) && said.contains("hint: make the pin available again"), "{said}");
}

/// T13: founded with pins elsewhere; all drives together open nothing. Without its pin a node refuses to start, with its peers
/// there and without them, and names it; with it, it starts. Mutated: a missing pin is made again.
#[test]
fn t13_without_its_pin_a_node_does_not_start() {
    let pins = tempfile::tempdir().expect("another device");
    let settings = format!("pin_file = '{}/{{name}}.pin'\n", pins.path().display());
    let mut site = Site::of(Cluster::builder().settings(settings));
    site.create("key");
    let ciphertext = site.encrypt(None, "key", b"secret").expect("encrypts");
    for node in NODES {
        let pin = fs::metadata(pins.path().join(format!("{node}.pin"))).expect("it was made");
        assert_eq!((pin.len(), pin.permissions().mode() & 0o7777), (32, 0o600), "{node}");
    }
    let loot = rob(&site);
    assert!(loot.is_nothing(), "{loot}");

    let (pin, away) = (pins.path().join("n1.pin"), pins.path().join("away"));
    let named = pin.display().to_string();
    site.cluster.kill("n1").expect("dies");
    fs::rename(&pin, &away).expect("ours");
    refuses_to_start(&mut site, "n1", &named);
    site.kill_all();
    refuses_to_start(&mut site, "n1", &named);
    assert!(!pin.exists(), "nothing was made in its place");
    fs::rename(&away, &pin).expect("ours");
    site.start(&NODES);
    site.cluster.wait_serving(&NODES).expect("boots");
    assert_eq!(site.decrypt(Some("n1"), &ciphertext).expect("decrypts"), b"secret");
}

/// A running node moves its pin where the configuration says, and back. The thief with two drives is the control: he has the
/// keys before and after, and not in between. Mutated: a pin that stays wherever the last lock had it.
#[test]
fn a_pin_moves_where_the_configuration_says() {
    let mut site = Site::with_lasting_locks();
    site.create("key");
    let robbed = |site: &Site| {
        let stolen = tempfile::tempdir().expect("a directory");
        thief::rob(&site.cluster.steal(&["n1", "n2"], stolen.path()).expect("steals")).keys.len()
    };
    assert_eq!(robbed(&site), 1, "the control: the pins lie in the vaults");
    let pins = tempfile::tempdir().expect("another device");
    let pin = pins.path().join("n1.pin");
    configure(&site, "n1", &format!("pin_file = '{}'\n{SOON}", pin.display()));
    restart(&mut site, "n1");
    let elsewhere = PinPlace::File(pin.display().to_string());
    site.until("the pin to move", || (*lock_of(&site, "n1").pin() == elsewhere).then_some(()));
    assert_eq!(robbed(&site), 0);
    configure(&site, "n1", "[timing]\nrenew_lock_after_ms = 3600000\n");
    restart(&mut site, "n1");
    assert_eq!(*lock_of(&site, "n1").pin(), elsewhere, "the control: nothing moves but with a new lock");

    configure(&site, "n1", SOON);
    restart(&mut site, "n1");
    site.until("the pin to move back", || matches!(lock_of(&site, "n1").pin(), PinPlace::Inline(_)).then_some(()));
    fs::remove_file(&pin).expect("of no use any more");
    restart(&mut site, "n1");
    assert_eq!(robbed(&site), 1);
}

/// A pin that is taken away under a running node is missed at the next renewal, while it can still be put back.
#[test]
fn a_missing_pin_is_an_alarm_before_it_is_needed() {
    let mut site = Site::with_lasting_locks();
    let pins = tempfile::tempdir().expect("another device");
    let [pin, away] = ["pin", "away"].map(|name| pins.path().join(name));
    let settings =
        |after_ms: u32| format!("pin_file = '{}'\n[timing]\nrenew_lock_after_ms = {after_ms}\n", pin.display());
    configure(&site, "n1", &settings(100));
    restart(&mut site, "n1");
    site.until("the pin to move", || matches!(lock_of(&site, "n1").pin(), PinPlace::File(_)).then_some(()));
    configure(&site, "n1", &settings(2_000));
    restart(&mut site, "n1");
    fs::rename(&pin, &away).expect("ours");
    let client = site.client(None);
    let alarm = site.until("the pin to be missed", || {
        let alarms = site.block(client.alarms()).ok()?;
        alarms.into_iter().find(|alarm| alarm.code == "pin_missing")
    });
    assert!(alarm.message.contains(&pin.display().to_string()), "{alarm:?}");
    let generation = lock_of(&site, "n1").generation();
    fs::rename(&away, &pin).expect("ours");
    site.until("the renewal to be made up for", || (lock_of(&site, "n1").generation() > generation).then_some(()));
}

/// The pin as a systemd credential: what `CREDENTIALS_DIRECTORY` holds is used, and missed by name.
#[test]
fn a_pin_may_be_a_systemd_credential() {
    let mut site = Site::with_lasting_locks();
    let credentials = tempfile::tempdir().expect("a directory");
    fs::write(credentials.path().join("quorate.pin"), [7; 32]).expect("ours");
    let variable = ("CREDENTIALS_DIRECTORY".to_owned(), credentials.path().display().to_string());
    site.cluster.set_environment("n2", vec![variable]).expect("a node");
    configure(&site, "n2", &format!("pin_credential = 'quorate.pin'\n{SOON}"));
    restart(&mut site, "n2");
    let moved = |site: &Site| *lock_of(site, "n2").pin() == PinPlace::Credential("quorate.pin".to_owned());
    site.until("the pin to move", || moved(&site).then_some(()));
    restart(&mut site, "n2");
    site.cluster.kill("n2").expect("dies");
    site.cluster.set_environment("n2", Vec::new()).expect("a node");
    refuses_to_start(&mut site, "n2", "the pin is the systemd credential quorate.pin");
}

/// `unlock_from`: a node that asks from elsewhere stays locked, says why, and raises an alarm; from there it is let in.
/// Mutated: without the check n3 serves at once.
#[test]
fn a_node_is_unlocked_only_from_the_networks_that_are_named() {
    let mut site = Site::of(Cluster::builder().settings("unlock_from = ['10.9.0.0/16']\n"));
    site.cluster.kill("n3").expect("dies");
    site.start(&["n3"]);
    let client = site.client(None);
    let alarm = site.until("an alarm", || {
        let alarms = site.block(client.alarms()).ok()?;
        alarms.into_iter().find(|alarm| alarm.code == "foreign_address")
    });
    assert!(alarm.message.contains("127.0.0.1"), "{alarm:?}");
    let said = site.until("n3 to say why it is locked", || site.cluster.status("n3").ok()?.operation);
    assert!(said.step.contains("not allowed"), "{said:?}");
    assert_eq!(site.cluster.status("n3").expect("answers").public.phase, Phase::Locked);
    site.kill_all();
    for node in NODES {
        configure(&site, node, "unlock_from = ['fd00::/8', '127.0.0.0/8']\n");
    }
    site.start(&NODES);
    site.cluster.wait_serving(&NODES).expect("boots");
}
