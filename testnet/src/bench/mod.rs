//! The benchmark: what Quorate costs, measured on the real programs, in one table.
//!
//! Every figure stands beside one of the same run that it can be held against: sealing beside the bare cipher, encryption
//! beside an echo over the same connection, making keys beside bare Raft writes on the same disk. Absolute figures belong
//! to the machine and to whatever else ran on it; the ratios travel. Targets are shown and never asserted: a benchmark that
//! fails when a neighbour compiles something teaches people to ignore it.
//!
//! Wants a release build (`make bench`), and takes a few minutes. `quorate-testnet bench SECTION` measures one part.

mod cipher;
mod figures;
mod keys;
mod machine;
mod members;
mod outage;
mod requests;
mod timing;

use std::io::Write;

use clap::ValueEnum;
use quorate_client::Credential;
use quorate_client::cluster_file::ClusterFile;
use quorate_client::route::{Client, Options};

use crate::base::error::Error;
use crate::cluster::Cluster;
use figures::Table;

/// A part that can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// Sealing and opening, in one process
    Cipher,
    /// Running time that must not depend on secrets
    Timing,
    /// Requests through the client
    Requests,
    /// Making keys, beside bare Raft writes
    Keys,
    /// Killing and starting, and the first use of a cold key
    Outage,
    /// Members that join and leave, and keys that are reshared
    Members,
}

/// Measures the named parts, or everything if none is named, and writes the table to `out`; says on stderr what it is doing.
///
/// # Errors
/// If a measurement cannot be made. A figure that falls short of its target is no error.
pub fn run(sections: &[Section], out: &mut dyn Write) -> Result<(), Error> {
    let wanted = |section| sections.is_empty() || sections.contains(&section);
    let mut table = Table::default();
    let header = machine::describe();
    if wanted(Section::Cipher) {
        doing("sealing and opening, in this process");
        cipher::measure(&mut table);
    }
    if wanted(Section::Timing) {
        doing("running time that must not depend on secrets");
        timing::measure(&mut table)?;
    }
    if [Section::Requests, Section::Keys, Section::Outage].into_iter().any(wanted) {
        doing("founding a cluster of three");
        let mut cluster = Cluster::builder().found()?;
        if wanted(Section::Requests) {
            doing("requests through the client");
            requests::measure(&cluster, &mut table)?;
        }
        if wanted(Section::Keys) {
            doing("making keys, and bare Raft writes");
            keys::measure(&cluster, &mut table)?;
        }
        if wanted(Section::Outage) {
            doing("killing and starting");
            outage::measure(&mut cluster, &mut table)?;
        }
        cluster.terminate_all()?;
    }
    if wanted(Section::Members) {
        doing("joining and revoking with ten thousand keys, resharing a hundred thousand");
        members::measure(&mut table)?;
    }
    writeln!(out, "{header}\n{table}").map_err(Error::Output)
}

fn doing(what: &str) {
    eprintln!("bench: {what}");
}

fn failed(what: &str) -> impl Fn(quorate_client::error::Error) -> Error {
    move |error| Error::Bench(format!("{what}: {error}"))
}

/// A runtime on this one thread, so that the daemons have the other cores.
fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::io("start a runtime"))
}

/// A client that reaches the nodes at their own ports, past the relay.
async fn client(cluster: &Cluster, options: Options) -> Result<Client, Error> {
    let directory = cluster.directory();
    let manifest = directory.existing_manifest()?;
    let unusable = |what: String| Error::Bench(format!("the files of the cluster: {what}"));
    let mut file = ClusterFile::read(&directory.client_file()).map_err(|error| unusable(error.to_string()))?;
    for node in &mut file.nodes {
        node.addresses = vec![manifest.nodes[manifest.place(node.name.as_str())?].listen.to_string()];
    }
    let token = std::fs::read_to_string(directory.token()).map_err(Error::io("read the token"))?;
    let token = Credential::parse(&token).map_err(|error| unusable(error.to_string()))?;
    Client::connect(file, &token, options).await.map_err(failed("reach the cluster"))
}

/// A client that asks one node only.
async fn client_of(cluster: &Cluster, node: &str) -> Result<Client, Error> {
    client(cluster, Options { node: Some(node.to_owned()), ..Options::default() }).await
}
