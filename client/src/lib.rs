//! The wire protocol of Quorate and its Rust client.
//!
//! ```no_run
//! use std::path::Path;
//! use quorate_client::{Client, ClusterFile, Context, Credential, Options};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let cluster = ClusterFile::read(Path::new("/etc/quorate/cluster.toml"))?;
//! let credential = Credential::parse(&std::fs::read_to_string("/etc/quorate/token")?)?;
//! let client = Client::connect(cluster, &credential, Options::default()).await?;
//!
//! let key = "billing/cards".parse()?;
//! let context = Context::new([("customer", "4711")])?;
//! let ciphertext = client.encrypt(&key, &context, b"4111 1111 1111 1111").await?;
//! let plaintext = client.decrypt(&ciphertext, &context).await?;
//! assert_eq!(plaintext.expose(), b"4111 1111 1111 1111");
//! # Ok(()) }
//! ```
//!
//! An application needs only [`Client`]. It knows the nodes by their keys, keeps a connection open, and asks another
//! node if one fails.
//!
//! The other modules are shared with the daemon, which talks to its peers through [`conn`], and with the command line.
//! [`Client`] itself reads and writes no file. The crate does not depend on the storage engine, so that an initramfs can
//! link it.

#![warn(missing_docs)]
#![warn(clippy::print_stderr)] // it runs in the daemon, too

pub mod error;
pub mod wire;

pub mod clock;
pub mod cluster_file;
pub mod conn;
pub mod credential;
pub mod frame;
pub mod identity;
pub mod place;
pub mod reach;
pub mod resolve;
pub mod route;

pub use quorate_shares::context::Context;
pub use quorate_shares::ids::{ClusterId, KeyName, KeyVersion, NodeName};

pub use cluster_file::ClusterFile;
pub use credential::{Credential, CredentialError, CredentialKind};
pub use error::{Blame, Code, Error};
pub use route::{Client, DataKey, Options, Removal};
pub use wire::Plaintext;

/// The version of this library, and of the programs that are built with it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
