//! Images made of nothing but Debian's `busybox` and our watchdog, loaded from archives under the
//! names that OpenFaaS's own tests use. No registry and no build.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::cloud::binary;

/// The programs of busybox that functions here call by name.
const APPLETS: &[&str] =
    &["sh", "cat", "env", "sha512sum", "sleep", "echo", "httpd", "printenv", "nc", "rm", "kill"];
/// The users of an image with a watchdog that is not ours: the official templates name theirs.
const PASSWD: &str = "root:x:0:0::/root:/bin/sh\napp:x:1234:1234::/home/app:/bin/sh\n";

/// What an image holds beside busybox and the watchdog.
#[derive(Debug, Default)]
pub struct Recipe<'a> {
    /// The names it is loaded under.
    pub names: &'a [&'a str],
    /// Its environment, `NAME=value`.
    pub environment: &'a [&'a str],
    /// Programs: path without the first slash, and text.
    pub scripts: &'a [(&'a str, &'a str)],
    /// A watchdog in place of ours; the image is then laid out as OpenFaaS's templates do it,
    /// with a user by name and a check of the lock file.
    pub foreign_watchdog: Option<&'a str>,
}

/// The image with the forking watchdog of the first generation and a few programs.
pub fn alpine<'a>(names: &'a [&'a str]) -> Recipe<'a> {
    Recipe { names, environment: &["mode=classic", "fprocess=cat"], ..Recipe::default() }
}

/// The image whose server answers everything with `302` to the address in `destination`.
pub fn redirector<'a>(names: &'a [&'a str]) -> Recipe<'a> {
    Recipe {
        names,
        environment: &["mode=http", "upstream_url=http://127.0.0.1:8082", "fprocess=./handler"],
        scripts: &[
            (
                "home/app/handler",
                "#!/bin/sh\nexec /bin/httpd -f -p 127.0.0.1:8082 -h /home/app/public\n",
            ),
            (
                "home/app/public/cgi-bin/index.cgi",
                "#!/bin/sh\nprintf 'Status: 302 Found\\r\\nLocation: %s\\r\\n\\r\\n' \"$destination\"\n",
            ),
        ],
        ..Recipe::default()
    }
}

/// Writes the image as a Docker archive into `folder`.
pub fn archive(recipe: &Recipe<'_>, folder: &Path) -> PathBuf {
    let layer = layer(recipe, folder);
    let digest = hex::encode(Sha256::digest(&layer));
    let environment: Vec<&str> =
        ["PATH=/usr/bin:/bin"].into_iter().chain(recipe.environment.iter().copied()).collect();
    let user = if recipe.foreign_watchdog.is_some() { "app" } else { "12000" };
    let mut config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {
            "User": user,
            "WorkingDir": "/home/app",
            "Env": environment,
            "Cmd": ["fwatchdog"],
            "ExposedPorts": {"8080/tcp": {}},
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    if recipe.foreign_watchdog.is_some() {
        let test = ["CMD-SHELL", "[ -e /tmp/.lock ] || exit 1"];
        config["config"]["Healthcheck"] = json!({"Test": test, "Interval": 3_000_000_000_u64});
    }
    let config = config.to_string();
    let config_name = format!("{}.json", hex::encode(Sha256::digest(&config)));
    let manifest = json!([{
        "Config": config_name,
        "RepoTags": recipe.names,
        "Layers": ["layer.tar"],
    }])
    .to_string();
    let path = folder.join(format!("{digest}.tar"));
    let mut archive = tar::Builder::new(File::create(&path).expect("an archive can be made"));
    for (name, bytes) in [
        (config_name.as_str(), config.as_bytes()),
        ("layer.tar", &layer),
        ("manifest.json", manifest.as_bytes()),
    ] {
        append(&mut archive, name, bytes, 0o644);
    }
    archive.finish().expect("an archive can be ended");
    path
}

/// The one layer: programs, links to busybox, scripts.
fn layer(recipe: &Recipe<'_>, folder: &Path) -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    for name in ["bin/", "usr/", "usr/bin/", "home/", "home/app/", "home/app/public/"] {
        append_folder(&mut layer, name);
    }
    append_folder(&mut layer, "home/app/public/cgi-bin/");
    append(&mut layer, "bin/busybox", &fs::read("/bin/busybox").expect("busybox-static"), 0o755);
    let program = match recipe.foreign_watchdog {
        Some(text) => {
            append_folder(&mut layer, "etc/");
            append(&mut layer, "etc/passwd", PASSWD.as_bytes(), 0o644);
            text.as_bytes().to_vec()
        }
        None => watchdog(folder),
    };
    append(&mut layer, "usr/bin/fwatchdog", &program, 0o755);
    for applet in APPLETS {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        layer
            .append_link(&mut header, format!("bin/{applet}"), "busybox")
            .expect("a link can be added");
    }
    for (name, text) in recipe.scripts {
        append(&mut layer, name, text.as_bytes(), 0o755);
    }
    layer.into_inner().expect("a layer can be ended")
}

fn append_folder<W: std::io::Write>(archive: &mut tar::Builder<W>, name: &str) {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(0o755);
    archive.append_data(&mut header, name, std::io::empty()).expect("a folder can be added");
}

fn append<W: std::io::Write>(archive: &mut tar::Builder<W>, name: &str, bytes: &[u8], mode: u32) {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    archive.append_data(&mut header, name, bytes).expect("a file can be added");
}

/// The watchdog that the binary under test carries.
fn watchdog(folder: &Path) -> Vec<u8> {
    let file = folder.join("fwatchdog");
    if !file.is_file() {
        let written = Command::new(binary()).args(["images", "watchdog"]).arg(&file).status();
        assert!(written.is_ok_and(|status| status.success()), "the watchdog can be written");
    }
    fs::read(&file).expect("the watchdog can be read")
}
