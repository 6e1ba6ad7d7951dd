//! The function that the conformance tests run: it serves HTTP and does what its path says.
//!
//! Built with nothing but the standard library, so that its image is a handful of files.
//! Its environment: `exit_at_start` (a code), `start_delay_ms`, `health` (the status of
//! `/_/health`, 200 when absent), `lock_file` (written to `/tmp/.lock` once it listens).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

/// What `/_/health` answers once `/sick` has been called; 0 before.
static SICK: AtomicU16 = AtomicU16::new(0);

/// Whether `/held` may answer.
static RELEASED: AtomicBool = AtomicBool::new(false);

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

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// Answers requests on one connection until the client closes it.
fn serve(stream: TcpStream) {
    let Ok(mut writer) = stream.try_clone() else { return };
    let mut reader = BufReader::new(stream);
    while let Some(path) = head(&mut reader) {
        let (status, body) = answer(&path);
        let head = format!("HTTP/1.1 {status} Answer\r\nContent-Length: {}\r\n\r\n", body.len());
        if writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&body)).is_err() {
            return;
        }
    }
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
            let held = vec![1_u8; bytes].leak();
            text(held.len().to_string())
        }
        ("spin", _) => {
            let end = Instant::now() + Duration::from_millis(number());
            while Instant::now() < end {}
            text("spun".to_owned())
        }
        ("connect", address) => match address.parse::<SocketAddr>() {
            Ok(address) => {
                let stream = TcpStream::connect_timeout(&address, Duration::from_millis(500));
                done(stream.map(|_| b"connected".to_vec()))
            }
            Err(error) => (400, error.to_string().into_bytes()),
        },
        ("attack", words) => {
            // An image of the hostile battery has an interpreter and a script.
            let words = words.split("//").map(|word| word.replace("%20", " "));
            let attack = process::Command::new("/usr/bin/perl")
                .arg("/attacks.pl")
                .args(words)
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

fn done(result: std::io::Result<Vec<u8>>) -> (u16, Vec<u8>) {
    match result {
        Ok(body) => (200, body),
        Err(error) => (500, error.to_string().into_bytes()),
    }
}
