//! The DNS messages a sandbox's resolver exchanges: one question in, one reply out. Pure.
//!
//! Written by hand since it takes less than a full codec: a question with strict labels and no compression is all
//! that is read, so there is nothing to follow, allocate or loop over on a hostile packet's word.

use std::net::Ipv4Addr;

use super::policy::{MAX_LABEL, MAX_NAME};

/// The most that is read: what a resolver may send over UDP without asking first.
pub(super) const MAX_QUERY: usize = 512;
/// How long a resolver may keep an address, in seconds. Addresses are stable; a policy is looked at again at connect.
const TTL: u32 = 60;

const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_OPT: u16 = 41;
const CLASS_IN: u16 = 1;

const FLAG_RESPONSE: u16 = 1 << 15;
const FLAG_TRUNCATED: u16 = 1 << 9;
const FLAG_RECURSION_DESIRED: u16 = 1 << 8;
const FLAG_RECURSION_AVAILABLE: u16 = 1 << 7;
const OPCODE_MASK: u16 = 0b1111 << 11;

/// A well-formed query for one name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Query<'a> {
    id: u16,
    recursion_desired: bool,
    /// The question as it came, so that the reply repeats its letter case.
    question: &'a [u8],
    /// Lower case, no final dot.
    pub name: String,
    kind: u16,
}

/// What there is to say about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Address(Ipv4Addr),
    /// The name exists and has no record of the kind asked for.
    Empty,
    NoSuchName,
    /// Not now: too many names.
    Failure,
}

impl<'a> Query<'a> {
    /// Reads a query; `None` for whatever is not a plain question about one host name.
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        if packet.len() > MAX_QUERY {
            return None;
        }
        let flags = u16_at(packet, 2)?;
        let [questions, answers, authorities, additional] = [4, 6, 8, 10].map(|at| u16_at(packet, at));
        let plain = flags & (FLAG_RESPONSE | FLAG_TRUNCATED | OPCODE_MASK) == 0;
        if !plain || (questions?, answers?, authorities?) != (1, 0, 0) {
            return None;
        }

        let (name, after_name) = read_name(packet, HEADER)?;
        let kind = u16_at(packet, after_name)?;
        let end = after_name + 4;
        if u16_at(packet, after_name + 2)? != CLASS_IN {
            return None;
        }
        // Modern resolvers add one OPT record; it asks for nothing that such short replies need.
        let rest = &packet[end..];
        let rest_is_fine = match additional? {
            0 => rest.is_empty(),
            1 => rest.first() == Some(&0) && u16_at(rest, 1) == Some(TYPE_OPT) && rest.len() >= 11,
            _ => false,
        };
        let recursion_desired = flags & FLAG_RECURSION_DESIRED != 0;
        let id = u16_at(packet, 0)?;
        rest_is_fine.then(|| Self { id, recursion_desired, question: &packet[HEADER..end], name, kind })
    }

    /// Whether an IPv4 address is asked for; every other kind of record is answered [`Answer::Empty`].
    pub fn wants_address(&self) -> bool {
        self.kind == TYPE_A
    }

    /// Writes the reply.
    pub fn reply(&self, answer: Answer) -> Vec<u8> {
        let code = match answer {
            Answer::Address(_) | Answer::Empty => 0,
            Answer::Failure => 2,
            Answer::NoSuchName => 3,
        };
        let asked = if self.recursion_desired { FLAG_RECURSION_DESIRED } else { 0 };
        let answers = u16::from(matches!(answer, Answer::Address(_)));
        let mut reply = Vec::with_capacity(HEADER + self.question.len() + 16);
        for field in [self.id, FLAG_RESPONSE | FLAG_RECURSION_AVAILABLE | asked | code, 1, answers, 0, 0] {
            reply.extend(field.to_be_bytes());
        }
        reply.extend(self.question);
        if let Answer::Address(address) = answer {
            let name_of_the_question: u16 = 0xc000 | HEADER as u16;
            for field in [name_of_the_question, TYPE_A, CLASS_IN] {
                reply.extend(field.to_be_bytes());
            }
            reply.extend(TTL.to_be_bytes());
            reply.extend(4u16.to_be_bytes());
            reply.extend(address.octets());
        }
        reply
    }
}

/// The name at `at` in lower case, and where it ends. Letters, digits, hyphens and underscores only.
fn read_name(packet: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        if length == 0 {
            return (!name.is_empty()).then_some((name, at));
        }
        // Compression pointers are lengths above 63.
        if length > MAX_LABEL {
            return None;
        }
        let label = packet.get(at..at + length)?;
        if !label.iter().all(|&b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
        at += length;
        if name.len() > MAX_NAME {
            return None;
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use simple_dns::rdata::{OPT, RData};
    use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};

    use super::*;

    /// A query as another implementation writes it.
    fn query(name: &str, kind: TYPE) -> Packet<'_> {
        let mut packet = Packet::new_query(77);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        packet.questions.push(Question::new(
            Name::new_unchecked(name),
            QTYPE::TYPE(kind),
            QCLASS::CLASS(CLASS::IN),
            false,
        ));
        packet
    }

    fn bytes(packet: &Packet<'_>) -> Vec<u8> {
        packet.build_bytes_vec().unwrap()
    }

    #[test]
    fn a_query_is_understood_and_its_reply_is_understood_by_another_implementation() {
        let packet = bytes(&query("Api.Example.com", TYPE::A));
        let parsed = Query::parse(&packet).unwrap();
        assert_eq!(parsed.name, "api.example.com");
        assert!(parsed.wants_address());

        let reply = parsed.reply(Answer::Address(Ipv4Addr::new(198, 18, 0, 2)));
        let reply = Packet::parse(&reply).unwrap();
        assert_eq!((reply.id(), reply.rcode()), (77, RCODE::NoError));
        assert!(
            reply.has_flags(PacketFlag::RESPONSE | PacketFlag::RECURSION_DESIRED | PacketFlag::RECURSION_AVAILABLE)
        );
        assert_eq!(reply.questions[0].qname.to_string(), "Api.Example.com");
        assert_eq!(reply.answers[0].name.to_string(), "Api.Example.com");
        assert!(matches!(&reply.answers[0].rdata, RData::A(a) if a.address == Ipv4Addr::new(198, 18, 0, 2).to_bits()));
    }

    #[test]
    fn other_answers_carry_no_record() {
        let packet = bytes(&query("example.com", TYPE::AAAA));
        let parsed = Query::parse(&packet).unwrap();
        assert!(!parsed.wants_address());
        let codes = [
            (Answer::Empty, RCODE::NoError),
            (Answer::NoSuchName, RCODE::NameError),
            (Answer::Failure, RCODE::ServerFailure),
        ];
        for (answer, code) in codes {
            let reply = parsed.reply(answer);
            let reply = Packet::parse(&reply).unwrap();
            assert_eq!((reply.rcode(), reply.answers.len()), (code, 0));
        }
    }

    #[test]
    fn an_opt_record_is_accepted_and_ignored() {
        let mut packet = query("example.com", TYPE::A);
        *packet.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: 1232, version: 0 });
        assert_eq!(Query::parse(&bytes(&packet)).unwrap().name, "example.com");
    }

    #[test]
    fn odd_packets_are_not_queries() {
        let good = bytes(&query("ab.example", TYPE::A));
        assert!(Query::parse(&good).is_some());
        let with = |at: usize, byte: u8| {
            let mut packet = good.clone();
            packet[at] = byte;
            packet
        };
        let question = good[HEADER..].to_vec();
        let two_questions = [&with(5, 2)[..], &question].concat();
        let trailing = [&good[..], b"x"].concat();
        let too_long_name = {
            let mut packet = good[..HEADER].to_vec();
            packet.extend([1, b'a'].repeat(130));
            packet.extend([0, 0, 1, 0, 1]);
            packet
        };
        let root = [&good[..HEADER], &[0, 0, 1, 0, 1]].concat();
        let loops = [&good[..HEADER], &[0xc0, 12, 0, 1, 0, 1]].concat();
        let odd = [
            ("empty", vec![]),
            ("header only", good[..HEADER].to_vec()),
            ("response", with(2, 0x81)),
            ("truncated", with(2, 0x03)),
            ("another opcode", with(2, 0x29)),
            ("no question", with(5, 0)),
            ("two questions", two_questions),
            ("an answer section", with(7, 1)),
            ("an authority section", with(9, 1)),
            ("a missing additional record", with(11, 1)),
            ("two additional records", with(11, 2)),
            ("65,535 records", with(10, 0xff)),
            ("a dot within a label", with(13, b'.')),
            ("a NUL within a label", with(13, 0)),
            ("a byte above ASCII within a label", with(13, 0xe4)),
            ("a label that is longer than the packet", with(12, 60)),
            ("a label above 63", with(12, 64)),
            ("another class", with(good.len() - 1, 3)),
            ("bytes after the question", trailing),
            ("a name above 253", too_long_name),
            ("the root", root),
            ("a compression loop", loops),
            ("too long a packet", [good.clone(), vec![0; 600]].concat()),
        ];
        for (what, packet) in odd {
            assert_eq!(Query::parse(&packet), None, "{what}");
        }
        for end in 0..good.len() {
            assert_eq!(Query::parse(&good[..end]), None, "cut at {end}");
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(packet in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Query::parse(&packet);
        }

        #[test]
        fn a_damaged_query_is_dropped_or_names_a_host(at in 0usize..29, byte: u8) {
            let mut packet = bytes(&query("abc.example", TYPE::A));
            let at = at % packet.len();
            packet[at] = byte;
            if let Some(query) = Query::parse(&packet) {
                prop_assert!(query.name.bytes().all(|b| b"abcdefghijklmnopqrstuvwxyz0123456789-_.".contains(&b)));
                prop_assert!(query.reply(Answer::NoSuchName).len() <= MAX_QUERY);
            }
        }
    }
}
