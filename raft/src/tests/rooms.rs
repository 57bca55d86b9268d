//! The folders use each other in one direction: each only those before it.

use std::path::{Path, PathBuf};

/// In the order in which lib.rs names them.
const ORDER: [&str; 6] = ["live", "types", "stored", "log", "snapshot", "consensus"];

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

#[test]
fn folders_use_only_those_before_them() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut read = 0;
    for (at, folder) in ORDER.iter().enumerate() {
        let (dir, file) = (src.join(folder), src.join(folder).with_extension("rs"));
        for path in if dir.is_dir() { sources(&dir) } else { vec![file] } {
            let text = std::fs::read_to_string(&path).expect("a source");
            let later = ORDER[at + 1..].iter().find(|later| text.contains(&format!("crate::{later}")));
            assert_eq!(later, None, "{} is in an earlier folder", path.display());
            read += 1;
        }
    }
    assert!(read > 20, "the control: {read} files");
}
