//! `encrypt`, `decrypt` and `datakey`.

use std::fs;
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
use crate::terminal::input::read_all;
use crate::terminal::nearest::nearest;
use crate::{Session, exit, is_stream};

/// Longest input of `decrypt` in bytes: more than the text of any ciphertext. A longer one is refused.
const CIPHERTEXT_BYTES_MAX: usize = 2 * PLAINTEXT_BYTES_MAX;
/// What some editors put before a text.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
/// The mode of a new file with a result, which may be a secret.
const RESULT_MODE: u32 = 0o600;

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
    session.put(options.out.as_deref(), result.as_bytes(), RESULT_MODE)?;
    Ok(exit::DONE)
}

pub(crate) async fn decrypt(session: &mut Session<'_>, options: Decrypt) -> Result<u8, Failure> {
    let context = context(&options.bound)?;
    let input = read(session, options.file.as_deref(), CIPHERTEXT_BYTES_MAX)?;
    let ciphertext = ciphertext(&input)?;
    if input.len() > CIPHERTEXT_BYTES_MAX {
        return Err(Failure::new(exit::FAILED, "the input is longer than any ciphertext").hint("one message at a time"));
    }
    let cluster = Cluster::open(session).await?;
    let answer = cluster.client.decrypt(ciphertext, &context).await;
    cluster.close(session).await;
    let message = answer?;
    match session.common.output {
        Format::Text => session.put(options.out.as_deref(), message.expose(), RESULT_MODE)?,
        Format::Json => {
            let encoded = Zeroizing::new(STANDARD.encode(message.expose()));
            let result = Zeroizing::new(format!("{{\"plaintext\":\"{}\"}}\n", encoded.as_str()));
            session.put(options.out.as_deref(), result.as_bytes(), RESULT_MODE)?;
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

/// The ciphertext in an input. The text form may have white space around it, which editors and other systems add. To the
/// binary form every byte belongs.
fn ciphertext(input: &[u8]) -> Result<&[u8], Failure> {
    if input.starts_with(b"QRT1") {
        return Ok(input);
    }
    let text = input.strip_prefix(BYTE_ORDER_MARK).unwrap_or(input).trim_ascii();
    if !text.starts_with(b"qrt1:") {
        return Err(Failure::new(exit::FAILED, "the input is not a ciphertext of Quorate")
            .hint("one line that begins with qrt1:, as `quorate encrypt` and `quorate datakey` print it"));
    }
    match text.iter().position(u8::is_ascii_whitespace) {
        None => Ok(text),
        Some(_) => Err(Failure::new(exit::FAILED, "the ciphertext has a line break or a blank in it").hint(
            "give one ciphertext at a time, as the one line that it was; `tr -d '[:space:]'` joins a wrapped one",
        )),
    }
}

/// Reads the input. Of an input that is too long, it reads one byte more than `limit`.
fn read(session: &mut Session<'_>, file: Option<&Path>, limit: usize) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let file = file.filter(|path| !is_stream(path));
    let read = match file {
        None => read_all(session.stdin("message")?, limit),
        Some(path) => fs::File::open(path).and_then(|mut file| read_all(&mut file, limit)),
    };
    let name = || file.map_or_else(|| "standard input".to_owned(), |path| path.display().to_string());
    read.map_err(|error| Failure::new(exit::FAILED, format!("{}: {error}", name())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutated: if white space is taken off the binary form, too, one ciphertext in 256 loses its last byte or more.
    #[test]
    fn white_space_belongs_to_a_binary_ciphertext_and_not_to_a_text() {
        for around in ["qrt1:x", "qrt1:x\n", "qrt1:x\n\n", "qrt1:x\r\n", " \tqrt1:x \n\r\n", "\u{feff}qrt1:x\r\n"] {
            assert_eq!(ciphertext(around.as_bytes()).ok(), Some(&b"qrt1:x"[..]), "{around:?}");
        }
        for end in 0..=u8::MAX {
            let binary = [&b"QRT1m1\x01k\0\0\0\x01"[..], &[b'\n', end]].concat();
            assert_eq!(ciphertext(&binary).ok(), Some(&binary[..]), "a last byte of {end}");
        }
        for broken in ["qrt1:x y", "qrt1:x\nqrt1:y\n", "qrt1:x\r\ny"] {
            let refused = ciphertext(broken.as_bytes()).expect_err(broken);
            assert!(refused.message.contains("a line break or a blank in it"), "{}", refused.message);
        }
        for other in ["", "\n", "QRT2", "hello"] {
            assert!(ciphertext(other.as_bytes()).is_err(), "{other:?}");
        }
    }
}
