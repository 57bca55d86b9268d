//! The documents of the repository, as tests read them.

use std::fs;
use std::path::{Path, PathBuf};

/// The directory of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository").to_owned()
}

/// The text of a file of the repository.
pub(crate) fn read(document: &str) -> String {
    fs::read_to_string(root().join(document)).unwrap_or_else(|error| panic!("{document}: {error}"))
}

/// A fenced block and its language.
pub(crate) struct Block {
    pub(crate) language: String,
    pub(crate) text: String,
}

/// A document in its parts: fenced blocks, and paragraphs of prose.
pub(crate) fn parts(document: &str) -> (Vec<Block>, Vec<String>) {
    let (mut blocks, mut paragraphs, mut open) = (Vec::new(), vec![String::new()], None::<Block>);
    for line in document.lines() {
        let fence = line.trim_start().strip_prefix("```");
        match (open.take(), fence) {
            (Some(block), Some(_)) => blocks.push(block),
            (Some(block), None) => open = Some(Block { text: format!("{}{line}\n", block.text), ..block }),
            (None, Some(language)) => open = Some(Block { language: language.to_owned(), text: String::new() }),
            (None, None) if line.is_empty() => paragraphs.push(String::new()),
            (None, None) => {
                let last = paragraphs.last_mut().expect("there is always one");
                last.push_str(line);
                last.push('\n');
            }
        }
    }
    assert!(open.is_none(), "a fence is not closed");
    (blocks, paragraphs)
}

/// What stands between backticks.
pub(crate) fn spans(paragraph: &str) -> impl Iterator<Item = &str> {
    paragraph.split('`').skip(1).step_by(2)
}
