//! The steps of the story, in order.

use std::fs;
use std::path::{Path, PathBuf};

use quorate_client::wire::Phase;
use quorate_shares::context::Context;
use quorate_shares::envelope::Ciphertext;

use super::Narrator;
use crate::base::error::Error;
use crate::cluster::{Cluster, PATIENCE};
use crate::procs::tool::Tool;
use crate::thief::canary::{self, Canary};
use crate::thief::{self, Loot};

const KEY: &str = "customers/records";
const CONTEXT: &str = "table=customers";
/// One line of the demo's file, in the plain: what a thief would love to read.
const SECRET_LINE: &str = "4711,Ada Lovelace,DE89 3704 0044 0532 0130 00";

/// The locks of founding stay: what the thief says must not depend on how long this machine takes.
const LASTING_LOCKS: &str = "[timing]\nrenew_lock_after_ms = 3600000\n";

/// Exit code of `status` when an alarm is open.
const EXIT_ALARM: i32 = 7;
/// Exit code of the command line when no quorum is there.
const EXIT_NO_QUORUM: i32 = 3;

pub(super) fn all(directory: Option<PathBuf>, narrator: &mut Narrator<'_>) -> Result<(), Error> {
    let mut builder = Cluster::builder().spares(1).settings(LASTING_LOCKS);
    if let Some(directory) = directory {
        builder = builder.directory(directory);
    }
    let mut cluster = narrator.step("Found a cluster of three nodes, any two of which make a quorum", |seen| {
        seen.push("n1$ quorate cluster init --founders 3".to_owned());
        seen.push("n2$ quorate node join -        n3$ quorate node join -".to_owned());
        let cluster = builder.found()?;
        seen.push("n1, n2 and n3 serve".to_owned());
        Ok(cluster)
    })?;
    let files = Files::make(&cluster)?;

    narrator.step("Create a key", |seen| {
        run(&cluster, seen, &["key", "create", KEY])?;
        seen.push("split among the three; no node holds it, and no disk".to_owned());
        Ok(())
    })?;
    narrator.step("Encrypt a file at n1, decrypt it at n3", |seen| {
        run(&cluster, seen, &["encrypt", KEY, "-c", CONTEXT, "--node", "n1", &files.plain, "-o", &files.sealed])?;
        decrypt(&cluster, &files, "n3", seen)
    })?;
    narrator.step("Kill all three at once, and start them again", |seen| {
        outage(&mut cluster, &["n1", "n2", "n3"], seen)?;
        decrypt(&cluster, &files, "n2", seen)?;
        seen.push("no person typed anything".to_owned());
        Ok(())
    })?;
    narrator.step("Kill all three, and start only two", |seen| {
        outage(&mut cluster, &["n1", "n2"], seen)?;
        decrypt(&cluster, &files, "n2", seen)
    })?;
    narrator.step("Kill all three, and start only one", |seen| alone(&mut cluster, &files, seen))?;
    narrator.step("Start the other two as well", |seen| {
        for name in ["n2", "n3"] {
            cluster.start(name)?;
        }
        cluster.wait_serving(&["n1", "n2", "n3"])?;
        decrypt(&cluster, &files, "n1", seen)
    })?;

    let (one, in_plain) = narrator.step("Steal the disk of n2 while it runs", |seen| {
        let disks = cluster.steal(&["n2"], &files.loot.join("one"))?;
        let loot = rob(&disks, seen);
        expect(loot.is_nothing(), "a thief with one disk got something")?;
        Ok((disks, loot.in_plain))
    })?;
    let loot = narrator.step(
        "Steal the disks of n1 and n2: two disks are the threshold, so the same thief recovers the key",
        |seen| {
            let loot = rob(&cluster.steal(&["n1", "n2"], &files.loot.join("two"))?, seen);
            open_with_stolen_key(&loot, &files)?;
            seen.push(format!("with two disks the thief reads {}: two of three is the threshold", name(&files.sealed)));
            Ok(loot)
        },
    )?;
    narrator.step("Look on the one stolen disk for everything that the two gave away", |seen| {
        search_finds_nothing(&one, loot, &in_plain, seen)
    })?;

    narrator.step("Let a fourth node join", |seen| {
        seen.push("$ quorate node invite".to_owned());
        seen.push("n4$ quorate node join -".to_owned());
        cluster.join("n4")?;
        export(&cluster)?;
        decrypt(&cluster, &files, "n4", seen)
    })?;
    narrator.step("Revoke n2, whose disk was stolen", |seen| revoke(&cluster, "n2", seen))?;
    narrator.step("The stolen disk once more, with the disk of any one of the others as it is now", |seen| {
        for name in ["n1", "n3", "n4"] {
            let survivor = cluster.steal(&[name], &files.loot.join("after"))?;
            let loot = thief::rob(&[one.clone(), survivor].concat());
            expect(loot.is_nothing(), "the disk of a revoked node is worth something")?;
            seen.push(format!("with the disk of {name}: {}", loot.to_string().lines().last().unwrap_or_default()));
        }
        Ok(())
    })?;
    narrator.step("Start n2 from the stolen disk", |seen| {
        cluster.kill("n2")?;
        put_back(&cluster, "n2", &one[0])?;
        cluster.start("n2")?;
        cluster.wait_phase("n2", Phase::Revoked)?;
        seen.push("n2 says: revoked".to_owned());
        let status = Tool::start(cluster.quorate(["status"]), b"")?.outcome(PATIENCE)?;
        expect(status.code == Some(EXIT_ALARM), "the other nodes raised no alarm")?;
        let said = String::from_utf8_lossy(&status.stdout).into_owned();
        let alarm = said.lines().find(|line| line.contains("no member any more"));
        // `ALARM n2: code: what happened (since when)`
        let message = alarm.and_then(|line| line.splitn(3, ": ").nth(2)?.split(" (").next());
        seen.push(format!("the others raise an alarm: {}", message.unwrap_or_default()));
        expect(alarm.is_some(), "the alarm does not say what happened")
    })?;
    cluster.terminate_all()
}

/// The client file as the cluster is now.
fn export(cluster: &Cluster) -> Result<(), Error> {
    let path = cluster.directory().client_file().display().to_string();
    cluster.run(["cluster", "export", "-o", &path], b"").map(drop)
}

/// Revokes a node, and shows what it says has become true.
fn revoke(cluster: &Cluster, node: &str, seen: &mut Vec<String>) -> Result<(), Error> {
    seen.push(format!("$ quorate node revoke {node}"));
    let finished = Tool::start(cluster.quorate(["node", "revoke", node, "--yes", "--wait"]), b"")?.outcome(PATIENCE)?;
    let lines: Vec<_> = finished.stderr.lines().filter(|line| !line.starts_with(' ')).collect();
    seen.extend(lines.iter().take(3).map(|line| (*line).to_owned()));
    let told = ["decisive", "old disk: dead", "names safe"];
    let all = lines.len() >= told.len() && lines.iter().zip(told).all(|(line, told)| line.starts_with(told));
    expect(finished.code == Some(0) && all, "the revocation did not come to its end")?;
    export(cluster)
}

/// Puts a stolen disk in the place of a node's own.
fn put_back(cluster: &Cluster, node: &str, disk: &Path) -> Result<(), Error> {
    let data = cluster.directory().data(node);
    for name in ["vault", "state"] {
        let (from, to) = (disk.join(name), data.join(name));
        let removed = if to.is_dir() { fs::remove_dir_all(&to) } else { fs::remove_file(&to) };
        removed.map_err(Error::io(to.display().to_string()))?;
        if from.is_dir() {
            crate::thief::steal::copy(&from, &to).map_err(Error::io(to.display().to_string()))?;
        } else {
            fs::copy(&from, &to).map(drop).map_err(Error::io(to.display().to_string()))?;
        }
    }
    Ok(())
}

/// What the story works on.
struct Files {
    plain: String,
    sealed: String,
    loot: PathBuf,
}

impl Files {
    fn make(cluster: &Cluster) -> Result<Self, Error> {
        let directory = cluster.directory().path();
        let path = |name: &str| directory.join(name).display().to_string();
        let files =
            Self { plain: path("customers.csv"), sealed: path("customers.csv.qrt"), loot: directory.join("stolen") };
        let text: String = (0..500).map(|number| format!("{number},{SECRET_LINE}\n")).collect();
        fs::write(&files.plain, text).map_err(Error::io(files.plain.clone()))?;
        Ok(files)
    }
}

/// Runs the command line and shows it as typed.
fn run(cluster: &Cluster, seen: &mut Vec<String>, args: &[&str]) -> Result<Vec<u8>, Error> {
    let shown: Vec<_> = args.iter().map(|arg| name(arg)).collect();
    seen.push(format!("$ quorate {}", shown.join(" ")));
    cluster.run(args.iter().copied(), b"")
}

fn decrypt(cluster: &Cluster, files: &Files, node: &str, seen: &mut Vec<String>) -> Result<(), Error> {
    let plain = run(cluster, seen, &["decrypt", "-c", CONTEXT, "--node", node, &files.sealed])?;
    let original = fs::read(&files.plain).map_err(Error::io(files.plain.clone()))?;
    expect(plain == original, "the file came back changed")?;
    seen.push(format!("{} bytes, the same as before", plain.len()));
    Ok(())
}

/// Kills every node and starts some.
fn outage(cluster: &mut Cluster, started: &[&str], seen: &mut Vec<String>) -> Result<(), Error> {
    kill_all(cluster, seen)?;
    started.iter().try_for_each(|name| cluster.start(name))?;
    cluster.wait_serving(started)?;
    seen.push(format!("{} serve again, by themselves", started.join(", ")));
    Ok(())
}

fn kill_all(cluster: &mut Cluster, seen: &mut Vec<String>) -> Result<(), Error> {
    seen.push("$ kill -9 n1 n2 n3".to_owned());
    cluster.names().iter().try_for_each(|name| cluster.kill(name))
}

fn alone(cluster: &mut Cluster, files: &Files, seen: &mut Vec<String>) -> Result<(), Error> {
    kill_all(cluster, seen)?;
    cluster.start("n1")?;
    let status = cluster.wait_phase("n1", Phase::Locked)?;
    seen.push(format!("n1 says: {}", status.public));
    let missing: Vec<_> = status.public.waiting_for.iter().map(|name| name.as_str()).collect();
    expect(missing == ["n2", "n3"], "n1 does not name the nodes that it waits for")?;
    let decrypt = cluster.quorate(["decrypt", "-c", CONTEXT, "--node", "n1", &files.sealed]);
    let finished = Tool::start(decrypt, b"")?.outcome(PATIENCE)?;
    seen.push(format!("$ quorate decrypt -c {CONTEXT} --node n1 {}", name(&files.sealed)));
    seen.extend(finished.stderr.lines().map(str::to_owned));
    expect(finished.code == Some(EXIT_NO_QUORUM) && finished.stdout.is_empty(), "one node alone did not refuse")
}

fn rob(disks: &[PathBuf], seen: &mut Vec<String>) -> Loot {
    let loot = thief::rob(disks);
    seen.extend(loot.to_string().lines().map(str::to_owned));
    loot
}

fn open_with_stolen_key(loot: &Loot, files: &Files) -> Result<(), Error> {
    let text = fs::read_to_string(&files.sealed).map_err(Error::io(files.sealed.clone()))?;
    let ciphertext = Ciphertext::parse_text(text.trim_end()).map_err(|error| Error::Story(error.to_string()))?;
    let context = CONTEXT.split_once('=').expect("the constant has one");
    let context = Context::new([context]).map_err(|error| Error::Story(error.to_string()))?;
    let plain = loot.keys.iter().find_map(|key| key.open(&ciphertext, &context));
    let original = fs::read(&files.plain).map_err(Error::io(files.plain.clone()))?;
    expect(plain == Some(original), "a thief with two disks did not get the key, so it proves nothing with one")
}

fn search_finds_nothing(
    disks: &[PathBuf],
    loot: Loot,
    in_plain: &[Canary],
    seen: &mut Vec<String>,
) -> Result<(), Error> {
    let mut canaries = loot.canaries;
    canaries.extend(Canary::text("a line of the file", SECRET_LINE));
    for disk in disks {
        let search =
            |canaries: &[Canary]| canary::search(disk, canaries).map_err(Error::io(disk.display().to_string()));
        expect(!search(in_plain)?.is_empty(), "the search misses what lies in plain, so it proves nothing")?;
        let sightings = search(&canaries)?;
        for sighting in &sightings {
            seen.push(format!("FOUND {} in {} at {}", sighting.what, sighting.file.display(), sighting.offset));
        }
        expect(sightings.is_empty(), "a stolen disk holds what it must not")?;
    }
    seen.push(format!("none of {} keys, shares, seeds and names is in any file", canaries.len()));
    seen.push("(the boot seed, which lies there in plain by design, was found: the search works)".to_owned());
    Ok(())
}

fn expect(holds: bool, otherwise: &str) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::Story(otherwise.to_owned())) }
}

/// The last part of a path; other words as they are.
fn name(word: &str) -> String {
    match word.starts_with('/') {
        true => Path::new(word).file_name().map_or_else(|| word.to_owned(), |name| name.to_string_lossy().into_owned()),
        false => word.to_owned(),
    }
}
