//! `quorate-testnet load`: a load for some seconds, with a line for each.

use std::io::Write;
use std::time::Duration;

use quorate_client::{Client, ClusterFile, Credential};
use tokio::time::sleep;

use super::{Load, Options, Tally};
use crate::base::error::Error;
use crate::cluster::directory::Directory;

/// Loads the cluster in `directory` for so many seconds, and prints a line each second: `quorate-testnet load`.
///
/// # Errors
/// [`Error::Load`] with what should not have been, or if there is no cluster.
pub fn run(directory: &Directory, options: &Options, seconds: u64, out: &mut dyn Write) -> Result<(), Error> {
    directory.existing_manifest()?;
    let path = directory.client_file();
    let file = ClusterFile::read(&path).map_err(|error| Error::Directory { path, reason: error.to_string() })?;
    let path = directory.token();
    let text = std::fs::read_to_string(&path).map_err(Error::io(path.display().to_string()))?;
    let token = Credential::parse(&text).map_err(|error| Error::Directory { path, reason: error.to_string() })?;
    let runtime = tokio::runtime::Runtime::new().map_err(Error::io("start a runtime"))?;
    runtime.block_on(async {
        let load = Load::start(&file, &token, options).await?;
        let mut before = 0;
        for second in 1..=seconds {
            sleep(Duration::from_secs(1)).await;
            let Tally { done, again, unexpected } = load.tally();
            let line = format!("{second:4} s  {:6}/s  {again} tried again  {unexpected} unexpected", done - before);
            before = done;
            writeln!(out, "{line}").map_err(Error::Output)?;
        }
        let outcome = load.stop().await;
        let client = Client::connect(file, &token, quorate_client::Options::default()).await?;
        let unopened = outcome.open_all(&client).await;
        let done = outcome.tally.done;
        let last = format!("{done} done, {} ciphertexts opened once more in the end", outcome.kept() - unopened.len());
        writeln!(out, "{last}").map_err(Error::Output)?;
        match [outcome.unexpected, unopened].concat() {
            list if list.is_empty() => Ok(()),
            list => Err(Error::Load(list)),
        }
    })
}
