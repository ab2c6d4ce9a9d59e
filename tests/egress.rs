//! The gateway over real sockets, driven as code in a sandbox would.

#[path = "egress/sandbox.rs"]
mod sandbox;

use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener as StdListener, UdpSocket as StdUdpSocket};
use std::time::Duration;

use janebot::config::Grant;
use janebot::host::egress::Gateway;
use janebot::host::sandbox::NetworkFds;
use janebot::sprites::NetworkPolicy;
use simple_dns::{RCODE, TYPE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use sandbox::*;

#[tokio::test]
async fn an_allowed_name_is_reached_end_to_end_and_halves_close_separately() {
    let world = World::with(Some(echo_server().await), &[("api.example.com", "93.184.216.34")]);
    let sandbox = Sandbox::start(&[("api.example.com", "allow")], &[], world.clone()).await;

    let mut stream = sandbox.open("API.Example.com", "Api.example.COM").await;
    expect_echo(&mut stream, &client_hello(Some("Api.example.COM"))).await;
    let large = vec![b'x'; 1_000_000];
    let (mut from, mut to) = stream.split();
    let send = async {
        to.write_all(&large).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let (_, received) = tokio::join!(send, timeout(PATIENCE, from.read_to_end(&mut back)));
    received.expect("the end comes in time").expect("an orderly end, no reset");
    assert!(back == large);

    assert_eq!(world.lookups(), ["api.example.com."], "looked up once, as an absolute name");
    assert_eq!(world.dialled(), ["93.184.216.34:443"]);
    let counters = sandbox.counters();
    let bytes = large.len() as u64 + client_hello(Some("api.example.com")).len() as u64;
    assert_eq!((counters.connections, counters.bytes_out, counters.bytes_in), (1, bytes, bytes));
    assert_eq!(counters.recent, Vec::<String>::new());
}

#[tokio::test]
async fn names_resolve_by_policy_and_nothing_is_asked_outside() {
    let world = World::with(None, &[("example.com", "93.184.216.34")]);
    let sandbox = Sandbox::start(&[("*.example.com", "allow"), ("bad.example.com", "deny")], &[], world.clone()).await;
    let first = sandbox.resolve("example.com").await;
    assert_eq!(first, Ipv4Addr::new(127, 64, 0, 2));
    assert_eq!(sandbox.resolve("EXAMPLE.com").await, first);
    assert_eq!(sandbox.resolve("a.example.com").await, Ipv4Addr::new(127, 64, 0, 3));
    for kind in [TYPE::AAAA, TYPE::HTTPS, TYPE::SVCB, TYPE::TXT, TYPE::MX] {
        assert_eq!(sandbox.ask("example.com", kind).await, (RCODE::NoError, None));
    }
    let tunnel = format!("{}.evil.com", "a".repeat(60));
    for name in ["evil.com", &tunnel, "notexample.com", "example.com.evil.com", "bad.example.com", "localhost"] {
        assert_eq!(sandbox.ask(name, TYPE::A).await, (RCODE::NameError, None), "{name}");
    }
    assert_eq!(sandbox.counters().names_denied, 6);
    assert_eq!(sandbox.last_sentence(), "denied: localhost by policy");
    assert_eq!(world.lookups(), Vec::<String>::new());
}

#[tokio::test]
async fn dns_works_over_tcp_and_ends_the_connection_at_an_odd_message() {
    let sandbox = Sandbox::start(&[("example.com", "allow")], &[], World::with(None, &[])).await;
    let mut stream = TcpStream::connect(sandbox.dns).await.unwrap();
    for (name, code) in [("example.com", RCODE::NoError), ("evil.com", RCODE::NameError)] {
        stream.write_all(&with_length(2, &query(name, TYPE::A))).await.unwrap();
        let mut reply = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(read_reply(&reply).0, code, "{name}");
    }
    stream.write_all(&with_length(2, &[0; 600])).await.unwrap();
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the connection ends");
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn malformed_dns_gets_no_reply_and_harms_nothing() {
    let sandbox = Sandbox::start(&[], &[], World::with(None, &[])).await;
    let good = query("ab.example", TYPE::A);
    let with = |at: usize, byte: u8| {
        let mut packet = good.clone();
        packet[at] = byte;
        packet
    };
    let odd = [
        vec![],
        good[..12].to_vec(),
        good[..good.len() - 1].to_vec(),
        with(13, b'.'),
        with(13, 0),
        with(12, 0xc0),
        with(2, 0x80),
        with(5, 2),
        with(10, 0xff),
        [&good[..12], &[0xc0, 12, 0, 1, 0, 1]].concat(),
        [good.clone(), vec![0; 2_000]].concat(),
    ];
    for packet in odd {
        sandbox.client.send_to(&packet, sandbox.dns).await.unwrap();
    }
    // Replies come in the order of asking: the first to arrive is the good one's.
    assert_eq!(sandbox.ask("ab.example", TYPE::A).await.0, RCODE::NoError);
}

#[tokio::test(start_paused = true)]
async fn queries_above_the_rate_are_dropped_and_the_rate_comes_back() {
    let sandbox = Sandbox::start(&[("example.com", "allow")], &[], World::with(None, &[])).await;
    let packet = query("example.com", TYPE::A);
    for asked in 0..1_000 {
        assert!(sandbox.datagram(&packet, PATIENCE).await.is_some(), "query {asked}");
    }
    assert!(sandbox.datagram(&packet, Duration::from_millis(1)).await.is_none(), "the burst is used up");
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..200 {
        assert!(sandbox.datagram(&packet, PATIENCE).await.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn new_names_below_a_suffix_run_out() {
    let sandbox = Sandbox::start(&[("*.example.com", "allow")], &[], World::with(None, &[])).await;
    let mut answers = Vec::new();
    for n in 0..70 {
        answers.push(sandbox.ask(&format!("n{n}.example.com"), TYPE::A).await.0);
    }
    assert_eq!(answers.iter().filter(|&&code| code == RCODE::NoError).count(), 60);
    assert!(answers[60..].iter().all(|&code| code == RCODE::ServerFailure));
    assert_eq!(sandbox.last_sentence(), "denied: n69.example.com because this sprite uses too many new names");
}

#[tokio::test]
async fn a_guessed_address_is_reset() {
    let world = World::with(Some(echo_server().await), &[("example.com", "93.184.216.34")]);
    let sandbox = Sandbox::start(&[], &[], world.clone()).await;
    sandbox.resolve("example.com").await;
    for guess in [Ipv4Addr::new(127, 64, 0, 3), Ipv4Addr::new(127, 64, 0, 1), Ipv4Addr::LOCALHOST] {
        expect_reset(sandbox.connect(guess, 443).await).await;
        assert_eq!(sandbox.last_sentence(), format!("denied: {guess}:443 because this address was never handed out"));
    }
    assert_eq!(sandbox.counters().connects_denied, 3);
    assert_eq!(world.lookups(), Vec::<String>::new());
}

#[tokio::test]
async fn a_name_that_leads_to_a_special_address_is_reset_and_never_dialled() {
    let special = [
        "127.0.0.1",
        "127.255.0.1",
        "0.0.0.0",
        "0.1.2.3",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "100.100.100.200",
        "169.254.169.254",
        "168.63.129.16",
        "192.0.0.1",
        "192.0.2.1",
        "198.51.100.1",
        "203.0.113.1",
        "198.18.0.1",
        "198.19.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "240.0.0.1",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:93.184.216.34",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "fe80::1",
        "fec0::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "2001:db8::1",
        "3fff::1",
        "2002:7f00:1::",
        "2001::1",
        "100::1",
    ];
    let names: Vec<String> = (0..special.len()).map(|n| format!("n{n}.example")).collect();
    let table: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(special).collect();
    let world = World::with(Some(echo_server().await), &table);
    let sandbox = Sandbox::start(&[], &[], world.clone()).await;
    for (name, address) in table {
        expect_reset(sandbox.open(name, name).await).await;
        let address: IpAddr = address.parse().unwrap();
        let reason = format!("denied: {name}:443 because it resolves to {address}, which is not a public address");
        assert_eq!(sandbox.last_sentence(), reason);
    }
    assert_eq!(world.dialled(), Vec::<String>::new());
}

#[tokio::test]
async fn special_addresses_among_public_ones_are_left_out() {
    let world = World::with(Some(echo_server().await), &[("example.com", "127.0.0.1 fe80::1 93.184.216.34 10.0.0.1")]);
    let sandbox = Sandbox::start(&[], &[], world.clone()).await;
    let mut stream = sandbox.open("example.com", "example.com").await;
    expect_echo(&mut stream, &client_hello(Some("example.com"))).await;
    assert_eq!(world.dialled(), ["93.184.216.34:443"]);
}

#[tokio::test]
async fn a_name_that_cannot_be_reached_or_looked_up_is_a_failure_and_no_denial() {
    let world = World::with(None, &[("down.example", "93.184.216.34 2606:4700::1111")]);
    let sandbox = Sandbox::start(&[], &[], world.clone()).await;
    expect_reset(sandbox.open("down.example", "down.example").await).await;
    assert_eq!(sandbox.last_sentence(), "failed: down.example:443 because it can't be reached: connection refused");
    assert_eq!(world.dialled(), ["93.184.216.34:443", "[2606:4700::1111]:443"]);
    expect_reset(sandbox.open("unknown.example", "unknown.example").await).await;
    assert_eq!(
        sandbox.last_sentence(),
        "failed: unknown.example:443 because its address can't be looked up: no such host"
    );
    assert_eq!((sandbox.counters().failures, sandbox.counters().connects_denied), (2, 0));
}

#[tokio::test]
async fn a_hello_for_another_name_or_none_or_no_hello_is_reset_before_any_lookup() {
    let world =
        World::with(Some(echo_server().await), &[("good.example", "93.184.216.34"), ("evil.example", "1.1.1.1")]);
    let sandbox = Sandbox::start(&[("good.example", "allow")], &[], world.clone()).await;
    let address = sandbox.resolve("good.example").await;
    let cases = [
        (client_hello(Some("evil.example")), "denied: good.example:443 because its TLS hello names evil.example"),
        (client_hello(None), "denied: good.example:443 because its TLS hello names no server"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "denied: good.example:443 because it does not begin with a TLS hello"),
    ];
    for (sent, sentence) in cases {
        let mut stream = sandbox.connect(address, 443).await;
        stream.write_all(&sent).await.unwrap();
        expect_reset(stream).await;
        assert_eq!(sandbox.last_sentence(), sentence);
    }
    assert_eq!((sandbox.counters().sni_mismatches, sandbox.counters().connects_denied), (2, 1));
    assert_eq!(world.lookups(), Vec::<String>::new());
}

#[tokio::test]
async fn a_hello_in_single_bytes_is_understood() {
    let world = World::with(Some(echo_server().await), &[("example.com", "93.184.216.34")]);
    let sandbox = Sandbox::start(&[], &[], world).await;
    let mut stream = sandbox.connect(sandbox.resolve("example.com").await, 443).await;
    stream.set_nodelay(true).unwrap();
    let hello = client_hello(Some("example.com"));
    for byte in &hello {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    expect_echo(&mut stream, &hello).await;
}

#[tokio::test(start_paused = true)]
async fn a_hello_that_never_ends_is_reset_after_a_while() {
    let sandbox = Sandbox::start(&[], &[], World::with(None, &[("example.com", "93.184.216.34")])).await;
    let mut stream = sandbox.connect(sandbox.resolve("example.com").await, 443).await;
    stream.write_all(&client_hello(Some("example.com"))[..40]).await.unwrap();
    expect_reset(stream).await;
    assert_eq!(sandbox.last_sentence(), "denied: example.com:443 because its TLS hello did not come in time");
}

#[tokio::test]
async fn a_new_policy_cuts_what_it_denies_and_nothing_else() {
    let world =
        World::with(Some(echo_server().await), &[("a.example", "93.184.216.34"), ("b.example", "93.184.216.34")]);
    let sandbox = Sandbox::start(&[("*.example", "allow")], &[], world).await;
    let mut a = sandbox.open("a.example", "a.example").await;
    let mut b = sandbox.open("b.example", "b.example").await;
    expect_echo(&mut a, &client_hello(Some("a.example"))).await;
    expect_echo(&mut b, &client_hello(Some("b.example"))).await;

    sandbox.policy.send_replace(policy(&[("b.example", "allow")]));
    expect_reset(a).await;
    assert_eq!(sandbox.last_sentence(), "denied: a.example:443 by policy");
    b.write_all(b"still here").await.unwrap();
    expect_echo(&mut b, b"still here").await;

    // The address that was handed out before leads nowhere now, and the name is gone.
    expect_reset(sandbox.connect(Ipv4Addr::new(127, 64, 0, 2), 443).await).await;
    assert_eq!(sandbox.ask("a.example", TYPE::A).await.0, RCODE::NameError);

    sandbox.policy.send_replace(NetworkPolicy::deny_all());
    expect_reset(b).await;
}

#[tokio::test]
async fn other_ports_relay_without_a_hello_and_port_80_is_shut() {
    let world = World::with(Some(echo_server().await), &[("git.example", "93.184.216.34")]);
    let sandbox = Sandbox::start(&[("git.example", "allow")], &[], world.clone()).await;
    let address = sandbox.resolve("git.example").await;
    let mut stream = sandbox.connect(address, 22).await;
    stream.write_all(b"SSH-2.0-test\r\n").await.unwrap();
    expect_echo(&mut stream, b"SSH-2.0-test\r\n").await;
    assert_eq!(world.dialled(), ["93.184.216.34:22"]);
    expect_reset(sandbox.connect(address, 80).await).await;
    assert_eq!(sandbox.last_sentence(), "denied: git.example:80 because only port 443 leads out");
}

#[tokio::test]
async fn a_grant_leads_to_the_operators_target_and_needs_a_rule() {
    let server = echo_server().await;
    let grant = Grant { name: "Model.janebot.internal".into(), target: server.to_string() };
    let world = World::with(None, &[]);
    let sandbox = Sandbox::start(&[("*", "deny")], &[grant], world.clone()).await;
    assert_eq!(sandbox.ask("model.janebot.internal", TYPE::A).await.0, RCODE::NameError);

    sandbox.policy.send_replace(policy(&[("model.janebot.internal", "allow")]));
    let address = sandbox.resolve("model.janebot.internal").await;
    let mut stream = sandbox.connect(address, 80).await;
    stream.write_all(b"POST /").await.unwrap();
    expect_echo(&mut stream, b"POST /").await;
    assert_eq!(world.dialled(), [server.to_string()]);

    expect_reset(sandbox.connect(address, 443).await).await;
    assert_eq!(
        sandbox.last_sentence(),
        "denied: model.janebot.internal:443 because this name is served on port 80 only"
    );
    sandbox.policy.send_replace(NetworkPolicy::deny_all());
    expect_reset(stream).await;
}

#[tokio::test]
async fn a_grant_without_a_port_is_refused_at_start() {
    let listener = || StdListener::bind("127.0.0.1:0").unwrap().into();
    for target in ["localhost", "localhost:", "localhost:0", ":80", "localhost:http", ""] {
        let dns_udp = StdUdpSocket::bind("127.0.0.1:0").unwrap().into();
        let fds = NetworkFds { dns_udp, dns_tcp: listener(), listeners: Vec::new() };
        let (_keep, policy) = watch::channel(NetworkPolicy::default());
        let grant = Grant { name: "model.internal".into(), target: target.into() };
        let refused = Gateway::start("box", fds, policy, [grant].into(), World::with(None, &[])).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("the grant model.internal leads to {target:?}, which is not HOST:PORT")
        );
    }
}

#[tokio::test]
async fn connections_of_a_sprite_are_limited() {
    let world = World::with(Some(echo_server().await), &[("git.example", "93.184.216.34")]);
    let sandbox = Sandbox::start(&[], &[], world).await;
    let address = sandbox.resolve("git.example").await;
    let mut open = Vec::new();
    for _ in 0..256 {
        let mut stream = sandbox.connect(address, 22).await;
        stream.write_all(b"x").await.unwrap();
        expect_echo(&mut stream, b"x").await;
        open.push(stream);
    }
    expect_reset(sandbox.connect(address, 22).await).await;
    assert_eq!(sandbox.last_sentence(), "denied: a connection because 256 are open");
    let mut one = open.pop().unwrap();
    one.shutdown().await.unwrap();
    assert_eq!(one.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_given_up_in_the_end() {
    let world = World::with(Some(echo_server().await), &[("git.example", "93.184.216.34")]);
    let sandbox = Sandbox::start(&[], &[], world).await;
    let mut stream = sandbox.open_plain("git.example").await;
    stream.write_all(b"x").await.unwrap();
    let mut back = [0];
    stream.read_exact(&mut back).await.unwrap();
    let began = tokio::time::Instant::now();
    let ended = stream.read(&mut back).await.map_err(|error| error.kind());
    assert_eq!(ended, Err(io::ErrorKind::ConnectionReset));
    assert!(began.elapsed() >= Duration::from_secs(600) && began.elapsed() <= Duration::from_secs(1_200));
}

#[tokio::test]
async fn dropping_the_gateway_ends_its_connections_and_closes_its_sockets() {
    let world = World::with(Some(echo_server().await), &[("git.example", "93.184.216.34")]);
    let sandbox = Sandbox::start(&[], &[], world).await;
    let address = sandbox.resolve("git.example").await;
    let mut stream = sandbox.connect(address, 22).await;
    stream.write_all(b"x").await.unwrap();
    expect_echo(&mut stream, b"x").await;
    drop(sandbox.gateway);
    expect_reset(stream).await;
    let refused = TcpStream::connect((address, sandbox.ports[&22])).await.map_err(|error| error.kind());
    assert_eq!(refused.err(), Some(io::ErrorKind::ConnectionRefused));
}

/// Prints how fast bytes go through the gateway and past it.
#[ignore = "a measurement: run it alone, with --release and --nocapture"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throughput_and_round_trips_are_printed() {
    const BYTES: usize = 256 * 1024 * 1024;
    const TRIPS: u32 = 2_000;
    let echo_at = echo_server().await;
    let source = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let source_at = source.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = source.accept().await {
            tokio::spawn(async move {
                let chunk = vec![0; 256 * 1024];
                while stream.write_all(&chunk).await.is_ok() {}
            });
        }
    });
    for round in 1..=3 {
        for gated in [false, true] {
            let world = |server| World::with(Some(server), &[("git.example", "93.184.216.34")]);
            let (down, up) =
                (Sandbox::start(&[], &[], world(source_at)).await, Sandbox::start(&[], &[], world(echo_at)).await);
            let (mut bulk, mut echo) = if gated {
                (down.open_plain("git.example").await, up.open_plain("git.example").await)
            } else {
                (TcpStream::connect(source_at).await.unwrap(), TcpStream::connect(echo_at).await.unwrap())
            };
            let mut buffer = vec![0; 256 * 1024];
            let began = tokio::time::Instant::now();
            let mut read = 0;
            while read < BYTES {
                read += bulk.read(&mut buffer).await.unwrap();
            }
            let rate = read as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e9;
            drop(bulk);
            echo.set_nodelay(true).unwrap();
            let began = tokio::time::Instant::now();
            for _ in 0..TRIPS {
                echo.write_all(b"x").await.unwrap();
                echo.read_exact(&mut buffer[..1]).await.unwrap();
            }
            let way = if gated { "gateway" } else { "direct" };
            println!("round {round}, {way}: {rate:.1} Gbit/s, round trip {:?}", began.elapsed() / TRIPS);
        }
    }
}
