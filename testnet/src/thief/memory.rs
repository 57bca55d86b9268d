//! Looking for known secrets in the memory of a running process: what root, or the owner of a core dump, finds there.
//!
//! The process is held still meanwhile. All that it can write is searched, stacks and what the allocator has taken back
//! included: a secret that was dropped without being wiped is still there. Registers are not looked at.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use crate::procs::process::Process;
use crate::thief::canary::Canary;

/// What a search saw.
#[derive(Debug, Default)]
pub struct Scan {
    /// Every canary, wherever it stands.
    pub sightings: Vec<Sighting>,
    /// Mappings that cannot be read, not even by root.
    pub hidden: Vec<String>,
    /// How much was searched.
    pub bytes: u64,
}

/// A canary that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    pub what: String,
    pub address: u64,
    /// What the memory there is: its name, if it has one.
    pub mapping: String,
    /// Whether that memory is locked and stays out of core dumps.
    pub locked: bool,
}

impl Scan {
    /// What was found outside of locked memory.
    pub fn unlocked(&self) -> Vec<&Sighting> {
        self.sightings.iter().filter(|sighting| !sighting.locked).collect()
    }

    /// How often each canary was found.
    pub fn count(&self, canary: &Canary) -> usize {
        self.sightings.iter().filter(|sighting| sighting.what == canary.what).count()
    }
}

/// Searches the memory of `process`.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] if the caller may not trace the process: a daemon allows that to root alone.
pub fn search(process: &Process, canaries: &[Canary]) -> io::Result<Scan> {
    let memory = File::open(format!("/proc/{}/mem", process.pid()))?;
    process.pause()?;
    let scan = mappings(process.pid()).and_then(|mappings| scan(&memory, &mappings, canaries));
    process.resume()?;
    scan
}

/// A range of addresses that the process can write.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    name: String,
    locked: bool,
}

fn scan(memory: &File, mappings: &[Mapping], canaries: &[Canary]) -> io::Result<Scan> {
    let mut scan = Scan::default();
    for mapping in mappings {
        let mut content = vec![0; usize::try_from(mapping.end - mapping.start).map_err(io::Error::other)?];
        match memory.read_exact_at(&mut content, mapping.start) {
            // What memfd_secret(2) made, and what devices map.
            Err(_) => scan.hidden.push(mapping.name.clone()),
            Ok(()) => {
                scan.bytes += content.len() as u64;
                for canary in canaries {
                    let sighting = |offset| Sighting {
                        what: canary.what.clone(),
                        address: mapping.start + offset as u64,
                        mapping: mapping.name.clone(),
                        locked: mapping.locked,
                    };
                    scan.sightings.extend(canary.find(&content).map(sighting));
                }
            }
        }
    }
    Ok(scan)
}

fn mappings(pid: u32) -> io::Result<Vec<Mapping>> {
    Ok(parse(&fs::read_to_string(format!("/proc/{pid}/smaps"))?))
}

/// The writable mappings of `/proc/PID/smaps`: each begins with a line of its addresses, and ends with one of its flags.
fn parse(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    let mut writable = false;
    for line in smaps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [range, mode, _, _, _, name @ ..] if range.contains('-') && !range.ends_with(':') => {
                writable = mode.starts_with("rw");
                let address = |text: &str| u64::from_str_radix(text, 16).unwrap_or_default();
                let (start, end) = range.split_once('-').map_or((0, 0), |(start, end)| (address(start), address(end)));
                if writable {
                    mappings.push(Mapping { start, end, name: name.join(" "), locked: false });
                }
            }
            ["VmFlags:", flags @ ..] if writable => {
                if let Some(mapping) = mappings.last_mut() {
                    mapping.locked = flags.contains(&"lo") && flags.contains(&"dd");
                }
            }
            _ => {}
        }
    }
    mappings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_with_their_flags() {
        let smaps = "\
7f00-7f10 rw-p 00000000 00:00 0 \nSize: 4 kB\nLocked: 4 kB\nVmFlags: rd wr mr mw me lo ac dd \n\
8000-9000 r-xp 00000000 08:01 77 /usr/lib/libc.so\nSize: 4 kB\nVmFlags: rd ex lo dd \n\
a000-b000 rw-s 00000000 00:0e 1 /secretmem (deleted)\nSize: 4 kB\nVmFlags: rd wr sh lo \n";
        let expected = [
            Mapping { start: 0x7f00, end: 0x7f10, name: String::new(), locked: true },
            Mapping { start: 0xa000, end: 0xb000, name: "/secretmem (deleted)".to_owned(), locked: false },
        ];
        assert_eq!(parse(smaps), expected);
    }
}
