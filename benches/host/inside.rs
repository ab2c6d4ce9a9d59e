//! What the bench does inside a sprite, as a program of its own: this executable, copied there and started with a word.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use tokio::time::Instant;

use crate::figures::Samples;
use crate::rig::Outcome;

/// Bytes read or written at a time: what a download tool uses.
const CHUNK: usize = 128 * 1024;

/// Does what the arguments ask for, if they are for this program inside a sprite.
pub fn main(args: &[String]) -> Option<Outcome> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    Some(match words[..] {
        ["fill", dir, files, bytes] => fill(dir, files, bytes),
        ["pull", host, port, bytes] => pull(host, port, bytes),
        ["connect", host, port, times] => connect(host, port, times),
        _ => return None,
    })
}

/// Writes files below `dir`, a hundred to a directory.
fn fill(dir: &str, files: &str, bytes: &str) -> Outcome {
    let (files, content) = (files.parse::<usize>()?, vec![b'x'; bytes.parse()?]);
    for n in 0..files {
        let folder = format!("{dir}/{}", n / 100);
        if n % 100 == 0 {
            fs::create_dir_all(&folder)?;
        }
        fs::write(format!("{folder}/{n}"), &content)?;
    }
    Ok(())
}

/// Downloads, and prints the bytes per second.
fn pull(host: &str, port: &str, bytes: &str) -> Outcome {
    let bytes: u64 = bytes.parse()?;
    let mut stream = TcpStream::connect((host, port.parse::<u16>()?))?;
    let mut buffer = vec![0; CHUNK];
    // The first bytes are not counted: they pay for the connection.
    stream.write_all(&(bytes + 1).to_be_bytes())?;
    stream.read_exact(&mut buffer[..1])?;
    let (begun, mut got) = (Instant::now(), 0);
    while got < bytes {
        match stream.read(&mut buffer)? {
            0 => return Err(format!("the download ended after {got} bytes").into()),
            n => got += n as u64,
        }
    }
    println!("{}", got as f64 / begun.elapsed().as_secs_f64());
    Ok(())
}

/// Opens connections one after the other, each for one byte there and back, and prints the median in milliseconds.
fn connect(host: &str, port: &str, times: &str) -> Outcome {
    let port = port.parse::<u16>()?;
    let mut samples = Samples::default();
    // Looked up once: names are not what is measured.
    let address = std::net::ToSocketAddrs::to_socket_addrs(&(host, port))?.next().ok_or("the name has no address")?;
    for _ in 0..times.parse::<u32>()? {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(&1_u64.to_be_bytes())?;
        stream.read_exact(&mut [0])?;
        samples.add(begun.elapsed());
    }
    println!("{}", samples.median());
    Ok(())
}

/// A server on this machine's loopback: sends as many bytes as it is asked for. Its port.
pub fn serve() -> Outcome<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that leaves early ends its own thread and nothing else.
            std::thread::spawn(move || drop(answer(stream)));
        }
    });
    Ok(port)
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut asked = [0; 8];
    stream.read_exact(&mut asked)?;
    let mut left = u64::from_be_bytes(asked);
    let chunk = vec![b'x'; CHUNK];
    while left > 0 {
        let now = left.min(chunk.len() as u64) as usize;
        stream.write_all(&chunk[..now])?;
        left -= now as u64;
    }
    Ok(())
}
