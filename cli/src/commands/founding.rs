//! `cluster init` and `node join`: how a node gets its cluster. Both talk to the daemon of this machine, and wait.

use std::fs;
use std::path::{Path, PathBuf};

use quorate_client::Token;
use quorate_client::wire::{AdminProgress, AdminRequest, AdminResponse, Phase};
use serde_json::json;
use zeroize::Zeroizing;

use crate::args::{Format, Init, Join};
use crate::failure::Failure;
use crate::reach::cluster::{create_token, read_token, token_path};
use crate::reach::daemon::{self, Conversation, News};
use crate::terminal::interrupt::Interrupt;
use crate::{Session, exit};

/// Longest invitation; more is refused.
const INVITATION_BYTES_MAX: usize = 4096;

/// Founds a cluster. The root token is made here, and only its hash leaves this process other than into its file.
pub(crate) async fn init(session: &mut Session<'_>, options: Init) -> Result<u8, Failure> {
    check(&options)?;
    let token_path = token_path(session)?;
    let client_file = token_path.with_file_name("cluster.toml");
    let status = daemon::status(session).await?;
    refuse_inside(&token_path, Path::new(&status.data_directory))?;
    let fresh = match status.public.phase {
        Phase::Uninitialised => true,
        Phase::Joining => false,
        phase => {
            let name = status.name.map_or_else(|| "this node".to_owned(), |name| name.to_string());
            return Err(Failure::new(exit::CONFLICT, format!("{name} belongs to a cluster already, and is {phase}"))
                .hint("`quorate cluster export --local -o FILE` writes its client file, `quorate status` shows it"));
        }
    };
    if client_file.exists() {
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
        token_hash: token.hash(),
    };
    drop(token);
    let mut wait = Wait { new_token: Some(new_token), ..Wait::default() };
    let answer = wait.run(session, &request, false).await;
    if let (Err(_), Some(new_token)) = (&answer, wait.new_token) {
        new_token.discard_if_unknown(session).await;
    }
    let Some(answer) = answer? else {
        session.note(
            "founding goes on without this command; `quorate node status` shows it, and repeating it waits again",
        );
        return Ok(exit::INTERRUPTED);
    };
    let AdminResponse::Founded(file) = answer else { return Err(daemon::unexpected()) };
    file.write(&client_file)?;
    let names: Vec<_> = file.nodes.iter().map(|node| node.name.to_string()).collect();
    session.note(&format!("founded cluster {} with {}", file.cluster, names.join(", ")));
    session.note(&format!("client file: {}", client_file.display()));
    session.note(&format!("root token:  {} (keep it safe; it is nowhere else)", token_path.display()));
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
    let invitation = if options.invitation == "-" { read_invitation(session)? } else { options.invitation.into() };
    let invitation = invitation.trim();
    if invitation.is_empty() || invitation.len() > INVITATION_BYTES_MAX {
        return Err(Failure::new(exit::USAGE, "this is not an invitation")
            .hint("`quorate cluster init` on the first node prints one line for each other node"));
    }
    let request = AdminRequest::Join { invitation: invitation.to_owned() };
    let Some(answer) = Wait::default().run(session, &request, options.no_wait).await? else {
        session
            .note("joining goes on without this command; `quorate node status` shows it, and repeating it waits again");
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

/// A root token beside its place, until the daemon is known to have its hash. Whatever dies in between, a repeated `init`
/// finds the token that the daemon may know.
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

    /// A token for a new cluster: that of an `init` which came to nothing, or a fresh one.
    fn draw(&self) -> Result<Token, Failure> {
        if self.place.exists() {
            return Err(Failure::new(exit::CONFLICT, format!("the token file {} exists", self.place.display()))
                .hint("it may be the root token of another cluster: name another place with --token-file FILE"));
        }
        if self.unconfirmed.exists() {
            return read_token(&self.unconfirmed);
        }
        let token = Token::random();
        create_token(&self.unconfirmed, &token)?;
        Ok(token)
    }

    /// The token of the founding that is under way.
    fn find(&self) -> Result<Token, Failure> {
        let confirmed = self.place.exists() || !self.unconfirmed.exists();
        read_token(if confirmed { &self.place } else { &self.unconfirmed })
    }

    /// The daemon has its hash.
    fn confirm(&self) -> Result<(), Failure> {
        if self.place.exists() || !self.unconfirmed.exists() {
            return Ok(());
        }
        fs::rename(&self.unconfirmed, &self.place)
            .map_err(|error| Failure::new(exit::FAILED, format!("{}: {error}", self.place.display())))
    }

    /// Removes it if the daemon says that it knows of no founding; one that does not answer may know of it.
    async fn discard_if_unknown(&self, session: &Session<'_>) {
        let status = daemon::status(session).await;
        if status.is_ok_and(|status| status.public.phase == Phase::Uninitialised) {
            // One that stays is used by the next `init`.
            drop(fs::remove_file(&self.unconfirmed));
        }
    }
}

/// What can be refused without asking anybody.
fn check(options: &Init) -> Result<(), Failure> {
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

/// A thief who takes the data directory must not find the token in it.
fn refuse_inside(token: &Path, data: &Path) -> Result<(), Failure> {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    // The deepest directory that exists decides, with links followed.
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

pub(crate) fn read_invitation(session: &mut Session<'_>) -> Result<Zeroizing<String>, Failure> {
    let mut bytes = Zeroizing::new(vec![0; INVITATION_BYTES_MAX + 1]);
    let read = crate::commands::crypt::fill(session.input, &mut bytes)
        .map_err(|error| Failure::new(exit::FAILED, format!("standard input: {error}")))?;
    let text = std::str::from_utf8(&bytes[..read]).unwrap_or_default();
    Ok(Zeroizing::new(text.to_owned()))
}

/// Waiting with the step and those waited for in view.
#[derive(Default)]
struct Wait {
    /// Until the daemon has taken the order.
    new_token: Option<NewToken>,
    invitations: Vec<String>,
    shown: String,
}

impl Wait {
    /// Runs until the answer, or `None` when interrupted, or begun and not to be waited for.
    async fn run(
        &mut self,
        session: &mut Session<'_>,
        request: &AdminRequest,
        only_begin: bool,
    ) -> Result<Option<AdminResponse>, Failure> {
        let mut interrupt = Interrupt::listen()?;
        let mut conversation = Conversation::begin(session, request).await?;
        loop {
            let news = tokio::select! {
                news = conversation.next() => news?,
                () = interrupt.pressed() => return Ok(None),
            };
            match news {
                News::Answer(answer) => {
                    self.new_token.take().map_or(Ok(()), |token| token.confirm())?;
                    return Ok(Some(answer));
                }
                News::Progress(progress) => {
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

    /// Invitations are a result, each on a line of its own; the rest is for people.
    fn show(&mut self, session: &mut Session<'_>, progress: &AdminProgress) -> Result<(), Failure> {
        let new: Vec<_> = progress.invitations.iter().filter(|known| !self.invitations.contains(known)).collect();
        if !new.is_empty() {
            session.note("run on each other node, one invitation each:  quorate node join INVITATION");
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
            names if progress.step.contains("waiting") => format!(" ({})", names.join(", ")),
            names => format!(", waiting for {}", names.join(", ")),
        };
        let line = crate::terminal::output::plain(&format!("{}{waiting}", progress.step));
        if line != self.shown {
            session.note(&line);
            self.shown = line;
        }
        Ok(())
    }
}
