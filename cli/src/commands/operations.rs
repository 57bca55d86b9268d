//! `node remove` and `node revoke`, which start an operation and show its progress. Ctrl-C stops only the waiting: the
//! operation continues. `node invite` and `node replace` only prepare what `node join` starts.

use std::time::{Duration, Instant};

use quorate_client::wire::{Progress, RevocationProgress, Stage, WireError};
use quorate_client::{Client, Code, Error, NodeName, Options, Removal};
use quorate_shares::ids::Epoch;
use serde_json::json;
use zeroize::Zeroizing;

use crate::args::{Format, Invite, Remove, Replace, Revoke};
use crate::commands::invitation;
use crate::failure::Failure;
use crate::reach::cluster::Cluster;
use crate::terminal::input::read_line;
use crate::terminal::interrupt::Interrupt;
use crate::terminal::output;
use crate::{CONFIRMATION, Session, exit};

/// Pause between two requests for the progress.
const POLL_PAUSE: Duration = Duration::from_millis(100);
/// How often the number of remaining keys is shown while the step stays the same.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// Longest confirmation in bytes. The rest of a longer line is not read.
const CONFIRMATION_BYTES_MAX: usize = 1024;

pub(crate) async fn remove(session: &mut Session<'_>, options: Remove) -> Result<u8, Failure> {
    let name = &options.name;
    let cluster = Cluster::open_without(session, std::slice::from_ref(name), Options::default()).await?;
    let what = format!("{name} will leave the cluster: every key is reshared among the others, without {name}.");
    let cluster = confirm(session, options.yes, cluster, &what, std::slice::from_ref(name)).await?;
    let terms = Removal { accept_no_redundancy: options.accept_no_redundancy, abandon: options.abandon };
    let mut interrupt = Interrupt::listen()?;
    let begun = tokio::select! {
        begun = cluster.client.remove_node(name, &terms) => begun,
        () = interrupt.pressed() => return unanswered(session),
    };
    let (cluster, operation) = cluster.go_on(session, std::slice::from_ref(name), begun).await?;
    if options.no_wait {
        session.note("it continues without this command; `quorate status` shows the progress");
        return done(session, cluster, std::slice::from_ref(name), operation, None).await;
    }
    let end = |progress: &Progress| progress.stage != Stage::Runs;
    let names = std::slice::from_ref(name);
    let Some(last) = watch(session, &cluster.client, &mut interrupt, (operation, names), end).await? else {
        return interrupted(session);
    };
    if last.stage == Stage::Preempted {
        let failure = Failure::new(exit::CONFLICT, format!("a revocation came before the removal of {name} was done"));
        return Err(failure.hint("`quorate node list` shows who is a member now"));
    }
    session.note(&format!("{name} is out of the cluster; stop its daemon and erase its disk"));
    done(session, cluster, std::slice::from_ref(name), operation, None).await
}

pub(crate) async fn revoke(session: &mut Session<'_>, options: Revoke) -> Result<u8, Failure> {
    let names = join(&options.names);
    let cluster = Cluster::open_without(session, &options.names, Options::default()).await?;
    let what = format!("All other nodes will refuse {names} from now on, for ever, and every key is reshared.");
    let cluster = confirm(session, options.yes, cluster, &what, &options.names).await?;
    let mut interrupt = Interrupt::listen()?;
    let begun = tokio::select! {
        begun = cluster.client.revoke_nodes(&options.names, &options.expect_back) => begun,
        () = interrupt.pressed() => return unanswered(session),
    };
    let (cluster, operation) = cluster.go_on(session, &options.names, begun).await?;
    let end = |progress: &Progress| match (&progress.revocation, options.wait) {
        (Some(revocation), false) => revocation.leases_over,
        (Some(revocation), true) => revocation.leases_over && progress.stage != Stage::Runs,
        (None, _) => progress.stage != Stage::Runs,
    };
    let names = &options.names;
    let Some(last) = watch(session, &cluster.client, &mut interrupt, (operation, names), end).await? else {
        return interrupted(session);
    };
    if last.stage == Stage::Runs {
        session.note("the rest continues without this command; `quorate status` shows the progress");
    }
    if options.rotate_keys && !rotate_all(session, &cluster.client, &mut interrupt).await? {
        return Ok(exit::INTERRUPTED);
    }
    done(session, cluster, &options.names, operation, last.revocation).await
}

pub(crate) async fn invite(session: &mut Session<'_>, options: Invite) -> Result<u8, Failure> {
    let cluster = Cluster::open(session).await?;
    let answer = cluster.client.invite_node(options.name.as_ref(), options.ttl).await;
    cluster.close(session).await;
    let text = answer?;
    let mut line = Zeroizing::new(Vec::with_capacity(text.expose().len() + 32));
    match session.common.output {
        Format::Json => {
            line.extend_from_slice(b"{\"invitation\":\"");
            line.extend_from_slice(text.expose());
            line.extend_from_slice(b"\"}\n");
        }
        Format::Text => {
            line.extend_from_slice(text.expose());
            line.push(b'\n');
        }
    }
    session.result(&line)?;
    session.note("on the new node: quorate node join -   (the line is a secret until it is used)");
    Ok(exit::DONE)
}

pub(crate) async fn replace(session: &mut Session<'_>, options: Replace) -> Result<u8, Failure> {
    let name = &options.name;
    let invitation = invitation::read(session, &options.invitation)?;
    let cluster = Cluster::open(session).await?;
    let what = format!("The node that joins with this invitation replaces {name}, which is then revoked for ever.");
    let cluster = confirm(session, options.yes, cluster, &what, std::slice::from_ref(name)).await?;
    let answer = cluster.client.replace_node(name, invitation.as_bytes()).await;
    cluster.finish(session, std::slice::from_ref(name), answer).await?;
    session.note(&format!("the node that joins with this invitation replaces {name}"));
    if session.common.output == Format::Json {
        session.result(format!("{}\n", json!({ "replaces": name.as_str() })).as_bytes())?;
    }
    Ok(exit::DONE)
}

/// Shows the progress of an operation by which `names` leave, until it is `enough`. `None` if Ctrl-C was pressed.
async fn watch(
    session: &mut Session<'_>,
    client: &Client,
    interrupt: &mut Interrupt,
    (operation, names): (Epoch, &[NodeName]),
    enough: impl Fn(&Progress) -> bool,
) -> Result<Option<Progress>, Failure> {
    let (mut shown, mut last) = (Shown::default(), None);
    loop {
        let progress = tokio::select! {
            progress = client.progress(operation) => progress,
            () = interrupt.pressed() => return Ok(None),
        };
        match progress {
            Ok(progress) => {
                shown.show(session, &progress, Instant::now());
                if enough(&progress) {
                    return Ok(Some(progress));
                }
                last = Some(progress);
            }
            // The node that answers may be a new leader, or may just have learned that it is removed.
            Err(error) if error.code().retryable() => shown.step(session, "waiting for a quorum"),
            // It is over, and other operations followed. The list of members shows how it ended.
            Err(error) if error.code() == Code::NotFound && last.is_some() => {
                let nodes = client.nodes().await?;
                let out = names.iter().all(|name| nodes.iter().all(|node| node.name != *name));
                let stage = if out { Stage::Done } else { Stage::Preempted };
                return Ok(last.map(|last| Progress { stage, ..last }));
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = tokio::time::sleep(POLL_PAUSE) => {}
            () = interrupt.pressed() => return Ok(None),
        }
    }
}

/// What the user has already seen.
#[derive(Default)]
struct Shown {
    step: String,
    /// When the step or its number was last shown.
    since: Option<Instant>,
    decisive: bool,
    dead: Option<(u8, u8)>,
    names: Option<(u8, u8)>,
}

impl Shown {
    fn show(&mut self, session: &mut Session<'_>, progress: &Progress, now: Instant) {
        if let Some(revocation) = &progress.revocation {
            self.revocation(session, revocation);
        }
        let operation = &progress.operation;
        if operation.step.is_empty() {
            return;
        }
        let waiting = match operation.waiting_for.is_empty() {
            true => String::new(),
            false => format!(" (waiting for {})", operation.waiting_for.join(", ")),
        };
        let step = format!("{}{waiting}", operation.step);
        // The number of remaining keys changes with each request; the step does not.
        let counts = self.since.is_some_and(|since| now.duration_since(since) >= COUNT_EVERY);
        if self.step != step {
            self.since = Some(now);
        } else if let Some(left) = operation.left.filter(|_| counts) {
            session.note(&format!("  {}: {left} key versions left", output::printable(&step)));
            self.since = Some(now);
        }
        self.step(session, &step);
    }

    fn step(&mut self, session: &mut Session<'_>, step: &str) {
        if self.step != step {
            session.note(&format!("  {}", output::printable(step)));
            step.clone_into(&mut self.step);
        }
    }

    fn revocation(&mut self, session: &mut Session<'_>, now: &RevocationProgress) {
        if now.decisive && !self.decisive {
            session.note("decisive");
            self.decisive = true;
        }
        let (dead, names) = ((now.erased, now.erased_needed), (now.renewed, now.remaining));
        if self.decisive && self.dead.is_none() && now.disk_is_dead() {
            session.note(&format!("old disk: dead {} of {}", dead.0, dead.1));
            self.dead = Some(dead);
        }
        if self.decisive && self.names.is_none() && now.names_are_safe() {
            session.note(&format!("names safe: locks renewed {} of {}", names.0, names.1));
            self.names = Some(names);
        }
    }
}

/// Says what will happen and asks the user to type the names, unless the command line has --yes. A name that no node has
/// is refused before the question.
async fn confirm(
    session: &mut Session<'_>,
    yes: bool,
    cluster: Cluster,
    what: &str,
    names: &[NodeName],
) -> Result<Cluster, Failure> {
    if yes {
        return Ok(cluster);
    }
    let status = cluster.client.status().await?;
    // Near the end of an operation the node is out of the list, and a person who waits for it may ask again.
    let under_way = status.operation.map(|operation| operation.nodes).unwrap_or_default();
    let is_under_way = |name: &NodeName| under_way.iter().any(|node| node == name.as_str());
    let is_known = |name: &NodeName| status.nodes.iter().any(|node| node.name == *name) || is_under_way(name);
    if let Some(unknown) = names.iter().find(|name| !is_known(name)) {
        let nodes: Vec<_> = status.nodes.iter().map(|node| node.name.as_str()).collect();
        let error = WireError::new(Code::NotFound, format!("no node named {unknown}"));
        let error = error.hint(format!("the nodes are {}", nodes.join(", ")));
        return Err(cluster.with_similar_node(session, names, Error::from(error)).await);
    }
    let names = names.iter().map(NodeName::as_str).collect::<Vec<_>>().join(" ");
    session.note(what);
    session.note(&format!("Type {names} to go on:"));
    let line = read_line(session.stdin(CONFIRMATION)?, CONFIRMATION_BYTES_MAX).ok().flatten().unwrap_or_default();
    if String::from_utf8_lossy(&line).trim() == names {
        return Ok(cluster);
    }
    Err(Failure::new(exit::FAILED, "not confirmed, so nothing was done").hint("--yes does it without asking"))
}

/// Creates a new version of every key. Returns `false` if Ctrl-C was pressed before the last one had a new version.
async fn rotate_all(session: &mut Session<'_>, client: &Client, interrupt: &mut Interrupt) -> Result<bool, Failure> {
    let keys = tokio::select! {
        keys = client.list_keys() => keys?,
        () = interrupt.pressed() => {
            session.note("no key has a new version yet: `quorate key rotate` makes one");
            return Ok(false);
        }
    };
    let all = keys.len();
    for (done, key) in keys.iter().enumerate() {
        tokio::select! {
            rotated = client.rotate_key(&key.name, None) => drop(rotated?),
            () = interrupt.pressed() => {
                session.note(&format!("{done} of {all} keys have a new version; `quorate key rotate` goes on with {}", key.name));
                return Ok(false);
            }
        }
    }
    session.note(&format!("{all} keys have a new version; older ciphertexts stay readable"));
    Ok(true)
}

async fn done(
    session: &mut Session<'_>,
    cluster: Cluster,
    names: &[NodeName],
    operation: Epoch,
    revocation: Option<RevocationProgress>,
) -> Result<u8, Failure> {
    cluster.close(session).await;
    session.note("`quorate cluster export` prints the client file as it is now");
    if session.common.output == Format::Json {
        let names: Vec<_> = names.iter().map(NodeName::as_str).collect();
        let mut result = json!({ "nodes": names, "epoch": operation.0 });
        if let Some(revocation) = revocation {
            result["decisive"] = revocation.decisive.into();
            result["disk_dead"] = revocation.disk_is_dead().into();
            result["names_safe"] = revocation.names_are_safe().into();
        }
        session.result(format!("{result}\n").as_bytes())?;
    }
    Ok(exit::DONE)
}

/// Ctrl-C was pressed before the cluster answered.
fn unanswered(session: &mut Session<'_>) -> Result<u8, Failure> {
    session.note("it may or may not have started: `quorate status` shows which; running it again is safe");
    Ok(exit::INTERRUPTED)
}

fn interrupted(session: &mut Session<'_>) -> Result<u8, Failure> {
    session.note("it continues without this command; `quorate status` shows the progress");
    Ok(exit::INTERRUPTED)
}

fn join(names: &[NodeName]) -> String {
    names.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use quorate_client::wire::OperationStatus;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn a_long_step_shows_from_time_to_time_how_much_is_left() {
        let progress = |left: u64| {
            let (name, step) = ("remove n2".to_owned(), "reshares to epoch 7".to_owned());
            let operation = OperationStatus { step, left: Some(left), ..OperationStatus::named(name) };
            Progress { stage: Stage::Runs, operation, revocation: None }
        };
        let (mut input, mut out, mut err) = (std::io::empty(), Vec::new(), Vec::new());
        let common = Cli::try_parse_from(["quorate", "status"]).expect("a command line").common;
        let mut session = Session::new(common, &mut input, &mut out, &mut err);
        let (mut shown, begin) = (Shown::default(), Instant::now());
        for second in 0..=11 {
            shown.show(&mut session, &progress(1000 - second), begin + Duration::from_secs(second));
        }
        let lines = "  reshares to epoch 7\n  reshares to epoch 7: 995 key versions left\n  reshares to epoch 7: 990 key versions left\n";
        assert_eq!(String::from_utf8(err).expect("text"), lines);
    }

    /// What the change of voters waits for is part of the step. Mutated: cut off at the colon.
    #[test]
    fn a_step_is_shown_as_it_is() {
        let (mut input, mut out, mut err) = (std::io::empty(), Vec::new(), Vec::new());
        let common = Cli::try_parse_from(["quorate", "status"]).expect("a command line").common;
        let mut session = Session::new(common, &mut input, &mut out, &mut err);
        let step = "changes the voters: waiting for n3: without it the change would have no majority".to_owned();
        let operation = OperationStatus { step, ..OperationStatus::named("revoke n2") };
        let progress = Progress { stage: Stage::Runs, operation, revocation: None };
        Shown::default().show(&mut session, &progress, Instant::now());
        let shown = "  changes the voters: waiting for n3: without it the change would have no majority\n";
        assert_eq!(String::from_utf8(err).expect("text"), shown);
    }
}
