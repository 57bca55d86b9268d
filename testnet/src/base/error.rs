//! What goes wrong when one machine plays a cluster.

use std::io;
use std::path::PathBuf;

use crate::base::wait::NotInTime;

/// Why a cluster on this machine does not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// What it has to say cannot be written.
    #[error("the output cannot be written: {0}")]
    Output(#[source] io::Error),
    /// A program that is needed was not built.
    #[error("the program {0} is not beside this one")]
    MissingProgram(&'static str),
    /// A command of the real command line failed.
    #[error("`{command}` ended with {code}: {stderr}")]
    Command {
        command: String,
        /// Exit code, or what killed it.
        code: String,
        stderr: String,
    },
    /// A daemon ended by itself.
    #[error("{node} has ended ({how}); the end of its log:\n{log}")]
    Ended {
        node: String,
        /// Its exit code, or the signal that killed it.
        how: String,
        /// The last lines that it wrote.
        log: String,
    },
    /// The directory is not one of ours.
    #[error("{path}: {reason}")]
    Directory {
        /// The directory or a file in it.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is nothing to act on.
    #[error("there is no cluster in {0}")]
    NoCluster(PathBuf),
    /// There is no such node.
    #[error(transparent)]
    NoSuchNode(#[from] NoSuchNode),
    /// Something took too long.
    #[error(transparent)]
    NotInTime(#[from] NotInTime),
    /// A step of the story did not end as told.
    #[error("{0}")]
    Story(String),
    /// A measurement could not be made.
    #[error("{0}")]
    Bench(String),
    /// A client could not begin.
    #[error(transparent)]
    Client(#[from] quorate_client::Error),
    /// Clients saw what they should not have seen.
    #[error("{} errors that should not have been:\n{}", .0.len(), .0.join("\n"))]
    Load(Vec<String>),
}

impl Error {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::MissingProgram(_) => {
                Some("build all programs with `cargo build`, or name them in QUORATED and QUORATE")
            }
            Self::NoCluster(_) => Some("`quorate-testnet up` founds one; --dir names another place"),
            Self::Directory { .. } => Some("give another --dir, or remove this one"),
            Self::Ended { .. } => Some("the whole log is quorated.log in the node's directory"),
            _ => None,
        }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// A name that no node has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no node {0}")]
pub struct NoSuchNode(pub String);
