//! `node remove` and `node revoke`, which start an operation and show its progress. Ctrl-C stops only the waiting: the
//! operation continues. `node invite` and `node replace` only prepare what `node join` starts.

use std::time::{Duration, Instant};

use quorate_client::wire::{Progress, RevocationProgress, Stage};
use quorate_client::{Client, Code, Error, NodeName, Options, Removal};
use quorate_shares::ids::Epoch;
use serde_json::json;
use zeroize::Zeroizing;

use crate::args::{Format, Invite, Remove, Replace, Revoke};
use crate::commands::founding;
use crate::failure::Failure;
use crate::reach::cluster::Cluster;
use crate::terminal::interrupt::Interrupt;
use crate::terminal::nearest::nearest;
use crate::{Session, exit};

/// Pause between two requests for the progress.
const POLL_PAUSE: Duration = Duration::from_millis(100);
/// How often the number of remaining keys is shown while the step stays the same.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// Longest confirmation in bytes. The rest of a longer line is not read.
const CONFIRMATION_BYTES_MAX: usize = 1024;

pub(crate) async fn remove(session: &mut Session<'_>, options: Remove) -> Result<u8, Failure> {
    let name = &options.name;
    let what = format!("{name} will leave the cluster: every key is reshared among the others, without {name}.");
    confirm(session, options.yes, &what, std::slice::from_ref(name))?;
    let cluster = Cluster::open_without(session, std::slice::from_ref(name), Options::default()).await?;
    let terms = Removal { accept_no_redundancy: options.accept_no_redundancy, abandon: options.abandon };
    let mut interrupt = Interrupt::listen()?;
    let begun = tokio::select! {
        begun = cluster.client.remove_node(name, &terms) => begun,
        () = interrupt.pressed() => return unanswered(session),
    };
    let operation = begun.map_err(|error| with_similar_node(error, &cluster))?;
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
    let what = format!("All other nodes will refuse {names} from now on, for ever, and every key is reshared.");
    confirm(session, options.yes, &what, &options.names)?;
    let cluster = Cluster::open_without(session, &options.names, Options::default()).await?;
    let mut interrupt = Interrupt::listen()?;
    let begun = tokio::select! {
        begun = cluster.client.revoke_nodes(&options.names) => begun,
        () = interrupt.pressed() => return unanswered(session),
    };
    let operation = begun.map_err(|error| with_similar_node(error, &cluster))?;
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
    if options.rotate_keys {
        rotate_all(session, &cluster.client).await?;
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
    let from_stdin = options.invitation == "-";
    let invitation = if from_stdin { founding::read_invitation(session)? } else { options.invitation.into() };
    if !options.yes && !from_stdin {
        let what = format!("The node that joins with this invitation replaces {name}, which is then revoked for ever.");
        confirm(session, false, &what, std::slice::from_ref(name))?;
    } else if !options.yes {
        return Err(Failure::new(
            exit::USAGE,
            "the name cannot be confirmed while the invitation comes from standard input",
        )
        .hint("say --yes"));
    }
    let cluster = Cluster::open(session).await?;
    let answer = cluster.client.replace_node(name, invitation.trim().as_bytes()).await;
    answer.map_err(|error| with_similar_node(error, &cluster))?;
    cluster.close(session).await;
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
        // The number of remaining keys changes with each request; the step does not.
        let (kind, count) = operation.step.split_once(':').unwrap_or((&operation.step, ""));
        let waiting = match operation.waiting_for.is_empty() {
            true => String::new(),
            false => format!(" (waiting for {})", operation.waiting_for.join(", ")),
        };
        let step = format!("{kind}{waiting}");
        let counts = !count.is_empty() && self.since.is_some_and(|since| now.duration_since(since) >= COUNT_EVERY);
        if self.step != step {
            self.since = Some(now);
        } else if counts {
            session.note(&format!("  {step}:{count}"));
            self.since = Some(now);
        }
        self.step(session, &step);
    }

    fn step(&mut self, session: &mut Session<'_>, step: &str) {
        if self.step != step {
            session.note(&format!("  {step}"));
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

/// Says what will happen and asks the user to type the names, unless the command line has --yes.
fn confirm(session: &mut Session<'_>, yes: bool, what: &str, names: &[NodeName]) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let names = names.iter().map(NodeName::as_str).collect::<Vec<_>>().join(" ");
    session.note(what);
    session.note(&format!("Type {names} to go on:"));
    let (mut line, mut byte) = (Vec::new(), [0]);
    while line.len() < CONFIRMATION_BYTES_MAX && matches!(session.input.read(&mut byte), Ok(1)) && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    if String::from_utf8_lossy(&line).trim() == names {
        return Ok(());
    }
    Err(Failure::new(exit::FAILED, "not confirmed, so nothing was done").hint("--yes does it without asking"))
}

/// Creates a new version of every key.
async fn rotate_all(session: &mut Session<'_>, client: &Client) -> Result<(), Failure> {
    let keys = client.list_keys().await?;
    for key in &keys {
        client.rotate_key(&key.name, None).await?;
    }
    session.note(&format!("{} keys have a new version; older ciphertexts stay readable", keys.len()));
    Ok(())
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

fn with_similar_node(error: Error, cluster: &Cluster) -> Failure {
    let code = error.code();
    let failure = Failure::from(error);
    let typed = failure.message.strip_prefix("no node named ");
    let known = cluster.file.nodes.iter().map(|node| node.name.as_str());
    match typed.and_then(|typed| nearest(typed, known)).filter(|_| code == Code::NotFound) {
        Some(name) => {
            let hint = format!("did you mean {name}?");
            failure.hint(hint)
        }
        None => failure,
    }
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
            let step = format!("reshares to epoch 7: {left} key versions left");
            let operation = OperationStatus { name: "remove n2".to_owned(), step, waiting_for: Vec::new() };
            Progress { stage: Stage::Runs, operation, revocation: None }
        };
        let (mut input, mut out, mut err) = (std::io::empty(), Vec::new(), Vec::new());
        let common = Cli::try_parse_from(["quorate", "status"]).expect("a command line").common;
        let mut session = Session { common, input: &mut input, out: &mut out, err: &mut err };
        let (mut shown, begin) = (Shown::default(), Instant::now());
        for second in 0..=11 {
            shown.show(&mut session, &progress(1000 - second), begin + Duration::from_secs(second));
        }
        let lines = "  reshares to epoch 7\n  reshares to epoch 7: 995 key versions left\n  reshares to epoch 7: 990 key versions left\n";
        assert_eq!(String::from_utf8(err).expect("text"), lines);
    }
}
