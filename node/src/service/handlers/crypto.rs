//! Encrypt, decrypt and data keys: the requests that the whole program exists for.

use std::sync::Arc;

use quorate_client::error::Code;
use quorate_client::wire::{Answer, DATA_KEY_BYTES_MAX, Plaintext, Response, WireError};
use quorate_raft::state::State;
use quorate_shares::context::Context;
use quorate_shares::envelope::{self, Ciphertext, CiphertextHeader, CiphertextKind, Suite};
use quorate_shares::ids::{KeyName, KeyVersion, KeyVersionId};
use quorate_shares::master::EncryptionRoot;
use rand_core::Rng;
use zeroize::Zeroizing;

use crate::base::random;
use crate::keys::deal;
use crate::keys::reconstruct;
use crate::memory::keyring::LoadError;
use crate::node::Node;
use crate::service::{Call, leased_until};

pub async fn encrypt(call: Call<'_>, name: KeyName, context: &Context, plaintext: &Plaintext) -> Answer {
    let (key_version, version) = newest(call, &name).await?;
    let root = root(call, key_version).await?;
    let header = CiphertextHeader { kind: CiphertextKind::Message, suite: Suite::ChaCha20Poly1305, name, version };
    let sealed = envelope::seal(&root, header, context, plaintext.expose(), &mut random::system());
    let ciphertext = sealed.map_err(|error| {
        WireError::new(Code::TooLarge, error.to_string())
            .hint("encrypt larger data under a data key (`quorate datakey`)")
    })?;
    Ok(Response::Ciphertext(ciphertext.to_text()))
}

pub async fn data_key(call: Call<'_>, name: KeyName, context: &Context, bytes: u16) -> Answer {
    if !(1..=DATA_KEY_BYTES_MAX).contains(&bytes) {
        return Err(WireError::new(Code::BadRequest, format!("a data key has 1 to {DATA_KEY_BYTES_MAX} bytes")));
    }
    let (key_version, version) = newest(call, &name).await?;
    let root = root(call, key_version).await?;
    let header = CiphertextHeader { kind: CiphertextKind::DataKey, suite: Suite::ChaCha20Poly1305, name, version };
    let mut key = Zeroizing::new(vec![0; bytes.into()]);
    random::system().fill_bytes(&mut key);
    let wrapped = envelope::seal(&root, header, context, &key, &mut random::system())
        .map_err(|error| WireError::new(Code::Internal, error.to_string()))?;
    Ok(Response::DataKey { plaintext: Plaintext::new(key)?, wrapped: wrapped.to_text() })
}

pub async fn decrypt(call: Call<'_>, ciphertext: &[u8], context: &Context) -> Answer {
    let ciphertext = parse(ciphertext)?;
    let CiphertextHeader { name, version, .. } = ciphertext.header();
    let (name, version) = (name.clone(), *version);
    let known = |state: &State| {
        let key = state.key_by_name(&name)?;
        key.versions.contains_key(&version).then_some((key.uid, version))
    };
    let key_version = call.find(known, || foreign(&name, version)).await?;
    let root = root(call, key_version).await?;
    let plaintext = envelope::open(&root, &ciphertext, context).map_err(|refused| {
        WireError::new(Code::BadCiphertext, refused.to_string())
            .hint("wrong context, damaged, or made by another cluster: these cannot be told apart")
    })?;
    Ok(Response::Plaintext(Plaintext::new(plaintext)?))
}

/// Reads a ciphertext in either form.
///
/// # Errors
/// [`Code::BadCiphertext`].
pub fn parse(bytes: &[u8]) -> Result<Ciphertext, WireError> {
    let parsed = match std::str::from_utf8(bytes) {
        Ok(text) if text.starts_with("qrt1:") => Ciphertext::parse_text(text),
        _ => Ciphertext::parse_binary(bytes),
    };
    parsed.map_err(|error| {
        WireError::new(Code::BadCiphertext, error.to_string())
            .hint("a ciphertext is one line that begins with qrt1: or the bytes that begin with QRT1")
    })
}

fn foreign(name: &KeyName, version: KeyVersion) -> WireError {
    WireError::new(Code::NotFound, format!("this cluster has no version {version} of a key named {name}"))
        .hint("the ciphertext may belong to another cluster; `quorate key list` shows the keys")
}

/// The newest version that t holders have checked.
async fn newest(call: Call<'_>, name: &KeyName) -> Result<(KeyVersionId, KeyVersion), WireError> {
    // A key that is known, and not ready here, may be ready by now: the leader has answered its creator.
    let ready = |state: &State| {
        let key = state.key_by_name(name)?;
        Some((key.uid, key.newest_ready()?.version))
    };
    let missing = || match call.replica.read(|state| state.key_by_name(name).is_some()) {
        false => deal::unknown_key(name),
        true => WireError::new(Code::KeyUnavailable, format!("the key {name} is still being checked by its holders"))
            .hint("try again in a moment"),
    };
    let (uid, version) = call.find(ready, missing).await?;
    Ok(((uid, version), version))
}

/// The root of a key version, from memory or from a quorum.
async fn root(call: Call<'_>, key_version: KeyVersionId) -> Result<Arc<EncryptionRoot>, WireError> {
    let Call { node, replica, .. } = call;
    if let Some(root) = node.keys.keyring.warm(key_version) {
        return Ok(root);
    }
    // A request that waited for something else may have outlived the lease. No key is reconstructed for it.
    leased_until(node)?;
    let load = || -> futures::future::BoxFuture<'static, _> {
        Box::pin(reconstruct::load(Arc::clone(node), replica.clone(), key_version))
    };
    Box::pin(node.keys.keyring.root(key_version, load)).await.map_err(|error| unavailable(node, &error))
}

fn unavailable(node: &Node, error: &LoadError) -> WireError {
    match error {
        LoadError::TooFew { have, need, missing } => {
            let names: Vec<_> = missing.iter().map(|&id| node.name_of(id)).collect();
            let message = format!("the key needs {need} shares and {have} came: waiting for {}", names.join(", "));
            WireError::new(Code::KeyUnavailable, message).hint("it can be used again when enough nodes are up")
        }
        error => WireError::new(Code::KeyUnavailable, error.to_string()),
    }
}
