//! How a command reaches the cluster: with a client file and a token.

use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use quorate_client::{Client, ClusterFile, Code, NodeName, Options, Token};
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::terminal::nearest::nearest;
use crate::{Session, exit};

/// Most bytes of a token file that are read. A token is much shorter.
const TOKEN_FILE_BYTES_MAX: u64 = 4096;
/// The hint that names the places of a token.
pub(crate) const TOKEN_HINT: &str = "check the token: --token-file, QUORATE_TOKEN_FILE, QUORATE_TOKEN";

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

/// Reads the client file.
pub(crate) fn cluster_file(session: &Session<'_>) -> Result<ClusterFile, Failure> {
    let path = cluster_path(session)?;
    if !path.exists() {
        return Err(Failure::new(exit::FAILED, format!("no client file at {}", path.display())).hint(
            "`quorate cluster export` on a node prints it; put it there, or name it: --cluster FILE, QUORATE_CLUSTER",
        ));
    }
    Ok(ClusterFile::read(&path)?)
}

/// Reads the token: from the file that the user gave, else from QUORATE_TOKEN, else from the default file.
fn token(session: &mut Session<'_>) -> Result<Token, Failure> {
    if given_path(session.common.token_file.as_ref()).is_none()
        && let Ok(text) = std::env::var("QUORATE_TOKEN").map(Zeroizing::new)
    {
        let wrong = |error| Failure::new(exit::DENIED, format!("QUORATE_TOKEN is {error}")).hint(TOKEN_HINT);
        return Token::parse(&text).map_err(wrong);
    }
    let path = token_path(session)?;
    let token = read_token(&path)?;
    let open_to_others = fs::metadata(&path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0);
    if open_to_others {
        session.note(&format!("warning: {} is open to other users: chmod 600", path.display()));
    }
    Ok(token)
}

/// Reads a token file.
pub(crate) fn read_token(path: &Path) -> Result<Token, Failure> {
    let mut text = Zeroizing::new(String::with_capacity(128));
    let read = fs::File::open(path).and_then(|file| file.take(TOKEN_FILE_BYTES_MAX).read_to_string(&mut text));
    match read {
        Ok(_) => {
            let wrong =
                |error| Failure::new(exit::DENIED, format!("{} holds {error}", path.display())).hint(TOKEN_HINT);
            Token::parse(&text).map_err(wrong)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(Failure::new(exit::DENIED, format!("no token at {}", path.display())).hint(
                "`quorate cluster init` wrote it on the first node; name it: --token-file FILE, QUORATE_TOKEN_FILE",
            ))
        }
        Err(error) => Err(Failure::new(exit::DENIED, format!("{}: {error}", path.display())).hint(TOKEN_HINT)),
    }
}

/// Writes a new token file. At no time may another user read it. An existing file is refused.
pub(crate) fn create_token(path: &Path, token: &Token) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(exit::FAILED, format!("{}: {error}", path.display()));
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    }
    let opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = opened.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Failure::new(exit::CONFLICT, format!("the token file {} exists", path.display()))
            .hint("it may be the root token of another cluster: name another place with --token-file FILE"),
        _ => failed(error),
    })?;
    let text = token.text();
    let written = file.write_all(text.as_bytes()).and_then(|()| file.write_all(b"\n")).and_then(|()| file.sync_all());
    written.map_err(|error| {
        drop(fs::remove_file(path));
        failed(error)
    })
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

    /// As [`Cluster::open_with`], but it does not ask the `leaving` nodes if there are others. They may be down, or in
    /// the hands of a thief who must not get the token.
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
        let client = Client::connect(asked, token, options).await.map_err(|error| {
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
