//! The example that `updraft up` pushes for a newcomer: real git, its output, the answer of the
//! function, and what to type next.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;
use include_dir::{Dir, include_dir};
use tokio::process::Command;
use updraft_api::client::{Client, Credentials, ListOptions};
use updraft_model::{OwnerName, RepositoryName};
use updraft_pipeline::render;
use updraft_source::git::commit_summary;
use updraft_store::Store;

use crate::connection;
use crate::data_dir::DataDir;
use crate::output::{Output, Tone};

static HELLO: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../examples/hello");

const OWNER: &str = "demo";
const REPOSITORY: &str = "hello";
const FUNCTION: &str = "hello";

/// Tells commits of the example from those of a person.
const EMAIL: &str = "example@updraft.localhost";

/// Shows the example; what goes wrong is told and stops nothing, the cloud runs on.
pub(crate) async fn show(data_dir: &DataDir, root: &str, address: SocketAddr, output: Output) {
    if let Err(error) = try_show(data_dir, root, address, output).await {
        eprintln!("updraft: the example did not work: {error:#}");
        eprintln!("updraft: the cloud runs all the same; `updraft doctor` looks at the machine");
    }
}

async fn try_show(
    data_dir: &DataDir,
    root: &str,
    address: SocketAddr,
    output: Output,
) -> Result<()> {
    let host = format!("{OWNER}.{root}");
    let url = format!("http://{host}:{}/{FUNCTION}", address.port());
    let mut answer = call(address, &host).await?;
    if answer.status == StatusCode::NOT_FOUND {
        output.line("")?;
        bring_to_life(data_dir, address, output).await?;
        answer = call(address, &host).await?;
    }
    output.line("")?;
    output.line(&output.tone(Tone::Quiet, &format!("$ curl {url}")))?;
    output.line(answer.body.trim_end())?;
    ensure!(answer.status.is_success(), "{url} answered with status {}", answer.status);
    next_steps(data_dir, &url, address, output)
}

/// Pushes the example, or follows the push of an earlier start that is still under way.
async fn bring_to_life(data_dir: &DataDir, address: SocketAddr, output: Output) -> Result<()> {
    let client = Client::new(address.into(), connection::administrator(data_dir)?);
    let repository = Some(RepositoryName::new(REPOSITORY)?);
    let owner = Some(OwnerName::new(OWNER)?);
    let newest = ListOptions { owner, repository, limit: Some(1), ..ListOptions::default() };
    let Some(earlier) = client.pushes(&newest).await?.into_iter().next() else {
        return push(data_dir, address, output).await;
    };
    if !earlier.state.is_final() {
        output.line(&output.tone(Tone::Quiet, "going on with the push of the last start"))?;
        let mut events = client.push_events(earlier.id, 1).await?;
        while let Some(event) = events.try_next().await? {
            render::terminal(&event).iter().try_for_each(|line| output.line(line))?;
        }
        return Ok(());
    }
    let bare = data_dir.repositories().join(OWNER).join(format!("{REPOSITORY}.git"));
    let summary = commit_summary(&bare, &earlier.commit).await?;
    ensure!(
        summary.email == EMAIL,
        "{OWNER}/{FUNCTION} is not live, and its repository holds work of yours; push it again"
    );
    push(data_dir, address, output).await
}

/// The function's whole answer.
struct Answer {
    status: StatusCode,
    body: String,
}

async fn call(address: SocketAddr, host: &str) -> Result<Answer> {
    let client = Client::new(address.into(), Credentials::Bearer(String::new()));
    let path = format!("/{FUNCTION}");
    let answer =
        client.invoke(Method::GET, Some(host), &path, HeaderMap::new(), Vec::new()).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await.context("the answer broke off")?.to_bytes();
    Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
}

/// Pushes the example with real git, as its owner, with a token for this once.
async fn push(data_dir: &DataDir, address: SocketAddr, output: Output) -> Result<()> {
    let store = Store::open(&data_dir.database(), &data_dir.blobs())?;
    let owner = OwnerName::new(OWNER)?;
    let token = store.create_token(&owner, "example").await?;
    let checkout = tempfile::tempdir().context("cannot make a folder for the example")?;
    HELLO.extract(checkout.path()).context("cannot write the example")?;

    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command
            .current_dir(checkout.path())
            .args(["-c", "user.name=Updraft", "-c", &format!("user.email={EMAIL}")])
            .args(["-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null"])
            .args(arguments)
            .env("GIT_TERMINAL_PROMPT", "0")
            .stdin(Stdio::null());
        command
    };
    for arguments in [
        &["init", "--quiet", "--initial-branch=main"][..],
        &["add", "--all"],
        &["commit", "--quiet", "--message", "Say hello"],
    ] {
        succeed(git(arguments), arguments).await?;
    }
    let place = format!("{address}/git/{OWNER}/{REPOSITORY}.git");
    let shown = format!("$ git push http://{OWNER}:TOKEN@{place} main");
    output.line(&output.tone(Tone::Quiet, &shown))?;
    let url = format!("http://{OWNER}:{}@{place}", token.secret.expose());
    // Git hides the password of a URL in what it prints.
    // What lies there is an earlier example, if anything.
    let pushed = succeed(git(&["push", &url, "+main"]), &["push"]).await;
    store.revoke_token(&owner, token.id).await?;
    pushed
}

async fn succeed(mut command: Command, arguments: &[&str]) -> Result<()> {
    let status = command.status().await.context("cannot start git")?;
    ensure!(status.success(), "`git {}` failed", arguments.join(" "));
    Ok(())
}

fn next_steps(data_dir: &DataDir, url: &str, address: SocketAddr, output: Output) -> Result<()> {
    let updraft = updraft_command(data_dir.root());
    output.line("")?;
    output.line(&output.tone(Tone::Strong, "It works. Next, in another terminal:"))?;
    for (command, purpose) in [
        (format!("curl {url}"), "call it again"),
        (format!("{updraft} list"), "what runs"),
        (
            format!("{updraft} new --lang python greet --folder shop"),
            "start a function of your own",
        ),
        (format!("{updraft} push --owner {OWNER} shop"), "make it live without git"),
        (format!("{updraft} token create --owner {OWNER}"), "a token, to push with git to"),
        (format!("  http://{OWNER}:TOKEN@{address}/git/{OWNER}/shop.git"), ""),
        (format!("{updraft} --help"), "the rest; Ctrl-C here stops the cloud"),
    ] {
        let purpose = if purpose.is_empty() { String::new() } else { format!("  # {purpose}") };
        output.line(&format!("  {command}{}", output.tone(Tone::Quiet, &purpose)))?;
    }
    Ok(())
}

/// How this program is called from the folder it was started in, on this data directory.
fn updraft_command(data_dir: &Path) -> String {
    let program = std::env::current_exe().ok();
    let in_path = program.as_deref().and_then(Path::parent).is_some_and(|folder| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|entry| entry == folder)
    });
    let called = match (program, std::env::current_dir()) {
        (Some(program), Ok(here)) if !in_path => match program.strip_prefix(&here) {
            Ok(below) => format!("./{}", below.display()),
            Err(_) => program.display().to_string(),
        },
        _ => "updraft".to_owned(),
    };
    if data_dir == Path::new(crate::cli::DEFAULT_DATA_DIR) {
        called
    } else {
        format!("{called} --data-dir {}", data_dir.display())
    }
}
