//! `encrypt`, `decrypt` and `datakey`.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quorate_client::wire::PLAINTEXT_BYTES_MAX;
use quorate_client::{Code, Context, Error, KeyName, Plaintext};
use serde_json::json;
use zeroize::Zeroizing;

use crate::args::{Bound, Datakey, Decrypt, Encrypt, Format};
use crate::failure::Failure;
use crate::reach::cluster::Cluster;
use crate::terminal::nearest::nearest;
use crate::{Session, exit};

/// Longest input of `decrypt` in bytes: more than the text of any ciphertext. A longer one is refused.
const CIPHERTEXT_BYTES_MAX: usize = 2 * PLAINTEXT_BYTES_MAX;

pub(crate) async fn encrypt(session: &mut Session<'_>, options: Encrypt) -> Result<u8, Failure> {
    let context = context(&options.bound)?;
    let message = read(session, options.file.as_deref(), PLAINTEXT_BYTES_MAX)?;
    // Refused before anything is sent.
    let message = Plaintext::new(message).map_err(|error| match error.code {
        Code::TooLarge => Failure::new(exit::FAILED, "the message is larger than 64 KiB").hint(
            "`quorate datakey KEY` gives a key for large data: encrypt with its plaintext, keep its wrapped form beside",
        ),
        _ => error.into(),
    })?;
    let cluster = Cluster::open(session).await?;
    let answer = cluster.client.encrypt(&options.key, &context, message.expose()).await;
    let text = match answer {
        Ok(text) => text,
        Err(error) => return Err(with_similar_key(session, cluster, &options.key, error).await),
    };
    cluster.close(session).await;
    let result = match session.common.output {
        Format::Text => format!("{text}\n"),
        Format::Json => format!("{}\n", json!({ "ciphertext": text })),
    };
    write(session, options.out.as_deref(), result.as_bytes())?;
    Ok(exit::DONE)
}

pub(crate) async fn decrypt(session: &mut Session<'_>, options: Decrypt) -> Result<u8, Failure> {
    let context = context(&options.bound)?;
    let input = read(session, options.file.as_deref(), CIPHERTEXT_BYTES_MAX)?;
    let ciphertext = without_newline(&input);
    if !(ciphertext.starts_with(b"qrt1:") || ciphertext.starts_with(b"QRT1")) {
        return Err(Failure::new(exit::FAILED, "the input is not a ciphertext of Quorate")
            .hint("one line that begins with qrt1:, as `quorate encrypt` and `quorate datakey` print it"));
    }
    if input.len() > CIPHERTEXT_BYTES_MAX {
        return Err(Failure::new(exit::FAILED, "the input is longer than any ciphertext").hint("one message at a time"));
    }
    let cluster = Cluster::open(session).await?;
    let answer = cluster.client.decrypt(ciphertext, &context).await;
    cluster.close(session).await;
    let message = answer?;
    match session.common.output {
        Format::Text => write(session, options.out.as_deref(), message.expose())?,
        Format::Json => {
            let encoded = Zeroizing::new(STANDARD.encode(message.expose()));
            let result = Zeroizing::new(format!("{{\"plaintext\":\"{}\"}}\n", encoded.as_str()));
            write(session, options.out.as_deref(), result.as_bytes())?;
        }
    }
    Ok(exit::DONE)
}

pub(crate) async fn data_key(session: &mut Session<'_>, options: Datakey) -> Result<u8, Failure> {
    let context = context(&options.bound)?;
    let cluster = Cluster::open(session).await?;
    let key = match cluster.client.data_key(&options.key, &context, options.bytes).await {
        Ok(key) => key,
        Err(error) => return Err(with_similar_key(session, cluster, &options.key, error).await),
    };
    cluster.close(session).await;
    let plaintext = Zeroizing::new(STANDARD.encode(key.plaintext.expose()));
    let wrapped = key.wrapped;
    let result = Zeroizing::new(match (session.common.output, options.wrapped_only) {
        (Format::Text, true) => format!("{wrapped}\n"),
        (Format::Text, false) => format!("plaintext: {}\nwrapped: {wrapped}\n", plaintext.as_str()),
        (Format::Json, true) => format!("{}\n", json!({ "wrapped": wrapped })),
        (Format::Json, false) => {
            format!("{{\"plaintext\":\"{}\",\"wrapped\":{}}}\n", plaintext.as_str(), json!(wrapped))
        }
    });
    session.result(result.as_bytes())?;
    Ok(exit::DONE)
}

/// The failure for `error`. If the key does not exist, its hint suggests a key with a similar name.
pub(crate) async fn with_similar_key(
    session: &mut Session<'_>,
    cluster: Cluster,
    key: &KeyName,
    error: Error,
) -> Failure {
    let mut failure = Failure::from(error.clone());
    if error.code() == Code::NotFound
        && let Ok(keys) = cluster.client.list_keys().await
    {
        failure = match nearest(key.as_str(), keys.iter().map(|key| key.name.as_str())) {
            Some(name) => failure.hint(format!("did you mean {name}?")),
            None => failure.hint("`quorate key list` shows the keys, `quorate key create` makes one"),
        };
    }
    cluster.close(session).await;
    failure
}

fn context(bound: &Bound) -> Result<Context, Failure> {
    Context::new(bound.context.iter().map(|(name, value)| (name, value)))
        .map_err(|error| Failure::new(exit::USAGE, format!("-c: {error}")))
}

/// The text without one newline at its end, which `encrypt` and editors append.
fn without_newline(text: &[u8]) -> &[u8] {
    text.strip_suffix(b"\n").unwrap_or(text)
}

/// Reads the input. Of an input that is too long, it reads one byte more than `limit`.
fn read(session: &mut Session<'_>, file: Option<&Path>, limit: usize) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut bytes = Zeroizing::new(vec![0; limit + 1]);
    let result = match file {
        None => read_into(session.input, &mut bytes),
        Some(path) => fs::File::open(path).and_then(|mut file| read_into(&mut file, &mut bytes)),
    };
    let name = || file.map_or_else(|| "standard input".to_owned(), |path| path.display().to_string());
    let read = result.map_err(|error| Failure::new(exit::FAILED, format!("{}: {error}", name())))?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Reads until `buffer` is full or the input ends. It uses no other buffer, so that no copy stays unwiped.
pub(crate) fn read_into(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Writes the result. A file is opened only when the result is there, and only its owner may read a new file.
fn write(session: &mut Session<'_>, path: Option<&Path>, bytes: &[u8]) -> Result<(), Failure> {
    let Some(path) = path else { return session.result(bytes) };
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| Failure::new(exit::FAILED, format!("{}: {error}", path.display())))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Failure::output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_newline_is_taken_off() {
        assert_eq!(without_newline(b"qrt1:x\n"), b"qrt1:x");
        assert_eq!(without_newline(b"qrt1:x\n\n"), b"qrt1:x\n");
        assert_eq!(without_newline(b"qrt1:x"), b"qrt1:x");
    }
}
