//! The program inside the test image: a tiny HTTP server on port 8080, and a few small commands
//! that stand in for a shell in images that have none.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] | ["serve"] => serve(),
        ["say", rest @ ..] => println!("{}", rest.join(" ")),
        ["exit", code] => std::process::exit(code.parse().unwrap()),
        ["sleep", milliseconds] => sleep(milliseconds),
        ["env"] => std::env::vars().for_each(|(name, value)| println!("{name}={value}")),
        ["list", folder] => {
            for entry in std::fs::read_dir(folder).unwrap() {
                println!("{}", entry.unwrap().path().display());
            }
        }
        ["read", file] => print!("{}", std::fs::read_to_string(file).unwrap()),
        ["write", file, text] => std::fs::write(file, text).unwrap(),
        ["writable", file] => {
            let opened = std::fs::OpenOptions::new().append(true).open(file);
            println!("{}", if opened.is_ok() { "writable" } else { "read-only" });
        }
        ["fill", file, mebibytes] => fill(file, mebibytes.parse().unwrap()),
        // Empty files, until it is let no more.
        ["files", folder] => {
            std::fs::create_dir(folder).unwrap();
            for number in 0.. {
                std::fs::write(format!("{folder}/{number}"), "").unwrap();
            }
        }
        ["eat", mebibytes] => drop(eat(mebibytes.parse().unwrap())),
        ["flood"] => loop {
            println!("{}", "flood ".repeat(50));
        },
        // Leaves a process behind that has its outputs and does not mind losing its parent.
        ["linger", milliseconds] => {
            let own = std::env::current_exe().unwrap();
            std::process::Command::new(own).args(["sleep", milliseconds]).spawn().unwrap();
        }
        // As many processes at one time as it is let.
        ["fork", count] => {
            let own = std::env::current_exe().unwrap();
            let mut children = Vec::new();
            for _ in 0..count.parse::<usize>().unwrap() {
                let child = std::process::Command::new(&own).args(["sleep", "60000"]).spawn();
                children.push(child.expect("no more processes"));
            }
            for mut child in children {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
        _ => {
            eprintln!("unknown command {words:?}");
            std::process::exit(64);
        }
    }
}

fn sleep(milliseconds: &str) {
    std::thread::sleep(Duration::from_millis(milliseconds.parse().unwrap()));
}

fn fill(file: &str, mebibytes: usize) {
    let mut file = std::fs::File::create(file).unwrap();
    let block = vec![0x5a; 1 << 20];
    for _ in 0..mebibytes {
        file.write_all(&block).unwrap();
    }
    file.sync_all().unwrap();
}

fn eat(mebibytes: usize) -> Vec<Vec<u8>> {
    (0..mebibytes).map(|number| vec![number as u8 | 1; 1 << 20]).collect()
}

fn serve() {
    let port = std::env::var("PORT").unwrap_or_else(|_| "8080".to_owned());
    let listener = TcpListener::bind(format!("0.0.0.0:{port}")).unwrap();
    println!("listening on {port}");
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || drop(answer(stream)));
    }
}

/// Serves one connection: `/_/health` and `/_/ready` are 200; `/env/NAME`, `/pid`, `/host`,
/// `/file/PATH`, `/echo`, `/sleep/MS`, `/status/CODE`, `/exit/CODE`, `/eat/MIB`, `/log/TEXT`;
/// everything else says hello.
fn answer(stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut parts = line.split_whitespace();
        let (_, target) = (parts.next(), parts.next().unwrap_or("/").to_owned());
        let mut headers = HashMap::new();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").and_then(|length| length.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body)?;
        let path = target.split('?').next().unwrap_or("/");
        let (command, argument) = match path[1..].split_once('/') {
            Some((command, argument)) => (command, argument),
            None => (&path[1..], ""),
        };
        let mut status = 200;
        let text = match command {
            "env" => std::env::var(argument).unwrap_or_default().into_bytes(),
            "pid" => std::process::id().to_string().into_bytes(),
            "host" => std::fs::read("/proc/sys/kernel/hostname")?,
            "file" => std::fs::read(format!("/{argument}")).unwrap_or_else(|error| {
                status = 404;
                error.to_string().into_bytes()
            }),
            "echo" => body,
            "sleep" => {
                sleep(argument);
                b"slept".to_vec()
            }
            "status" => {
                status = argument.parse().unwrap_or(500);
                Vec::new()
            }
            "exit" => std::process::exit(argument.parse().unwrap_or(1)),
            "eat" => eat(argument.parse().unwrap_or(1)).len().to_string().into_bytes(),
            "log" => {
                println!("{argument}");
                Vec::new()
            }
            "_" => b"ok".to_vec(),
            _ => {
                let greeting = std::env::var("GREETING").unwrap_or_else(|_| "hello".to_owned());
                format!("{greeting} {target}\n").into_bytes()
            }
        };
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", text.len());
        writer.write_all(head.as_bytes())?;
        writer.write_all(&text)?;
        writer.flush()?;
    }
}
