//! A real registry on this machine, which asks who somebody is.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use updraft_model::ImageRef;

use crate::testing::TestStore;

/// Who may push and pull.
const USER: &str = "puller";
const PASSWORD: &str = "swordfish";
/// The same for the registry, made with `htpasswd -Bbn puller swordfish`.
const HTPASSWD: &str = "puller:$2y$05$FZ/zRn3CVa/WTl63IwDSOeKE6x6oxqwry5nzcosd/hl8Cp5xaMe/G\n";

/// Debian's `docker-registry` behind a password, ended when it is dropped or the test is killed.
#[derive(Debug)]
pub struct TestRegistry {
    address: SocketAddr,
    process: Child,
}

impl TestRegistry {
    /// Starts one that keeps its images in `folder`.
    pub fn start(folder: &Path) -> Self {
        let folder = folder.join("registry");
        fs::create_dir_all(&folder).unwrap();
        let (passwords, config) = (folder.join("htpasswd"), folder.join("config.yml"));
        fs::write(&passwords, HTPASSWD).unwrap();
        let text = format!(
            "version: 0.1\n\
             log: {{level: info, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}/data}}}}\n\
             http: {{addr: \"127.0.0.1:0\"}}\n\
             auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
            folder.display(),
            passwords.display(),
        );
        fs::write(&config, text).unwrap();
        // Its end comes with the end of the thread that started it, however that ends.
        let mut process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let said = lines.by_ref().map_while(Result::ok);
        let address = said
            .filter_map(|line| Some(line.split_once("listening on ")?.1.to_owned()))
            .find_map(|rest| rest.split('"').next()?.parse().ok())
            .expect("the registry tells where it listens; is `docker-registry` installed?");
        // Read on, so that it never waits for somebody to read what it says.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { address, process }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A Docker client's configuration with the right password for it.
    pub fn credentials(&self) -> String {
        self.credentials_of(PASSWORD)
    }

    /// The same with a wrong one.
    pub fn wrong_credentials(&self) -> String {
        self.credentials_of("tunafish")
    }

    /// What `buildah login` would have written on a machine that knows the password.
    pub fn login(&self) -> String {
        let auth = STANDARD.encode(format!("{USER}:{PASSWORD}"));
        format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, self.address)
    }

    fn credentials_of(&self, password: &str) -> String {
        format!(
            r#"{{"auths":{{"{}":{{"username":"{USER}","password":"{password}"}}}}}}"#,
            self.address
        )
    }

    /// Pushes an image of the store; the name under which the registry has it.
    pub async fn push(&self, store: &TestStore, image: &str, name: &str) -> ImageRef {
        let there = format!("{}/{name}", self.address);
        let mut command = store.store().policed("push");
        command.args(["--quiet", "--tls-verify=false", "--creds"]);
        command.arg(format!("{USER}:{PASSWORD}")).arg(image).arg(format!("docker://{there}"));
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        there.parse().unwrap()
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
