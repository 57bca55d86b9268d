//! Where an invitation comes from: standard input or a file. Arguments are visible to every user of the machine, so an
//! invitation that is one is taken with a warning.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use quorate_client::wire::INVITATION_TEXT_PREFIX;
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::terminal::input::{read_all, read_line};
use crate::{Session, exit, is_stream};

/// Longest input in bytes, with the white space in it. A longer one is no invitation.
const BYTES_MAX: usize = 4096;

/// Reads the invitation that `given` names: a file, standard input (`-`), or the text itself.
pub(crate) fn read(session: &mut Session<'_>, given: &OsStr) -> Result<Zeroizing<String>, Failure> {
    let path = Path::new(given);
    if is_stream(path) {
        // At a terminal, a person must be told what to do.
        if io::stdin().is_terminal() {
            session.note("paste the invitation, and end it with an empty line:");
        }
        let text = read_until_blank(session.stdin("invitation")?);
        return joined(&text.map_err(|error| Failure::new(exit::FAILED, format!("standard input: {error}")))?);
    }
    let begins_like_one = given.as_encoded_bytes().starts_with(INVITATION_TEXT_PREFIX.as_bytes());
    if begins_like_one && !path.exists() {
        session.note(
            "warning: other users can see an invitation that is an argument: use `-` and standard input, or a file",
        );
        return joined(given.as_encoded_bytes());
    }
    let text = fs::File::open(path).and_then(|mut file| read_all(&mut file, BYTES_MAX));
    joined(&text.map_err(|error| {
        Failure::new(exit::USAGE, format!("no invitation at {}: {error}", path.display()))
            .hint("name a file with an invitation, or `-` and paste it")
    })?)
}

/// Reads lines until the first empty one behind some text, or to the end.
fn read_until_blank(input: &mut dyn Read) -> io::Result<Zeroizing<Vec<u8>>> {
    // Room for one line more than is kept, so that the text never moves.
    let mut text = Zeroizing::new(Vec::with_capacity(2 * BYTES_MAX + 1));
    while let Some(line) = read_line(input, BYTES_MAX)? {
        let ends = line.trim_ascii().is_empty() && !text.trim_ascii().is_empty();
        text.extend_from_slice(&line);
        text.push(b'\n');
        if ends || text.len() > BYTES_MAX {
            break;
        }
    }
    Ok(text)
}

/// The invitation in `text`, which a terminal or an editor may have wrapped.
fn joined(text: &[u8]) -> Result<Zeroizing<String>, Failure> {
    let refused = |message: String| {
        let hint =
            "copy the whole line that `quorate cluster init` or `quorate node invite` printed, one for each node";
        Err(Failure::new(exit::USAGE, message).hint(hint))
    };
    let Some(text) = std::str::from_utf8(text).ok().filter(|text| text.len() <= BYTES_MAX) else {
        return refused("this is not an invitation".to_owned());
    };
    let text = text.trim_start_matches('\u{feff}');
    let mut invitation = Zeroizing::new(String::with_capacity(text.len()));
    text.split_ascii_whitespace().for_each(|part| invitation.push_str(part));
    let begins = text.split_ascii_whitespace().filter(|part| part.starts_with(INVITATION_TEXT_PREFIX)).count();
    if begins > 1 {
        return refused(format!("these are {begins} invitations, and a node needs one of its own"));
    }
    if invitation.is_empty() {
        return refused("this is not an invitation".to_owned());
    }
    // The node reads it, and says how it is damaged.
    Ok(invitation)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutated: without the join, the daemon gets a line break and says no more than "this is not an invitation".
    #[test]
    fn an_invitation_is_read_as_it_was_pasted() {
        let whole = format!("{INVITATION_TEXT_PREFIX}Qabc_-def");
        let (one, other) = whole.split_at(9);
        for pasted in [
            format!("{whole}\n"),
            format!("\n  {whole}\r\n\r\n"),
            format!("{one}\n{other}\n"),
            format!("\u{feff}{one}\r\n    {other}"),
            format!("{whole}\n\nwhat comes behind an empty line"),
        ] {
            let text = read_until_blank(&mut pasted.as_bytes()).expect("memory");
            assert_eq!(joined(&text).expect(&pasted).as_str(), whole, "{pasted:?}");
        }
        let two = joined(format!("{whole}\n{whole}\n").as_bytes()).expect_err("two");
        assert_eq!(two.message, "these are 2 invitations, and a node needs one of its own");
        for nothing in [&b""[..], b"\n \n", b"\xff\xfe", &[b'x'; 3 * BYTES_MAX]] {
            let text = read_until_blank(&mut &nothing[..]).expect("memory");
            assert_eq!(joined(&text).expect_err("no invitation").exit, exit::USAGE);
        }
    }
}
