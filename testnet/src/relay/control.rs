//! The relay as a process of its own, for clusters that outlive the command that started them.
//!
//! It is told what to do over a socket in the cluster's directory: one line in, one line out, `ok` or `error: …`.
//!
//! ```text
//! ping | stop | heal | cut NODE | cut NODE NODE | quality LOSS DUPLICATE DELAY_MIN_MS DELAY_MAX_MS SEED
//! ```

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use quorate_client::place;

use super::Relay;
use crate::faults::network::{Faults, LinkQuality};

/// Longest command; longer ones are refused.
const COMMAND_BYTES_MAX: u64 = 1024;
/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);

/// Obeys commands on a socket at `path` until it is told to stop.
///
/// # Errors
/// If the socket cannot be made or fails.
pub fn serve(relay: &Relay, path: &Path) -> io::Result<()> {
    let listener = place::bind(path)?;
    loop {
        let (stream, _) = listener.accept()?;
        // A caller that breaks off half-way harms only itself.
        if let Ok(true) = answer(relay.faults(), &stream) {
            return std::fs::remove_file(path);
        }
    }
}

/// Sends one command to the relay at `path`.
///
/// # Errors
/// If no relay answers there, or if the relay refuses the command.
pub fn tell(path: &Path, command: &str) -> io::Result<()> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    writeln!(stream, "{command}")?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply)?;
    match reply.trim_end() {
        "ok" => Ok(()),
        refused => Err(io::Error::other(refused.trim_start_matches("error: ").to_owned())),
    }
}

fn answer(faults: &Faults, mut stream: &UnixStream) -> io::Result<bool> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(io::Read::take(stream, COMMAND_BYTES_MAX)).read_line(&mut line)?;
    let words: Vec<_> = line.split_whitespace().collect();
    let reply = obey(faults, &words);
    match &reply {
        Ok(()) => writeln!(stream, "ok")?,
        Err(reason) => writeln!(stream, "error: {reason}")?,
    }
    Ok(words == ["stop"])
}

fn obey(faults: &Faults, words: &[&str]) -> Result<(), String> {
    match words {
        ["ping" | "stop"] => Ok(()),
        ["heal"] => {
            faults.heal();
            Ok(())
        }
        ["cut", node] => faults.cut(node).map_err(|error| error.to_string()),
        ["cut", one, other] => faults.cut_pair(one, other).map_err(|error| error.to_string()),
        ["quality", numbers @ ..] => {
            let (quality, seed) = quality(numbers).ok_or("quality LOSS DUPLICATE DELAY_MIN_MS DELAY_MAX_MS SEED")?;
            faults.set_quality(quality, seed);
            Ok(())
        }
        _ => Err("unknown command".to_owned()),
    }
}

fn quality(numbers: &[&str]) -> Option<(LinkQuality, u64)> {
    let [loss, duplicate, least, most, seed] = numbers else { return None };
    let share = |text: &str| text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    let (least, most) = (least.parse().ok()?, most.parse().ok()?);
    let delay = Duration::from_millis(least)..=Duration::from_millis(most);
    Some((LinkQuality { loss: share(loss)?, duplicate: share(duplicate)?, delay }, seed.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_obeys_its_socket_and_stops_when_told() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("relay.sock");
        let relay = Relay::start(Vec::new()).expect("starts");
        std::thread::scope(|scope| {
            let served = scope.spawn(|| serve(&relay, &path));
            let up = || tell(&path, "ping").is_ok().then_some(());
            crate::base::wait::wait_until("the relay's socket", PATIENCE, up).expect("it comes up");
            for good in ["heal", "quality 0.1 0 5 20 7"] {
                tell(&path, good).expect(good);
            }
            for bad in ["", "cut n9", "cut", "quality 2 0 0 0 0", "quality 0 0 0 0", "dance"] {
                tell(&path, bad).expect_err(bad);
            }
            tell(&path, "stop").expect("stops");
            served.join().expect("no panic").expect("ends cleanly");
        });
        assert!(!path.exists());
    }
}
