//! What a command reads: standard input and files, into buffers that are wiped.

use std::io::{self, Read};

use zeroize::Zeroizing;

/// Reads until the input ends. Of an input that is too long it reads one byte more than `limit`.
pub(crate) fn read_all(input: &mut dyn Read, limit: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; limit + 1]);
    let read = read_into(input, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Reads until `buffer` is full or the input ends. It uses no other buffer, so that no copy stays unwiped.
fn read_into(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
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

/// One line, without its end; `None` if the input has ended. Nothing behind the line is read, and of a line longer than
/// `limit` only its beginning.
pub(crate) fn read_line(input: &mut dyn Read, limit: usize) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let (mut line, mut byte) = (Zeroizing::new(Vec::with_capacity(limit)), [0]);
    while line.len() < limit {
        match read_into(input, &mut byte)? {
            0 if line.is_empty() => return Ok(None),
            0 => break,
            _ if byte[0] == b'\n' => break,
            _ => line.push(byte[0]),
        }
    }
    Ok(Some(line))
}
