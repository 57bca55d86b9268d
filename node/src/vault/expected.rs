//! `expect_member`: a node that is a member waits for its vault, and never starts without one.
//!
//! Scenario: a member restarts before the disk of its data directory is mounted. An empty directory looks like that of a new node,
//! and the daemon would wait for an operator for ever, although the disk appears a second later. With this setting it makes
//! nothing in that directory, not even a lock, and looks again until the vault is there.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::vault::VaultFile;

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// How often the log says what the node waits for.
const REMIND: Duration = Duration::from_secs(60);

/// Returns once the directory `data` has a vault. A directory that cannot be read counts as one that has: what opens it next
/// says why it cannot be used.
pub async fn appears(data: &Path) {
    let mut reminded: Option<Instant> = None;
    while !VaultFile::exists(data).unwrap_or(true) {
        if reminded.is_none_or(|at| at.elapsed() >= REMIND) {
            warn!(
                "no vault in {}, and this node is a member (expect_member): waiting until it is there. Is the disk mounted? \
                 To found a cluster or to join one with an empty directory, start quorated without this setting",
                data.display()
            );
            reminded = Some(Instant::now());
        }
        sleep(LOOK).await;
    }
    if reminded.is_some() {
        info!("the vault is there");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::FutureExt;
    use tokio::time::timeout;

    /// Mutated: a look that happens once only never sees the mount.
    #[tokio::test]
    async fn it_waits_until_the_vault_is_there_and_makes_nothing() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let data = parent.path().join("mounted/later");
        let mut waiting = Box::pin(appears(&data));
        assert_eq!((&mut waiting).now_or_never(), None);
        assert!(!data.exists(), "it makes no directory");
        std::fs::create_dir_all(&data).expect("ours");
        assert_eq!(appears(&data).now_or_never(), None, "an empty directory has none");
        std::fs::write(data.join("vault"), b"").expect("ours");
        assert_eq!(appears(&data).now_or_never(), Some(()), "the control: there is one");
        timeout(Duration::from_secs(30), waiting).await.expect("it looks again");
    }
}
