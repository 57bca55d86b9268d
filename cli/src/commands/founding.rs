//! `cluster init` and `node join`, with which a node gets its cluster. Both talk to the daemon of this machine, and
//! wait.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use quorate_client::wire::{AdminProgress, AdminRequest, AdminResponse, Phase};
use quorate_client::{Credential, CredentialKind, place};
use quorate_shares::order::is_label;
use serde_json::json;

use crate::args::{Format, Init, Join};
use crate::commands::invitation;
use crate::failure::Failure;
use crate::reach::cluster::{create_token, read_own_token, read_token, token_exists, token_path};
use crate::reach::daemon::{self, Conversation, Message};
use crate::terminal::interrupt::Interrupt;
use crate::{Session, exit, is_stream};

/// The name of the client file that `init` writes beside the token.
const CLIENT_FILE: &str = "cluster.toml";

/// Founds a cluster. This process draws the key of the first operator and writes it to the token file. The daemon gets only the
/// public half.
pub(crate) async fn init(session: &mut Session<'_>, options: Init) -> Result<u8, Failure> {
    check_options(&options)?;
    let token_path = token_path(session)?;
    if is_stream(&token_path) {
        return Err(Failure::new(exit::USAGE, "the operator key goes into a file, which must be there to continue")
            .hint("--token-file FILE"));
    }
    let client_file = token_path.with_file_name(CLIENT_FILE);
    if token_path.file_name() == client_file.file_name() {
        return Err(Failure::new(exit::USAGE, format!("{} is the name of the client file", token_path.display()))
            .hint("give the token file another name: --token-file FILE"));
    }
    let status = daemon::status(session).await?;
    refuse_token_in_data(&token_path, Path::new(&status.data_directory))?;
    let fresh = match status.public.phase {
        Phase::Uninitialised => true,
        Phase::Joining => false,
        phase => {
            let name = status.name.map_or_else(|| "this node".to_owned(), |name| name.to_string());
            return Err(Failure::new(exit::CONFLICT, format!("{name} belongs to a cluster already, and is {phase}"))
                .hint("`quorate cluster export --local -o FILE` writes its client file, `quorate status` shows it"));
        }
    };
    // Whatever it is: a link that leads nowhere would get the client file at the place that it names.
    if client_file.symlink_metadata().is_ok() {
        return Err(Failure::new(exit::CONFLICT, format!("the client file {} exists", client_file.display()))
            .hint("it may be that of another cluster: move it away, or name another directory with --token-file"));
    }
    let new_token = NewToken::at(&token_path);
    let token = if fresh { new_token.draw()? } else { new_token.find()? };

    let request = AdminRequest::Init {
        founders: options.founders,
        threshold: options.threshold,
        allow_solo: options.allow_solo,
        accept_no_redundancy: options.accept_no_redundancy,
        operator: token.public(),
        label: label(),
    };
    drop(token);
    let mut wait = Wait { new_token: Some(new_token), ..Wait::default() };
    let answer = wait.run(session, &request, false).await;
    if let (Err(_), Some(new_token)) = (&answer, wait.new_token) {
        new_token.discard_if_unknown(session).await;
    }
    let Some(answer) = answer? else {
        session.note(
            "founding continues without this command; `quorate node status` shows it, and the same command waits again",
        );
        return Ok(exit::INTERRUPTED);
    };
    let AdminResponse::Founded(file) = answer else { return Err(daemon::unexpected()) };
    let names: Vec<_> = file.nodes.iter().map(|node| node.name.to_string()).collect();
    // The cluster stands, whatever comes now: its operator must learn that first.
    session.note(&format!("founded cluster {} with {}", file.cluster, names.join(", ")));
    session.note(&format!(
        "operator key: {} (it may do everything; keep it safe, there is no other copy)",
        token_path.display()
    ));
    file.write_new(&client_file).map_err(|error| {
        Failure::new(exit::FAILED, format!("the cluster stands, but its client file cannot be written: {error}"))
            .hint("`quorate cluster export --local -o FILE` on a node writes it")
    })?;
    session.note(&format!("client file:  {}", client_file.display()));
    if session.common.output == Format::Json {
        let result = json!({
            "cluster": file.cluster.to_string(),
            "nodes": names,
            "client_file": client_file.display().to_string(),
            "token_file": token_path.display().to_string(),
        });
        session.result(format!("{result}\n").as_bytes())?;
    }
    Ok(exit::DONE)
}

/// Joins the cluster of an invitation.
pub(crate) async fn join(session: &mut Session<'_>, options: Join) -> Result<u8, Failure> {
    let invitation = invitation::read(session, &options.invitation)?;
    // Joining has no deadline. So check first that the daemon answers.
    daemon::status(session).await?;
    let request = AdminRequest::Join { invitation: invitation.to_string() };
    let Some(answer) = Wait::default().run(session, &request, options.no_wait).await? else {
        session.note(
            "joining continues without this command; `quorate node status` shows it, and the same command waits again",
        );
        return Ok(if options.no_wait { exit::DONE } else { exit::INTERRUPTED });
    };
    let AdminResponse::Joined { node, cluster } = answer else { return Err(daemon::unexpected()) };
    session.note(&format!("{node} serves in cluster {cluster}"));
    if session.common.output == Format::Json {
        let result = json!({ "node": node.as_str(), "cluster": cluster.to_string() });
        session.result(format!("{result}\n").as_bytes())?;
    }
    Ok(exit::DONE)
}

/// A new operator key. It lies in a second file beside its final place until the daemon is known to have its public half. If the
/// daemon or this process ends in between, a repeated `init` finds the token that the daemon may know.
struct NewToken {
    unconfirmed: PathBuf,
    place: PathBuf,
}

impl NewToken {
    fn at(place: &Path) -> Self {
        let mut name = place.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        Self { unconfirmed: place.with_file_name(name), place: place.to_owned() }
    }

    /// The token for a new cluster: the token of an earlier `init` that failed, or a new one.
    fn draw(&self) -> Result<Credential, Failure> {
        // Whatever it is: a link that leads nowhere, or a device, too.
        if self.place.symlink_metadata().is_ok() {
            return Err(token_exists(&self.place));
        }
        if self.unconfirmed.symlink_metadata().is_ok() {
            return read_own_token(&self.unconfirmed);
        }
        let token = Credential::random(CredentialKind::Operator);
        create_token(&self.unconfirmed, &token)?;
        Ok(token)
    }

    /// The token of the founding that already runs.
    fn find(&self) -> Result<Credential, Failure> {
        match (self.place.exists(), self.unconfirmed.exists()) {
            (true, _) => read_own_token(&self.place),
            (false, true) => read_own_token(&self.unconfirmed),
            // It says that there is none, and what to do.
            (false, false) => read_token(&self.place),
        }
    }

    /// Moves the token to its final place, because the daemon has its public half.
    fn confirm(&self) -> Result<(), Failure> {
        let file = |path: &Path| path.symlink_metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()));
        match (file(&self.place), file(&self.unconfirmed)) {
            (_, None) => return Ok(()),
            // Where a rename is a link and a removal, a crash comes between the two.
            (Some(confirmed), Some(unconfirmed)) if confirmed == unconfirmed => {
                drop(fs::remove_file(&self.unconfirmed));
                return Ok(());
            }
            _ => {}
        }
        place::rename_to_new(&self.unconfirmed, &self.place).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => token_exists(&self.place),
            _ => Failure::new(exit::FAILED, format!("{}: {error}", self.place.display())),
        })
    }

    /// Removes the token if the daemon says that no founding runs. A daemon that does not answer may know the token.
    async fn discard_if_unknown(&self, session: &Session<'_>) {
        let status = daemon::status(session).await;
        if status.is_ok_and(|status| status.public.phase == Phase::Uninitialised) {
            // If the file cannot be removed, the next `init` uses it.
            drop(fs::remove_file(&self.unconfirmed));
        }
    }
}

/// Whose key the new one is: the name of the user who founds the cluster.
fn label() -> String {
    let user = ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok().filter(|user| is_label(user)));
    user.unwrap_or_else(|| "first operator".to_owned())
}

/// Refuses options that cannot be right, before anything is asked.
fn check_options(options: &Init) -> Result<(), Failure> {
    let (founders, majority) = (options.founders, options.founders / 2 + 1);
    if founders == 1 && !options.allow_solo {
        return Err(Failure::new(exit::USAGE, "with a single node, one stolen disk opens everything")
            .hint("--founders 3 withstands the theft and the loss of one; --allow-solo accepts the risk"));
    }
    if founders == 2 && !options.accept_no_redundancy {
        return Err(Failure::new(exit::USAGE, "with two nodes, one lost disk loses every key")
            .hint("--founders 3 withstands the theft and the loss of one; --accept-no-redundancy accepts the risk"));
    }
    match options.threshold {
        Some(threshold) if !(majority..=founders).contains(&threshold) => {
            Err(Failure::new(exit::USAGE, format!("the threshold of {founders} nodes is {majority} to {founders}")))
        }
        _ => Ok(()),
    }
}

/// Refuses a token file in the data directory: a thief who takes the directory must not find the token in it.
fn refuse_token_in_data(token: &Path, data: &Path) -> Result<(), Failure> {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    // The deepest directory that exists, with links resolved.
    let real = |path: &Path| absolute(path).ancestors().find_map(|path| path.canonicalize().ok());
    let data_real = data.canonicalize().unwrap_or_else(|_| absolute(data));
    if absolute(token).starts_with(absolute(data)) || real(token).is_some_and(|real| real.starts_with(&data_real)) {
        return Err(Failure::new(
            exit::USAGE,
            "the token file would lie in the data directory, where a thief looks first",
        )
        .hint("name a place outside of it: --token-file FILE"));
    }
    Ok(())
}

/// Waits for the daemon and shows its step and the nodes that it waits for.
#[derive(Default)]
struct Wait {
    /// The token, until the daemon has taken the order.
    new_token: Option<NewToken>,
    invitations: Vec<String>,
    shown: String,
}

impl Wait {
    /// Waits for the answer. `None` if Ctrl-C was pressed, or if `only_begin` and the work has begun.
    async fn run(
        &mut self,
        session: &mut Session<'_>,
        request: &AdminRequest,
        only_begin: bool,
    ) -> Result<Option<AdminResponse>, Failure> {
        let mut interrupt = Interrupt::listen()?;
        let mut conversation = Conversation::begin(session, request).await?;
        loop {
            let message = tokio::select! {
                message = conversation.next() => message?,
                () = interrupt.pressed() => return Ok(None),
            };
            match message {
                Message::Answer(answer) => {
                    self.new_token.take().map_or(Ok(()), |token| token.confirm())?;
                    return Ok(Some(answer));
                }
                Message::Progress(progress) => {
                    if let Some(token) = self.new_token.take() {
                        token.confirm()?;
                    }
                    self.show(session, &progress)?;
                    if only_begin {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Shows progress. Invitations are a result, each on a line of its own; everything else is for people.
    fn show(&mut self, session: &mut Session<'_>, progress: &AdminProgress) -> Result<(), Failure> {
        let new: Vec<_> = progress.invitations.iter().filter(|known| !self.invitations.contains(known)).collect();
        if !new.is_empty() {
            session.note("on each other node run `quorate node join -`, and paste one of these invitations there:");
            if session.common.output == Format::Json {
                session.result(format!("{}\n", json!({ "invitations": new })).as_bytes())?;
            } else {
                let lines: String = new.iter().map(|invitation| format!("{invitation}\n")).collect();
                session.result(lines.as_bytes())?;
            }
            self.invitations.extend(new.into_iter().cloned().collect::<Vec<_>>());
        }
        let waiting = match &progress.waiting_for[..] {
            [] => String::new(),
            names => format!(", waiting for {}", names.join(", ")),
        };
        let line = crate::terminal::output::printable(&format!("{}{waiting}", progress.step));
        if line != self.shown {
            session.note(&line);
            self.shown = line;
        }
        Ok(())
    }
}
