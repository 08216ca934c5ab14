//! A body's bytes in blocks of one size, but for the first. A vector that grows leaves holes of all sizes behind, and what
//! is freed among them is not given back.

/// Bytes of a block.
const BLOCK: usize = 16 * 1024;

#[derive(Default)]
pub(super) struct BodyBuffer(Vec<Vec<u8>>);

impl BodyBuffer {
    /// By how many bytes of memory it grows with a piece of this length.
    pub(super) fn growth(&self, length: usize) -> usize {
        match self.0.last() {
            None => length,
            Some(last) => length.saturating_sub(last.capacity() - last.len()).next_multiple_of(BLOCK),
        }
    }

    pub(super) fn append(&mut self, piece: &[u8]) {
        let Some(last) = self.0.last_mut() else { return self.0.push(piece.to_vec()) };
        let (fits, more) = piece.split_at(piece.len().min(last.capacity() - last.len()));
        last.extend_from_slice(fits);
        for piece in more.chunks(BLOCK) {
            let mut block = Vec::with_capacity(BLOCK);
            block.extend_from_slice(piece);
            self.0.push(block);
        }
    }

    /// All of them as one.
    pub(super) fn joined(mut self) -> Vec<u8> {
        if self.0.len() == 1 { self.0.swap_remove(0) } else { self.0.concat() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_length_come_out_as_they_went_in() {
        let bytes: Vec<u8> = (0..=250).cycle().take(5 * BLOCK).collect();
        for length in [1, 7, 8_191, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 1, 5 * BLOCK] {
            let (mut buffer, mut grown) = (BodyBuffer::default(), 0);
            for piece in bytes.chunks(length) {
                grown += buffer.growth(piece.len());
                buffer.append(piece);
            }
            let taken: usize = buffer.0.iter().map(Vec::capacity).sum();
            assert_eq!((grown, buffer.joined() == bytes), (taken, true), "in pieces of {length}");
            assert!(taken < bytes.len() + BLOCK, "in pieces of {length}: {taken}");
        }
        assert!(BodyBuffer::default().joined().is_empty());
    }
}
