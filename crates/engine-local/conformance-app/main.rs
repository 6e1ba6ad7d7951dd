//! The function that the conformance tests run: it serves HTTP and does what its path says.
//!
//! Built with nothing but the standard library, so that its image is a handful of files.
//! Its environment: `exit_at_start` (a code), `start_delay_ms`, `health` (the status of
//! `/_/health`, 200 when absent), `lock_file` (written to `/tmp/.lock` once it listens).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

/// What `/_/health` answers once `/sick` has been called; 0 before.
static SICK: AtomicU16 = AtomicU16::new(0);

/// Whether `/held` may answer.
static RELEASED: AtomicBool = AtomicBool::new(false);

/// What `/hold` took.
static HELD: Mutex<Vec<&'static [u8]>> = Mutex::new(Vec::new());

/// Longest request head that is read.
const HEAD_MAX: u64 = 64 * 1024;

fn main() {
    println!("conformance app starts");
    if let Some(code) = number("exit_at_start") {
        eprintln!("conformance app was asked to fail");
        process::exit(i32::try_from(code).unwrap_or(1));
    }
    if let Some(delay) = number("start_delay_ms") {
        thread::sleep(Duration::from_millis(delay));
    }
    let listener = match TcpListener::bind(("0.0.0.0", 8080)) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("cannot listen: {error}");
            process::exit(1);
        }
    };
    if let Ok(text) = env::var("lock_file") {
        drop(fs::write("/tmp/.lock", text));
    }
    for stream in listener.incoming().flatten() {
        thread::spawn(move || serve(stream));
    }
}

fn all_held() -> MutexGuard<'static, Vec<&'static [u8]>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// Answers requests on one connection until the client closes it.
fn serve(stream: TcpStream) {
    let Ok(mut writer) = stream.try_clone() else { return };
    let mut reader = BufReader::new(stream);
    while let Some(path) = head(&mut reader) {
        if path == "/upgrade" {
            return echo(&mut reader, &mut writer);
        }
        let (status, body) = answer(&path);
        let head = format!("HTTP/1.1 {status} Answer\r\nContent-Length: {}\r\n\r\n", body.len());
        if writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&body)).is_err() {
            return;
        }
    }
}

/// Speaks another protocol from here on: what comes is sent back.
fn echo(reader: &mut BufReader<TcpStream>, writer: &mut TcpStream) {
    let head = b"HTTP/1.1 101 Answer\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    drop(writer.write_all(head).and_then(|()| std::io::copy(reader, writer)));
}

/// Reads a request without a body; its path.
fn head(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let mut reader = reader.take(HEAD_MAX);
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            return Some(path);
        }
    }
}

fn answer(path: &str) -> (u16, Vec<u8>) {
    let (verb, rest) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    let number = || rest.parse::<u64>().unwrap_or(0);
    let text = |text: String| (200, text.into_bytes());
    match (verb, rest) {
        ("_", "health") => {
            let status = env::var("health").ok().and_then(|status| status.parse().ok());
            match SICK.load(Ordering::Relaxed) {
                0 => (status.unwrap_or(200), Vec::new()),
                sick => (sick, Vec::new()),
            }
        }
        ("env", name) => match env::var(name) {
            Ok(value) => text(value),
            Err(_) => (404, Vec::new()),
        },
        ("read", file) => done(fs::read(format!("/{file}"))),
        ("stat", file) => done(fs::metadata(format!("/{file}")).map(|file| {
            format!("{:o} {} {}", file.mode() & 0o7777, file.uid(), file.gid()).into_bytes()
        })),
        ("write", file) => done(fs::write(format!("/{file}"), "written").map(|()| Vec::new())),
        ("remove", file) => done(fs::remove_file(format!("/{file}")).map(|()| Vec::new())),
        ("sick", _) => {
            SICK.store(u16::try_from(number()).unwrap_or(500), Ordering::Relaxed);
            text("sick".to_owned())
        }
        ("print", words) => {
            println!("{words}");
            text(words.to_owned())
        }
        ("slow", _) => {
            thread::sleep(Duration::from_millis(number()));
            text("slow".to_owned())
        }
        ("held", _) => {
            while !RELEASED.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
            }
            text("released".to_owned())
        }
        ("release", _) => {
            RELEASED.store(true, Ordering::Relaxed);
            text("released".to_owned())
        }
        ("exit", _) => {
            println!("conformance app was asked to exit");
            process::exit(i32::try_from(number()).unwrap_or(1));
        }
        ("memory", _) => {
            let bytes = usize::try_from(number()).unwrap_or(0) << 20;
            let mut filled = vec![0_u8; bytes];
            // Touched, so that the kernel really gives it.
            filled.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
            text(filled.iter().map(|byte| u64::from(*byte)).sum::<u64>().to_string())
        }
        ("hold", _) => {
            let bytes = usize::try_from(number()).unwrap_or(0) << 20;
            // Ones, so that the kernel really gives it; never given back.
            let held: &'static [u8] = vec![1_u8; bytes].leak();
            all_held().push(held);
            text(held.len().to_string())
        }
        ("count", _) => {
            // Each of them is a one, unless it was lost.
            let ones = |held: &&[u8]| held.iter().copied().map(u64::from).sum::<u64>();
            text(all_held().iter().map(ones).sum::<u64>().to_string())
        }
        ("spin", _) => {
            let end = Instant::now() + Duration::from_millis(number());
            while Instant::now() < end {}
            text("spun".to_owned())
        }
        ("connect", address) => done(connect(address)),
        ("attack", words) => {
            let attack = process::Command::new("/usr/bin/perl")
                .arg("/attacks.pl")
                .args(words.split('/').map(decoded))
                .env("machine", env::consts::ARCH)
                .stderr(process::Stdio::inherit())
                .output();
            done(attack.map(|output| output.stdout))
        }
        ("threads", _) => {
            let started = (0..number()).take_while(|_| {
                let sleeper = thread::Builder::new().stack_size(64 * 1024);
                sleeper.spawn(|| thread::sleep(Duration::from_secs(1))).is_ok()
            });
            text(started.count().to_string())
        }
        _ => text(env::var("answer").unwrap_or_else(|_| "hello".to_owned())),
    }
}

/// Connects to an address or a name with a port.
fn connect(target: &str) -> std::io::Result<Vec<u8>> {
    let mut refused = None;
    for address in target.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
            Ok(_) => return Ok(b"connected".to_vec()),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| std::io::Error::other("the name stands for nothing")))
}

/// A word with its `%` codes resolved.
fn decoded(word: &str) -> String {
    let mut parts = word.split('%');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (code, rest) = part.split_at_checked(2).unwrap_or((part, ""));
        text.extend(u8::from_str_radix(code, 16).ok().map(char::from));
        text.push_str(rest);
    }
    text
}

fn done(result: std::io::Result<Vec<u8>>) -> (u16, Vec<u8>) {
    match result {
        Ok(body) => (200, body),
        Err(error) => (500, error.to_string().into_bytes()),
    }
}
