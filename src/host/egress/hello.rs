//! Reads the first message of a TLS client and the server name in it. Nothing is decrypted; the bytes are kept, to be
//! passed on as they came.

use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::connection::Refusal;

/// Bytes of a hello; those with post-quantum keys have about 2,000.
const MAX_HELLO: usize = 16 * 1024;
/// Time for the whole hello. Clients send it at once.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// The start of a TLS connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// Lower case, no final dot.
    pub server_name: String,
    /// All that was read, the hello first.
    pub bytes: Vec<u8>,
}

/// Reads from `client` until the hello is complete.
pub(super) async fn read(client: &mut (impl AsyncRead + Unpin)) -> Result<Hello, Refusal> {
    tokio::time::timeout(HELLO_TIMEOUT, read_all(client)).await.unwrap_or(Err(Refusal::SlowHello))
}

async fn read_all(client: &mut (impl AsyncRead + Unpin)) -> Result<Hello, Refusal> {
    let mut acceptor = Acceptor::default();
    let mut bytes = Vec::with_capacity(2048);
    loop {
        let before = bytes.len();
        let room = (MAX_HELLO - before) as u64;
        if room == 0 {
            return Err(Refusal::LongHello);
        }
        if client.take(room).read_buf(&mut bytes).await.map_err(|_| Refusal::HungUp)? == 0 {
            return Err(if before == 0 { Refusal::HungUp } else { Refusal::NotTls });
        }
        let mut new = &bytes[before..];
        while !new.is_empty() {
            // The acceptor's buffer is larger than `MAX_HELLO`, so it takes something each time.
            if acceptor.read_tls(&mut new).map_err(|_| Refusal::LongHello)? == 0 {
                return Err(Refusal::LongHello);
            }
        }
        if let Some(accepted) = acceptor.accept().map_err(|_| Refusal::NotTls)? {
            let hello = accepted.client_hello();
            let name = hello.server_name().ok_or(Refusal::NoServerName)?.to_ascii_lowercase();
            let server_name = name.strip_suffix('.').map(str::to_owned).unwrap_or(name);
            return Ok(Hello { server_name, bytes });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn with_length(width: usize, content: &[u8]) -> Vec<u8> {
        [&(content.len() as u32).to_be_bytes()[4 - width..], content].concat()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &with_length(2, content)].concat()
    }

    /// A TLS 1.3 hello in one record, with a padding extension of `padding` bytes.
    fn client_hello(server_names: &[&str], padding: usize) -> Vec<u8> {
        let mut extensions = Vec::new();
        if !server_names.is_empty() {
            let list: Vec<u8> =
                server_names.iter().flat_map(|name| [&[0][..], &with_length(2, name.as_bytes())].concat()).collect();
            extensions.extend(extension(0, &with_length(2, &list)));
        }
        extensions.extend(extension(13, &with_length(2, &[0x04, 0x03, 0x08, 0x04]))); // signature algorithms
        extensions.extend(extension(43, &with_length(1, &[0x03, 0x04]))); // versions
        extensions.extend(extension(21, &vec![0; padding]));
        let body = [
            &[0x03, 0x03][..],
            &[7; 32],                                   // random
            &with_length(1, &[9; 32]),                  // session
            &with_length(2, &[0x13, 0x01, 0x13, 0x02]), // cipher suites
            &with_length(1, &[0]),                      // compression
            &with_length(2, &extensions),
        ]
        .concat();
        records(&[&[1][..], &with_length(3, &body)].concat(), 16 * 1024)
    }

    /// The handshake message in records of at most `size` bytes.
    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|part| [&[22, 3, 1][..], &with_length(2, part)].concat()).collect()
    }

    async fn read_from(bytes: &[u8]) -> Result<Hello, Refusal> {
        read(&mut &*bytes).await
    }

    #[tokio::test]
    async fn the_server_name_is_found_in_any_case_and_the_bytes_are_kept() {
        let sent = client_hello(&["Api.Example.com"], 0);
        let hello = read_from(&sent).await.unwrap();
        assert_eq!(hello, Hello { server_name: "api.example.com".into(), bytes: sent });
    }

    #[tokio::test]
    async fn a_hello_in_single_byte_writes_or_single_byte_records_is_understood() {
        let sent = client_hello(&["example.com"], 100);
        let (mut near, mut far) = tokio::io::duplex(1);
        let (read, _) = tokio::join!(read(&mut near), far.write_all(&sent));
        assert_eq!(read.unwrap().bytes, sent);

        let split = records(&sent[5..], 1);
        let hello = read_from(&split).await.unwrap();
        assert_eq!((hello.server_name.as_str(), hello.bytes), ("example.com", split));
    }

    #[tokio::test]
    async fn what_follows_the_hello_at_once_is_kept_for_passing_on() {
        let change_cipher_spec = [20, 3, 3, 0, 1, 1];
        let early_data = [23, 3, 3, 0, 3, 1, 2, 3];
        let sent = [&client_hello(&["example.com"], 0)[..], &change_cipher_spec, &early_data].concat();
        assert_eq!(read_from(&sent).await.unwrap().bytes, sent);
    }

    #[tokio::test]
    async fn anything_else_is_refused_with_its_reason() {
        assert!(matches!(read_from(&client_hello(&[], 0)).await, Err(Refusal::NoServerName)));
        assert!(matches!(read_from(&client_hello(&["10.0.0.1"], 0)).await, Err(Refusal::NoServerName)));
        assert!(matches!(read_from(&client_hello(&["a.example", "b.example"], 0)).await, Err(Refusal::NotTls)));
        assert!(matches!(read_from(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n").await, Err(Refusal::NotTls)));
        assert!(matches!(read_from(b"SSH-2.0-OpenSSH_9.9\r\n").await, Err(Refusal::NotTls)));
        assert!(matches!(read_from(b"").await, Err(Refusal::HungUp)));
        let sent = client_hello(&["example.com"], 0);
        assert!(matches!(read_from(&sent[..sent.len() - 1]).await, Err(Refusal::NotTls)));
    }

    #[tokio::test]
    async fn a_hello_may_be_large_but_not_larger_than_the_limit() {
        assert!(read_from(&client_hello(&["example.com"], 15_000)).await.is_ok());
        for padding in [16_300, 20_000, 60_000] {
            let refused = read_from(&client_hello(&["example.com"], padding)).await;
            assert!(matches!(refused, Err(Refusal::LongHello)), "{padding}: {refused:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hello_that_trickles_is_given_up_after_ten_seconds() {
        let sent = client_hello(&["example.com"], 0);
        let (mut near, mut far) = tokio::io::duplex(1024);
        let trickle = async {
            for byte in sent {
                far.write_all(&[byte]).await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let began = tokio::time::Instant::now();
        tokio::select! {
            refused = read(&mut near) => assert!(matches!(refused, Err(Refusal::SlowHello))),
            () = trickle => panic!("read on to the end"),
        }
        assert_eq!(began.elapsed(), HELLO_TIMEOUT);
    }

    proptest! {
        #[test]
        fn noise_never_panics_nor_names_a_server(at in 0usize..200, noise in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut sent = client_hello(&["example.com"], 0);
            let at = at % sent.len();
            for (to, from) in sent[at..].iter_mut().zip(&noise) {
                *to = *from;
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let _ = runtime.block_on(read_from(&sent));
            let _ = runtime.block_on(read_from(&noise));
        }
    }
}
