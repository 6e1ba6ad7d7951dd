//! The broker of the queue's second home: a NATS server with `JetStream` and a folder of its own.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A running NATS server; ended when dropped.
#[derive(Debug)]
pub(crate) struct Nats {
    url: String,
    process: Child,
    _folder: tempfile::TempDir,
}

impl Nats {
    /// Starts a server on a free port.
    pub(crate) fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let process = Command::new("nats-server")
            .args(["--jetstream", "--addr", "127.0.0.1", "--port"])
            .arg(address.port().to_string())
            .arg("--store_dir")
            .arg(folder.path())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start nats-server")?;
        let nats = Self { url: format!("nats://{address}"), process, _folder: folder };
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(address).is_err() {
            if Instant::now() > deadline {
                bail!("nats-server does not listen on {address}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(nats)
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let ended = self.process.kill().and_then(|()| self.process.wait());
        if let Err(error) = ended {
            eprintln!("nats-server: {error}");
        }
    }
}
