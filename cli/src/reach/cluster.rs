//! How a command reaches the cluster: with a client file and a token.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use quorate_client::cluster_file::ClusterFileError;
use quorate_client::{Client, ClusterFile, Code, Credential, CredentialError, Error, NodeName, Options, place};
use zeroize::Zeroizing;

use crate::failure::{Failure, Hint};
use crate::terminal::input::read_all;
use crate::terminal::nearest::nearest;
use crate::{Session, exit, is_stream};

/// Most bytes of a token file that are read. A token is much shorter.
const TOKEN_FILE_BYTES_MAX: usize = 4096;

/// The path of a file in the configuration directory of the user.
fn config_path(name: &str) -> Result<PathBuf, Failure> {
    let set = |variable| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    base.map(|base| base.join("quorate").join(name)).ok_or_else(|| {
        Failure::new(exit::USAGE, "HOME is not set").hint("name the files: --cluster FILE --token-file FILE")
    })
}

/// A path that the user gave. An empty variable of the environment gives none.
fn given_path(path: Option<&OsString>) -> Option<PathBuf> {
    path.filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The path of the client file. The file may not exist.
pub(crate) fn cluster_path(session: &Session<'_>) -> Result<PathBuf, Failure> {
    given_path(session.common.cluster.as_ref()).map_or_else(|| config_path("cluster.toml"), Ok)
}

/// The path of the token file. The file may not exist.
pub(crate) fn token_path(session: &Session<'_>) -> Result<PathBuf, Failure> {
    given_path(session.common.token_file.as_ref()).map_or_else(|| config_path("token"), Ok)
}

/// Whether there is a client file.
pub(crate) fn has_cluster_file(session: &Session<'_>) -> Result<bool, Failure> {
    cluster_path(session).map(|path| is_stream(&path) || path.try_exists().unwrap_or(true))
}

/// Reads the client file.
fn cluster_file(session: &mut Session<'_>) -> Result<ClusterFile, Failure> {
    let path = cluster_path(session)?;
    if is_stream(&path) {
        return Ok(ClusterFile::read_from(session.stdin("client file")?, Path::new("standard input"))?);
    }
    // A file that may not be read is there.
    if path.try_exists().is_ok_and(|exists| !exists) {
        return Err(Failure::new(exit::FAILED, format!("no client file at {}", path.display())).hint(
            "`quorate cluster export` on a node prints it; put it there, or name it: --cluster FILE, QUORATE_CLUSTER",
        ));
    }
    ClusterFile::read(&path).map_err(|error| {
        // Only an error of the system names the file itself.
        let is_named = matches!(error, ClusterFileError::Io { .. });
        let failure = Failure::from(error);
        let message = if is_named { failure.message } else { format!("{}: {}", path.display(), failure.message) };
        Failure { message, ..failure }
    })
}

/// Reads the token: from the file that the user gave, else from QUORATE_TOKEN, else from the default file.
fn token(session: &mut Session<'_>) -> Result<Credential, Failure> {
    let wrong = |what: &str, error| Failure::new(exit::DENIED, format!("{what} {error}")).hint(Hint::Token);
    let variable = || std::env::var_os("QUORATE_TOKEN").filter(|text| !text.is_empty());
    if given_path(session.common.token_file.as_ref()).is_none()
        && let Some(text) = variable()
    {
        session.token_from = Some("in QUORATE_TOKEN".to_owned());
        let text = Zeroizing::new(text.into_encoded_bytes());
        return parse_token(&text).map_err(|error| wrong("QUORATE_TOKEN is", error));
    }
    let path = token_path(session)?;
    if is_stream(&path) {
        session.token_from = Some("on standard input".to_owned());
        let read = read_all(session.stdin("token")?, TOKEN_FILE_BYTES_MAX);
        let text = read.map_err(|error| Failure::new(exit::FAILED, format!("standard input: {error}")))?;
        return parse_token(&text).map_err(|error| wrong("standard input holds", error));
    }
    session.token_from = Some(format!("in {}", path.display()));
    let token = read_token(&path)?;
    let open_to_others = fs::metadata(&path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0);
    if open_to_others {
        session.note(&format!("warning: {} is open to other users: chmod 600", path.display()));
    }
    Ok(token)
}

fn parse_token(text: &[u8]) -> Result<Credential, CredentialError> {
    std::str::from_utf8(text).map_err(|_| CredentialError::Form).and_then(Credential::parse)
}

/// Reads a token file.
pub(crate) fn read_token(path: &Path) -> Result<Credential, Failure> {
    match fs::File::open(path).and_then(|mut file| read_all(&mut file, TOKEN_FILE_BYTES_MAX)) {
        Ok(text) => {
            let wrong =
                |error| Failure::new(exit::DENIED, format!("{} holds {error}", path.display())).hint(Hint::Token);
            parse_token(&text).map_err(wrong)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(Failure::new(exit::DENIED, format!("no token at {}", path.display())).hint(
                "`quorate cluster init` wrote it on the first node; name it: --token-file FILE, QUORATE_TOKEN_FILE",
            ))
        }
        Err(error) => Err(Failure::new(exit::DENIED, format!("{}: {error}", path.display())).hint(Hint::Token)),
    }
}

/// Reads a token that an earlier command of this user has left. What another user has put there is refused: they would know the token
/// of the cluster that is founded with it.
pub(crate) fn read_own_token(path: &Path) -> Result<Credential, Failure> {
    refuse_open_directory(path)?;
    let is_link = path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
    let own = match is_link {
        true => Err(std::io::Error::new(ErrorKind::PermissionDenied, "it is a link")),
        false => place::open_secret(path).and_then(|mut file| read_all(&mut file, TOKEN_FILE_BYTES_MAX)),
    };
    let refused = |error: &dyn std::fmt::Display| {
        Failure::new(exit::DENIED, format!("{} is not used: {error}", path.display()))
            .hint("remove it, or name another place with --token-file FILE")
    };
    parse_token(&own.map_err(|error| refused(&error))?).map_err(|error| refused(&error))
}

/// Refuses a place for a token in a directory where another user can put one.
fn refuse_open_directory(path: &Path) -> Result<(), Failure> {
    place::refuse_open_directory(path).map_err(|error| {
        Failure::new(exit::DENIED, format!("no token may lie at {}: {error}", path.display()))
            .hint("name a place in a directory of your own (--token-file FILE), or take the right to write from others: chmod go-w")
    })
}

/// Writes a new token file. At no time may another user read it. An existing file is refused.
pub(crate) fn create_token(path: &Path, token: &Credential) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(exit::FAILED, format!("{}: {error}", path.display()));
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    }
    refuse_open_directory(path)?;
    let mut text = Zeroizing::new(Vec::with_capacity(128));
    text.extend_from_slice(token.text().as_bytes());
    text.push(b'\n');
    place::create(path, &text).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => token_exists(path),
        _ => failed(error),
    })
}

/// The refusal to write a token where something is already.
pub(crate) fn token_exists(path: &Path) -> Failure {
    Failure::new(exit::CONFLICT, format!("the token file {} exists", path.display()))
        .hint("it may be the operator key of another cluster: name another place with --token-file FILE")
}

/// A client of the cluster, which notes the nodes that failed.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) file: ClusterFile,
    failures: Arc<Mutex<Vec<String>>>,
}

impl Cluster {
    /// Reads the client file and the token. It sends nothing yet.
    pub(crate) async fn open(session: &mut Session<'_>) -> Result<Self, Failure> {
        Self::open_with(session, Options::default()).await
    }

    /// As [`Cluster::open`], with other options.
    pub(crate) async fn open_with(session: &mut Session<'_>, options: Options) -> Result<Self, Failure> {
        Self::open_without(session, &[], options).await
    }

    /// As [`Cluster::open_with`], but it does not ask the `leaving` nodes if there are others. They may be down, or lie
    /// about the result.
    pub(crate) async fn open_without(
        session: &mut Session<'_>,
        leaving: &[NodeName],
        options: Options,
    ) -> Result<Self, Failure> {
        let file = cluster_file(session)?;
        let mut asked = file.clone();
        asked.nodes.retain(|node| !leaving.contains(&node.name));
        let named = session.common.node.as_deref();
        if let Some(name) = named.filter(|name| leaving.iter().any(|leaves| leaves.as_str() == *name))
            && !asked.nodes.is_empty()
        {
            return Err(Failure::new(exit::USAGE, format!("{name} leaves the cluster, and cannot report the result"))
                .hint("leave out --node, or name a node that stays"));
        }
        if asked.nodes.is_empty() || named.is_some() {
            asked.nodes.clone_from(&file.nodes);
        }
        let token = token(session)?;
        let failures = Arc::new(Mutex::new(Vec::new()));
        let note = failures.clone();
        let on_failure = move |failure: &quorate_client::error::NodeFailure| {
            let mut known = note.lock().unwrap_or_else(PoisonError::into_inner);
            let failure = failure.to_string();
            // The client may ask each node many times.
            if !known.contains(&failure) {
                known.push(failure);
            }
        };
        let node = session.common.node.clone();
        let options = Options { node: node.clone(), on_failure: Some(Arc::new(on_failure)), ..options };
        let client = Client::connect(asked, &token, options).await.map_err(|error| {
            let meant =
                node.as_deref().and_then(|node| nearest(node, file.nodes.iter().map(|node| node.name.as_str())));
            match meant {
                Some(name) if error.code() == Code::NotFound => {
                    Failure::from(error).hint(format!("did you mean {name}?"))
                }
                _ => error.into(),
            }
        })?;
        Ok(Self { client, file, failures })
    }

    /// Closes the connections and returns the answer about the nodes `typed`, or the failure of [`Self::with_similar_node`].
    pub(crate) async fn finish<T>(
        self,
        session: &mut Session<'_>,
        typed: &[NodeName],
        answer: Result<T, Error>,
    ) -> Result<T, Failure> {
        let (cluster, answer) = self.go_on(session, typed, answer).await?;
        cluster.close(session).await;
        Ok(answer)
    }

    /// As [`Self::finish`], but the connections stay open after an answer.
    pub(crate) async fn go_on<T>(
        self,
        session: &mut Session<'_>,
        typed: &[NodeName],
        answer: Result<T, Error>,
    ) -> Result<(Self, T), Failure> {
        match answer {
            Ok(answer) => Ok((self, answer)),
            Err(error) => Err(self.with_similar_node(session, typed, error).await),
        }
    }

    /// The failure for `error`. If one of the names that were typed is no member's, its hint suggests a member with a similar
    /// name. The client file may name nodes that have left, so the cluster says who its members are.
    pub(crate) async fn with_similar_node(
        self,
        session: &mut Session<'_>,
        typed: &[NodeName],
        error: Error,
    ) -> Failure {
        let code = error.code();
        let mut failure = Failure::from(error);
        if code == Code::NotFound
            && let Ok(nodes) = self.client.nodes().await
            && let Some(typed) = typed.iter().find(|typed| nodes.iter().all(|node| node.name != **typed))
        {
            if self.file.node(typed.as_str()).is_some() {
                failure = failure.hint(format!("{typed} has left the cluster since the client file was written"));
            } else if let Some(name) = nearest(typed.as_str(), nodes.iter().map(|node| node.name.as_str())) {
                failure = failure.hint(format!("did you mean {name}?"));
            }
        }
        self.close(session).await;
        failure
    }

    /// Closes the connections. With -v, it shows which nodes failed.
    pub(crate) async fn close(self, session: &mut Session<'_>) {
        self.client.close().await;
        if session.common.verbose {
            for failure in self.failures.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                session.note(&format!("node {failure}"));
            }
        }
    }
}
