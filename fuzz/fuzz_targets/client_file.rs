//! Client files: a file that is read is written in one form, which is read as the same file.
#![no_main]

use quorate_client::ClusterFile;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(file) = ClusterFile::parse(text) {
        let written = file.to_text();
        assert_eq!(ClusterFile::parse(&written).expect("our own text"), file);
    }
});
