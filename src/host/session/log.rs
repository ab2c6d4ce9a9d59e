//! The last output of a session, for those who watch it now and those who attach later. Pure.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

/// Where a piece of output came from. The number is its byte on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Channel {
    Stdout = 1,
    Stderr = 2,
}

/// What a piece costs beside its bytes, roughly; counted, so that a flood of tiny pieces is bounded as well.
const PIECE_COST: u64 = 100;

/// A piece of output, in the form of a message without terminal: the channel's byte, then the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece(Bytes);

impl Piece {
    pub fn new(channel: Channel, output: &[u8]) -> Self {
        let mut bytes = BytesMut::with_capacity(1 + output.len());
        bytes.put_u8(channel as u8);
        bytes.put_slice(output);
        Self(bytes.freeze())
    }

    /// With the channel's byte in front.
    pub fn framed(&self) -> Bytes {
        self.0.clone()
    }

    /// The output alone.
    pub fn output(&self) -> Bytes {
        self.0.slice(1..)
    }

    /// What it takes of a log's capacity.
    fn cost(&self) -> u64 {
        self.0.len() as u64 + PIECE_COST
    }
}

/// The newest pieces, in order, each with a number one above that of its forerunner. Always holds the newest piece,
/// and beyond that no more than `capacity`, counted in bytes and the cost of pieces.
#[derive(Debug)]
pub struct Log {
    /// With the cost of all that came before each.
    pieces: VecDeque<(u64, Piece)>,
    /// Number of the oldest piece that is still held.
    first: u64,
    /// Cost of all that was ever pushed.
    total: u64,
    capacity: u64,
    /// Set when nothing will follow.
    status: Option<u8>,
}

/// What a reader at some place finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A piece, and the place after it.
    Piece(Piece, u64),
    /// Nothing follows; the exit status.
    End(u8),
    Nothing,
}

impl Log {
    pub fn new(capacity: u64) -> Self {
        Self { pieces: VecDeque::new(), first: 0, total: 0, capacity, status: None }
    }

    pub fn push(&mut self, piece: Piece) {
        debug_assert!(self.status.is_none(), "output after the end");
        let cost = piece.cost();
        self.pieces.push_back((self.total, piece));
        self.total += cost;
        while self.pieces.len() > 1 && self.pieces.front().is_some_and(|(start, _)| self.total - start > self.capacity)
        {
            self.pieces.pop_front();
            self.first += 1;
        }
    }

    /// Records the exit status, after which nothing is pushed.
    pub fn end(&mut self, status: u8) {
        self.status = Some(status);
    }

    pub fn has_ended(&self) -> bool {
        self.status.is_some()
    }

    /// What a reader finds at `place`; when that piece is lost already, the oldest one held.
    pub fn next(&self, place: u64) -> Next {
        let place = place.max(self.first);
        match self.pieces.get((place - self.first) as usize) {
            Some((_, piece)) => Next::Piece(piece.clone(), place + 1),
            None => self.status.map_or(Next::Nothing, Next::End),
        }
    }

    /// Whether a reader at `place` would lose a piece when `piece` is pushed.
    pub fn would_lose(&self, place: u64, piece: &Piece) -> bool {
        let Some(index) = place.checked_sub(self.first) else { return false };
        self.pieces.get(index as usize).is_some_and(|(start, _)| self.total - start + piece.cost() > self.capacity)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn piece(text: &str) -> Piece {
        Piece::new(Channel::Stdout, text.as_bytes())
    }

    #[test]
    fn a_piece_is_the_channels_byte_and_the_output() {
        let piece = Piece::new(Channel::Stderr, b"no");
        assert_eq!(piece.framed(), &b"\x02no"[..]);
        assert_eq!(piece.output(), &b"no"[..]);
    }

    #[test]
    fn a_reader_gets_every_piece_in_order_and_then_the_end() {
        let mut log = Log::new(1000);
        log.push(piece("a"));
        log.push(piece("b"));
        assert_eq!(log.next(0), Next::Piece(piece("a"), 1));
        assert_eq!(log.next(1), Next::Piece(piece("b"), 2));
        assert_eq!(log.next(2), Next::Nothing);
        log.end(3);
        assert_eq!(log.next(2), Next::End(3));
        assert_eq!(log.next(0), Next::Piece(piece("a"), 1));
    }

    #[test]
    fn old_pieces_go_when_the_capacity_is_passed_but_never_the_newest() {
        let mut log = Log::new(150);
        log.push(piece("aaa"));
        log.push(piece("bbb"));
        assert_eq!(log.next(0), Next::Piece(piece("bbb"), 2));
        log.push(piece(&"c".repeat(500)));
        assert_eq!(log.next(0), Next::Piece(piece(&"c".repeat(500)), 3));
    }

    #[test]
    fn a_reader_that_has_not_read_enough_would_lose_and_one_that_has_would_not() {
        let mut log = Log::new(300);
        assert!(!log.would_lose(0, &piece(&"a".repeat(500))));
        log.push(piece("a"));
        log.push(piece("b"));
        assert!(log.would_lose(0, &piece("c")));
        assert!(!log.would_lose(1, &piece("c")));
        assert!(log.would_lose(1, &piece(&"c".repeat(500))));
        assert!(!log.would_lose(2, &piece(&"c".repeat(500))));
    }

    proptest! {
        /// As a session does it: nothing is pushed while a client would lose a piece, until that client reads on.
        #[test]
        fn a_client_that_is_waited_for_loses_nothing_and_little_is_held(
            sizes in prop::collection::vec(0_usize..200, 0..50),
            reads in prop::collection::vec(0_usize..4, 50),
        ) {
            let mut log = Log::new(1000);
            let (mut place, mut seen) = (0, Vec::new());
            let pieces: Vec<Piece> = sizes.iter().map(|&size| piece(&"x".repeat(size))).collect();
            for (piece, &reads) in pieces.iter().zip(&reads) {
                let mut left = reads;
                while left > 0 || log.would_lose(place, piece) {
                    left = left.saturating_sub(1);
                    match log.next(place) {
                        Next::Piece(piece, after) => {
                            seen.push(piece);
                            place = after;
                        }
                        Next::Nothing => prop_assert!(!log.would_lose(place, piece)),
                        Next::End(_) => prop_assert!(false, "it has not ended"),
                    }
                }
                log.push(piece.clone());
                let held: u64 = log.pieces.iter().skip(1).map(|(_, piece)| piece.cost()).sum();
                prop_assert!(held <= 1000, "{} held", held);
            }
            while let Next::Piece(piece, after) = log.next(place) {
                seen.push(piece);
                place = after;
            }
            prop_assert_eq!(seen, pieces);
        }
    }
}
