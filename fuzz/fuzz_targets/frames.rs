//! Frames on a stream: a frame that is read can be written again and gives the same bytes.
#![no_main]

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use quorate_client::frame::{FrameReader, encode};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (mut reader, mut written) = (FrameReader::new(bytes), BytesMut::new());
    // A stream in memory is always ready.
    while let Poll::Ready(Ok(Some(frame))) = pin!(reader.next()).poll(&mut Context::from_waker(Waker::noop())) {
        encode(&mut written, frame.kind, frame.id, &frame.body).expect("it was read");
        assert!(bytes.starts_with(&written));
    }
});
