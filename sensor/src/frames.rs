//! Length-delimited [`ChannelFrame`]s on a byte stream, as they pass the Unix socket between sensor and shepherd.
//!
//! Data is never copied into a frame buffer: an encoded chunk is a short head and the chunk's own bytes; a decoded
//! one is a slice of the receive buffer.

use bytes::{Buf, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use sallyport_contract::resume::MAX_CHUNK;
use sallyport_contract::v1::{ChannelFrame, channel_frame::Body};

/// Largest frame accepted: the largest chunk and what stands around it.
pub const MAX_FRAME: usize = MAX_CHUNK + 64;

/// The peer's bytes are not frames.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length beyond [`MAX_FRAME`].
    #[error("a frame of {0} bytes is too large, the limit is {MAX_FRAME}")]
    TooLarge(u64),
    /// Not a varint where a length must be.
    #[error("a malformed frame length")]
    Length,
    /// The bytes within the length are not a frame.
    #[error("a malformed frame")]
    Body(#[source] prost::DecodeError),
}

/// Encodes a frame for the stream: the head, and for a chunk its data apart (else empty).
#[must_use]
pub fn encode(frame: &ChannelFrame) -> (Bytes, Bytes) {
    let Some(Body::Chunk(chunk)) = &frame.body else {
        return (frame.encode_length_delimited_to_vec().into(), Bytes::new());
    };
    // message ChannelFrame { uint64 seq = 1; Chunk chunk = 4 }, message Chunk { Stream stream = 1; bytes data = 2 }
    let n_data = chunk.data.len() as u64;
    let stream = u64::try_from(chunk.stream).unwrap_or_default();
    let chunk_len = 1 + encoded_len_varint(stream) as u64 + 1 + encoded_len_varint(n_data) as u64 + n_data;
    let frame_len =
        1 + encoded_len_varint(frame.seq) as u64 + 1 + encoded_len_varint(chunk_len) as u64 + chunk_len;
    let mut head = BytesMut::with_capacity(48);
    encode_varint(frame_len, &mut head);
    encode_key(1, WireType::Varint, &mut head);
    encode_varint(frame.seq, &mut head);
    encode_key(4, WireType::LengthDelimited, &mut head);
    encode_varint(chunk_len, &mut head);
    encode_key(1, WireType::Varint, &mut head);
    encode_varint(stream, &mut head);
    encode_key(2, WireType::LengthDelimited, &mut head);
    encode_varint(n_data, &mut head);
    (head.freeze(), chunk.data.clone())
}

/// Takes one whole frame off the front of `buffer`; `None`: more bytes are needed.
///
/// # Errors
/// The bytes are not frames; the stream cannot be used any further.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<ChannelFrame>, FrameError> {
    let Some((head, length)) = length(buffer)? else { return Ok(None) };
    if buffer.len() < head + length {
        return Ok(None);
    }
    buffer.advance(head);
    let bytes = buffer.split_to(length).freeze();
    ChannelFrame::decode(bytes).map(Some).map_err(FrameError::Body)
}

/// How many bytes the length takes, and the length; `None`: incomplete.
fn length(buffer: &[u8]) -> Result<Option<(usize, usize)>, FrameError> {
    let mut value = 0u64;
    for (n, byte) in buffer.iter().take(5).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * n);
        if byte & 0x80 == 0 {
            return match usize::try_from(value) {
                Ok(length) if length <= MAX_FRAME => Ok(Some((n + 1, length))),
                _ => Err(FrameError::TooLarge(value)),
            };
        }
    }
    if buffer.len() >= 5 { Err(FrameError::Length) } else { Ok(None) }
}

/// Fuzz entry: any bytes give frames or an error, never a panic, and nothing larger than the limit.
pub fn fuzz_frames(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    while let Ok(Some(frame)) = decode(&mut buffer) {
        let (head, data) = encode(&frame);
        assert!(data.len() <= MAX_FRAME && head.len() <= MAX_FRAME + 16);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sallyport_contract::v1::{Chunk, Exit, exit::Status};

    use super::*;

    fn stream_of(frames: &[ChannelFrame]) -> BytesMut {
        let mut out = BytesMut::new();
        for frame in frames {
            let (head, data) = encode(frame);
            out.extend_from_slice(&head);
            out.extend_from_slice(&data);
        }
        out
    }

    proptest! {
        #[test]
        fn chunks_survive(seq in 1u64.., stream in 0..4i32, data in proptest::collection::vec(any::<u8>(), 0..5000), cut in 1usize..700) {
            let frame = ChannelFrame { seq, body: Some(Body::Chunk(Chunk { stream, data: data.into() })) };
            let exit = ChannelFrame { seq: 2, body: Some(Body::Exit(Exit { status: Some(Status::Code(3)), ..Exit::default() })) };
            let frames = [frame.clone(), exit, frame];
            let bytes = stream_of(&frames);
            let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
            for piece in bytes.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = decode(&mut buffer).map_err(|e| TestCaseError::fail(e.to_string()))? {
                    got.push(frame);
                }
            }
            prop_assert_eq!(&got[..], &frames[..]);
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            fuzz_frames(&bytes);
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_it_is_buffered() {
        let mut buffer = BytesMut::from(&[0xff, 0xff, 0xff, 0x7f][..]);
        assert!(matches!(decode(&mut buffer), Err(FrameError::TooLarge(_))));
        let mut buffer = BytesMut::from(&[0xff; 5][..]);
        assert_eq!(decode(&mut buffer), Err(FrameError::Length));
    }
}
