//! A NATS server of a test's own: a free port, a folder of its own, and an end with the test.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A running server; dropped, it is killed and its folder goes.
#[derive(Debug)]
pub(crate) struct NatsServer {
    folder: TempDir,
    arguments: Vec<String>,
    port: u16,
    process: Option<Child>,
}

impl NatsServer {
    /// Starts a server on a free port.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with further arguments.
    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut server = Self { folder, arguments, port: 0, process: None };
        server.resume();
        server
    }

    /// A server that is not there yet, on a port that nobody else gets meanwhile.
    pub(crate) fn absent() -> Self {
        let mut server = Self::start();
        server.kill();
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The end that leaves no time for anything.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Starts it on the same port, with what it had stored.
    pub(crate) fn resume(&mut self) {
        let folder = self.folder.path();
        for file in files_of_ports(folder) {
            std::fs::remove_file(file).unwrap();
        }
        // The kernel ends it with the test, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nats-server", "--addr", "127.0.0.1", "--jetstream"]);
        let port = if self.port == 0 { "-1".to_owned() } else { self.port.to_string() };
        command.args(["--port", &port]).arg("--store_dir").arg(folder.join("jetstream"));
        command.arg("--ports_file_dir").arg(folder).args(&self.arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let log = std::fs::File::create(folder.join("log")).unwrap();
        self.process = Some(command.stderr(log).spawn().unwrap());
        self.port = self.wait_for_port();
    }

    fn wait_for_port(&mut self) -> u16 {
        let begun = Instant::now();
        loop {
            let file = files_of_ports(self.folder.path()).into_iter().next();
            let text = file.and_then(|file| std::fs::read_to_string(file).ok());
            let urls: Option<serde_json::Value> =
                text.and_then(|text| serde_json::from_str(&text).ok());
            let port = urls.as_ref().and_then(|urls| urls["nats"][0].as_str()?.rsplit(':').next());
            if let Some(port) = port {
                return port.parse().unwrap();
            }
            let ended = self.process.as_mut().unwrap().try_wait().unwrap();
            let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap();
            assert!(ended.is_none(), "nats-server ended: {}", log());
            assert!(begun.elapsed() < Duration::from_mins(1), "no port: {}", log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn files_of_ports(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|ending| ending == "ports")).collect()
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}
