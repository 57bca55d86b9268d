//! Making, rotating, listing and showing keys.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorate_client::conn::answering_async;
use quorate_client::error::Code;
use quorate_client::wire::{
    Answer, KEYS_PAGE_BYTES_MAX, KEYS_PAGE_MAX, KeyInfo, KeySummary, RequestId, Response, TAG_BYTES_MAX, TAGS_MAX,
    VersionInfo, WireError,
};
use quorate_raft::Replica;
use quorate_raft::state::{Key, State};
use quorate_shares::codec;
use quorate_shares::ids::{KeyName, KeyVersion, KeyVersionId};
use tokio::time::{Instant, timeout_at};

use crate::keys::deal;
use crate::messages::peer::{ForwardedReply, ForwardedRequest, KeyChange};
use crate::node::Node;
use crate::service::Call;
use crate::service::forward::{self, LeaderIs};

/// How long a change may take until its version is checked by t holders.
const READY: Duration = Duration::from_secs(20);

/// Makes a key.
pub async fn create(call: Call<'_>, request: RequestId, name: KeyName, tags: BTreeMap<String, String>) -> Answer {
    check_tags(&tags)?;
    change(call, KeyChange::Create { request, name, tags }).await
}

/// Makes the next version of a key.
pub async fn rotate(call: Call<'_>, request: RequestId, name: KeyName, expect: Option<KeyVersion>) -> Answer {
    change(call, KeyChange::Rotate { request, name, expect }).await
}

/// One page of keys, by rising name.
pub fn list(call: Call<'_>, after: Option<&KeyName>, limit: u32) -> Response {
    call.replica.read(|state| {
        let one_disk_until_ms = state.one_disk_until_ms();
        page(state.keys_after(after).map(|key| summary(key, one_disk_until_ms)), limit)
    })
}

/// One key and its versions.
pub async fn show(call: Call<'_>, name: &KeyName) -> Answer {
    let look = |state: &State| state.key_by_name(name).map(|key| key_info(state, key));
    call.find(look, || deal::unknown_key(name)).await.map(Response::Key)
}

/// Makes a version at the leader, and answers when this node's own state holds that very version, ready for use. This is the
/// one place where a client waits for the holders.
async fn change(call: Call<'_>, change: KeyChange) -> Answer {
    let deadline = Instant::now() + READY;
    let made = match forward::leader(call)? {
        LeaderIs::Here => made_here(call.node, call.replica, change).await?,
        LeaderIs::At(leader) => match forward::to_leader(call, leader, ForwardedRequest::Change(change)).await? {
            ForwardedReply::Made { uid, version } => (uid, version),
            reply => return Err(forward::wrong_reply(&reply)),
        },
    };
    ready(call.replica, made, deadline).await.map(Response::Key)
}

/// The leader's side of [`create`] and [`rotate`]. It runs on a task of its own: a key that is half made must be finished even
/// when the client goes away.
pub(in crate::service) async fn made_here(
    node: &Arc<Node>,
    replica: &Replica,
    change: KeyChange,
) -> Result<KeyVersionId, WireError> {
    let (node, replica) = (Arc::clone(node), replica.clone());
    let task = tokio::spawn(answering_async(async move { deal::change(&node, &replica, change).await }));
    task.await.map_err(|_| WireError::new(Code::Internal, "the change was interrupted"))?
}

/// The key, once t holders have opened and checked their shares of the version.
async fn ready(replica: &Replica, (uid, version): KeyVersionId, deadline: Instant) -> Result<KeyInfo, WireError> {
    let mut readied = replica.readied();
    let usable = |state: &State| {
        let key = state.keys.get(&uid)?;
        key.versions.get(&version).is_some_and(|made| made.ready).then(|| key_info(state, key))
    };
    loop {
        readied.borrow_and_update();
        if let Some(key) = replica.read(usable) {
            return Ok(key);
        }
        if timeout_at(deadline, readied.changed()).await.is_err() {
            let (message, hint) = match replica.read(|state| state.version(uid, version).is_some()) {
                true => (
                    "the key is made, but too few holders have checked their shares",
                    "it becomes usable as soon as they have; `quorate status` shows who is missing",
                ),
                false => ("the change is made, and this node has not caught up with it", "try again in a moment"),
            };
            return Err(WireError::new(Code::NoQuorum, message).hint(hint));
        }
    }
}

fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), WireError> {
    let long = |text: &String| text.len() > TAG_BYTES_MAX;
    if tags.contains_key("") {
        return Err(WireError::new(Code::BadRequest, "the name of a tag is empty").hint("write a tag as name=value"));
    }
    if tags.len() > TAGS_MAX || tags.iter().any(|(name, value)| long(name) || long(value)) {
        let message =
            format!("a key has at most {TAGS_MAX} tags, each name and value of at most {TAG_BYTES_MAX} bytes");
        return Err(WireError::new(Code::TooLarge, message));
    }
    Ok(())
}

fn key_info(state: &State, key: &Key) -> KeyInfo {
    let one_disk_until_ms = state.one_disk_until_ms();
    let versions = key.versions.values().map(|version| VersionInfo {
        version: version.version,
        created_ms: version.created_ms,
        ready: version.ready,
        one_disk: version.created_ms <= one_disk_until_ms,
    });
    KeyInfo {
        name: key.name.clone(),
        uid: key.uid,
        created_ms: key.created_ms,
        tags: key.tags.clone(),
        versions: versions.collect(),
    }
}

fn summary(key: &Key, one_disk_until_ms: u64) -> KeySummary {
    KeySummary {
        name: key.name.clone(),
        uid: key.uid,
        created_ms: key.created_ms,
        newest: key.newest().version,
        one_disk: key.newest().created_ms <= one_disk_until_ms,
        tags: key.tags.clone(),
    }
}

/// As many of `keys` as fit a page, and always the first.
fn page(keys: impl Iterator<Item = KeySummary>, limit: u32) -> Response {
    let limit = limit.clamp(1, KEYS_PAGE_MAX) as usize;
    let (mut page, mut bytes) = (Vec::new(), 0);
    for key in keys {
        bytes += codec::encoded_len(&key).expect("counting writes nothing that could fail");
        if page.len() == limit || bytes > KEYS_PAGE_BYTES_MAX && !page.is_empty() {
            return Response::Keys { keys: page, more: true };
        }
        page.push(key);
    }
    Response::Keys { keys: page, more: false }
}

#[cfg(test)]
mod tests {
    use quorate_client::frame::BODY_BYTES_MAX;
    use quorate_client::wire::{self, Answered};
    use quorate_shares::ids::KeyUid;

    use super::*;

    /// The largest key that a client can make.
    fn largest(number: usize) -> KeySummary {
        let tag = |byte: u8| String::from_utf8(vec![byte; TAG_BYTES_MAX]).expect("ASCII");
        KeySummary {
            name: format!("{number:0127}").parse().expect("127 characters"),
            uid: KeyUid([number as u8; 16]),
            created_ms: u64::MAX,
            newest: KeyVersion(u32::MAX),
            one_disk: true,
            tags: (0..TAGS_MAX as u8).map(|number| (tag(b'A' + number), tag(b'a'))).collect(),
        }
    }

    /// 512 keys with the largest tags are more than a message. Mutated: bounded by their number alone, the page is not sent,
    /// and the list of such a cluster fails for good.
    #[test]
    fn a_page_never_exceeds_a_message() {
        let all: Vec<_> = (0..512).map(largest).collect();
        let bytes: usize = all.iter().map(|key| codec::encoded_len(key).expect("counts")).sum();
        assert!(bytes > BODY_BYTES_MAX, "the control: {bytes} bytes");
        let (mut seen, mut pages) = (Vec::new(), 0);
        loop {
            let rest = all.iter().skip(seen.len()).cloned();
            let Response::Keys { keys, more } = page(rest, KEYS_PAGE_MAX) else { panic!("another answer") };
            assert!(!keys.is_empty(), "each page goes on");
            seen.extend(keys.iter().map(|key| key.name.clone()));
            let sent = wire::encode(&Answered::always(Ok(Response::Keys { keys, more })));
            assert!(sent.len() <= KEYS_PAGE_BYTES_MAX + 64, "page {pages} of {} bytes", sent.len());
            pages += 1;
            if !more {
                break;
            }
        }
        assert!(seen.iter().eq(all.iter().map(|key| &key.name)) && pages > 8, "{} keys in {pages} pages", seen.len());
        let Response::Keys { keys, more } = page(all.into_iter(), 3) else { panic!("another answer") };
        assert_eq!((keys.len(), more), (3, true), "and it is bounded by their number");
    }
}
