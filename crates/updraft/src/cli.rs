//! The command line as it is typed: names, help and examples. What the words mean is in `command`.

mod seal;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

pub(crate) use seal::{Keys, KeysArguments, Seal};

/// Where the data lies unless a flag, the environment or a configuration file says otherwise.
pub(crate) const DEFAULT_DATA_DIR: &str = "/var/lib/updraft";

/// A self-hosted serverless cloud in one binary: `git push`, and a function is live.
#[derive(Debug, Parser)]
#[command(name = "updraft", version = crate::VERSION_TEXT, max_term_width = 100)]
#[command(after_help = "\
Start here:
  updraft up                     the whole cloud on this machine
  updraft new --lang python hello && cd hello && updraft push --owner demo
  updraft list

Exit codes: 0 done, 1 failed, 2 wrong usage.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Folder that holds everything: database, images, logs
    #[arg(long, global = true, value_name = "DIR", env = "UPDRAFT_DATA_DIR", default_value = DEFAULT_DATA_DIR)]
    pub(crate) data_dir: PathBuf,

    /// Server to talk to; default: the one that runs on the data directory
    #[arg(long, global = true, value_name = "URL", env = "UPDRAFT_SERVER")]
    pub(crate) server: Option<String>,

    /// Token to show to the server; default: the administrator's password in the data directory
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        env = "UPDRAFT_TOKEN",
        hide_env_values = true
    )]
    pub(crate) token: Option<String>,

    /// Print JSON, for programs
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the whole cloud on this machine, in the foreground
    Up(Box<Up>),
    /// Stop every replica and remove the network of a cloud that is not running
    Down,
    /// Start a function: a handler and a stack file, ready to push
    New(New),
    /// Send the working tree and make its functions live, no forge and no commit needed
    Push(Push),
    /// Functions and what they are doing
    #[command(visible_alias = "ls")]
    List(List),
    /// Replicas: what each does and uses, and how the last one ended
    Replicas(Replicas),
    /// What a function writes
    Logs(Logs),
    /// Call a function
    Invoke(Invoke),
    /// Builds, newest first; with an id, its log
    Builds(Builds),
    /// Releases of a function, newest first
    Releases(OneFunction),
    /// Go back to an earlier release, without a build
    Rollback(Rollback),
    /// Remove a function with its replicas and releases
    #[command(visible_alias = "rm")]
    Remove(OneFunction),
    /// Secrets of an owner: values never come back
    #[command(subcommand)]
    Secrets(Secrets),
    /// Seal secrets so that they can be committed: offline, with the certificate alone
    Seal(Box<Seal>),
    /// Keys of sealed secrets: renew, retire, back up, restore
    Keys(KeysArguments),
    /// Tokens that let an owner push and look
    #[command(subcommand)]
    Token(Token),
    /// Asynchronous calls: what waits, what came of it, dead letters
    #[command(subcommand)]
    Calls(Calls),
    /// What is called by the clock: when next, when last, with what outcome
    Schedules(Schedules),
    /// Container images kept on this machine
    #[command(subcommand)]
    Images(Images),
    /// What uses the disk
    Disk,
    /// What runs the functions on this machine
    #[command(subcommand)]
    Engine(EngineCommand),
    /// Tell what this machine has, what is missing and how to get it
    Doctor(Doctor),
    /// Print a completion script for a shell
    Completion {
        /// Which shell
        shell: Shell,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  updraft up
  updraft up --data-dir ./cloud --listen 127.0.0.1:9000 --no-example
  updraft up --config /etc/updraft.toml

Ctrl-C stops the replicas too; they come back with the next start. SIGTERM, as a service
manager sends it, leaves them running, and the next start takes them over.")]
pub(crate) struct Up {
    /// Address and port to listen on [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS:PORT", env = "UPDRAFT_LISTEN")]
    pub(crate) listen: Option<std::net::SocketAddr>,

    /// Root domain: functions live on `<owner>.<root>` [default: localhost]
    #[arg(long, value_name = "DOMAIN", env = "UPDRAFT_ROOT")]
    pub(crate) root: Option<String>,

    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "UPDRAFT_CONFIG")]
    pub(crate) config: Option<PathBuf>,

    /// Do not push the example function
    #[arg(long)]
    pub(crate) no_example: bool,

    /// Say more; repeat for still more
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Configuration file (TOML) of the server; what it names is looked at too
    #[arg(long, value_name = "FILE", env = "UPDRAFT_CONFIG")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  updraft new --lang python hello      makes hello/ and stack.yml
  updraft new --list                   languages to choose from")]
pub(crate) struct New {
    /// Name of the function
    #[arg(required_unless_present = "list")]
    pub(crate) name: Option<String>,

    /// Language, for instance python, node, go, rust, shell, static, dockerfile
    #[arg(long, short, value_name = "LANGUAGE", required_unless_present = "list")]
    pub(crate) lang: Option<String>,

    /// Folder of the repository
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) folder: PathBuf,

    /// List the languages
    #[arg(long)]
    pub(crate) list: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  updraft push --owner alice
  updraft push --owner alice --repo shop ./shop")]
pub(crate) struct Push {
    /// Folder that holds stack.yml
    #[arg(default_value = ".")]
    pub(crate) folder: PathBuf,

    /// Owner of the functions
    #[arg(long, value_name = "OWNER", env = "UPDRAFT_OWNER")]
    pub(crate) owner: String,

    /// Repository; default: the folder's name
    #[arg(long, value_name = "NAME")]
    pub(crate) repo: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Each ready replica with its address too
    #[arg(long)]
    pub(crate) replicas: bool,

    /// How each function is scaled, and the last decision about it
    #[arg(long)]
    pub(crate) wide: bool,

    /// Only this owner's
    #[arg(long, value_name = "OWNER", env = "UPDRAFT_OWNER")]
    pub(crate) owner: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  updraft replicas
  updraft replicas demo/hello")]
pub(crate) struct Replicas {
    /// Only this function's: OWNER/NAME, NAME with --owner, or the name that `faas-cli` knows
    #[arg(value_name = "FUNCTION")]
    pub(crate) function: Option<String>,

    /// Only this owner's
    #[arg(long, value_name = "OWNER", env = "UPDRAFT_OWNER")]
    pub(crate) owner: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EngineCommand {
    /// Runtime, control groups, kernel features, and what is degraded and why
    Status,
}

/// A function of an owner, as the commands take it.
#[derive(Debug, Args)]
pub(crate) struct OneFunction {
    /// Function: OWNER/NAME, or NAME with --owner
    #[arg(value_name = "FUNCTION")]
    pub(crate) function: String,

    /// Owner of the function
    #[arg(long, value_name = "OWNER", env = "UPDRAFT_OWNER")]
    pub(crate) owner: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  updraft logs demo/hello
  updraft logs -f --tail 20 demo/hello")]
pub(crate) struct Logs {
    #[command(flatten)]
    pub(crate) function: OneFunction,

    /// Go on with new lines until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,

    /// Only the newest so many lines
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<usize>,

    /// Only lines since this moment (2026-11-20T10:00:00Z) or for this long (10m)
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  updraft invoke demo/hello --data world
  echo world | updraft invoke demo/hello --data -
  updraft invoke demo/hello --method GET --path '/items?page=2'")]
pub(crate) struct Invoke {
    #[command(flatten)]
    pub(crate) function: OneFunction,

    /// Body to send; `-` reads standard input
    #[arg(long, short, value_name = "TEXT")]
    pub(crate) data: Option<String>,

    /// Method; default: POST with a body, else GET
    #[arg(long, short = 'X', value_name = "METHOD")]
    pub(crate) method: Option<String>,

    /// Path and query below the function
    #[arg(long, value_name = "PATH", default_value = "/")]
    pub(crate) path: String,

    /// Header to send, `Name: value`; may be repeated
    #[arg(long, short = 'H', value_name = "HEADER")]
    pub(crate) header: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Builds {
    /// A build's id, to read its log
    pub(crate) build: Option<String>,

    /// Only this owner's
    #[arg(long, value_name = "OWNER", env = "UPDRAFT_OWNER")]
    pub(crate) owner: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  updraft rollback demo/hello            to the release before this one
  updraft rollback demo/hello --to 3     to v3
  updraft rollback demo/hello --unpin    back to the newest, and follow pushes again

A rollback pins the function: later pushes are built and released, but not deployed, until
--unpin.")]
pub(crate) struct Rollback {
    #[command(flatten)]
    pub(crate) function: OneFunction,

    /// Release number to go to
    #[arg(long, value_name = "NUMBER", conflicts_with = "unpin")]
    pub(crate) to: Option<u64>,

    /// Go to the newest release and follow pushes again
    #[arg(long)]
    pub(crate) unpin: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Secrets {
    /// An owner's secrets: items, digest, age, who made them and who has them
    List(SecretOwner),
    /// One secret: its items by key, size and digest
    Describe {
        /// Name of the secret, as `secrets:` in stack.yml has it
        name: String,
        #[command(flatten)]
        owner: SecretOwner,
    },
    /// Keep a secret; its functions see the new value at once
    #[command(after_help = "\
Examples:
  updraft secrets set --owner alice api-key --from-file ./key
  printf %s \"$KEY\" | updraft secrets set --owner alice api-key
  updraft secrets set --owner alice db --literal user=shop --file password=./password
  updraft secrets set --owner alice settings --env-file .env

Items replace all that the secret held before. Other users of this machine can see literals
while the command runs.")]
    Set {
        /// Name of the secret, as `secrets:` in stack.yml has it
        name: String,
        /// File with the value; default: standard input, without its last line feed
        #[arg(long, value_name = "FILE", conflicts_with_all = ["literals", "files", "env_files"])]
        from_file: Option<PathBuf>,
        /// An item with its value
        #[arg(long = "literal", short = 'l', value_name = "KEY=VALUE")]
        literals: Vec<String>,
        /// An item with a file as its value; without KEY the file's name is the key
        #[arg(long = "file", short = 'i', value_name = "[KEY=]FILE")]
        files: Vec<String>,
        /// Items from lines `KEY=VALUE` of a file; empty lines and those with `#` are left out
        #[arg(long = "env-file", value_name = "FILE")]
        env_files: Vec<PathBuf>,
        #[command(flatten)]
        owner: SecretOwner,
    },
    /// Remove a secret
    Unset {
        /// Name of the secret
        name: String,
        #[command(flatten)]
        owner: SecretOwner,
    },
    /// Tell what a push of a file of sealed secrets would change, and change nothing
    Diff {
        /// The repository that the file is of
        repository: String,
        /// The file
        #[arg(default_value = "secrets.yml")]
        file: PathBuf,
        #[command(flatten)]
        owner: SecretOwner,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SecretOwner {
    /// Owner of the secrets
    #[arg(long, value_name = "OWNER", env = "UPDRAFT_OWNER")]
    pub(crate) owner: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token and print it, this once
    #[command(after_help = "\
Example:
  TOKEN=$(updraft token create --owner alice)
  git push http://alice:$TOKEN@127.0.0.1:8080/git/alice/shop.git main")]
    Create {
        /// Owner it speaks for; made when new
        #[arg(long, value_name = "OWNER")]
        owner: String,
        /// What it is for, to tell it from others
        #[arg(long, value_name = "TEXT", default_value = "command line")]
        name: String,
    },
    /// Tokens by id, never their text
    List {
        /// Only this owner's
        #[arg(long, value_name = "OWNER")]
        owner: Option<String>,
    },
    /// Make a token worthless
    Revoke {
        /// The token's id, as `list` shows it
        id: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Schedules {
    /// Only this owner's
    #[arg(long)]
    pub(crate) owner: Option<String>,
}

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  updraft calls list --dead
  updraft calls show 6b0c9f0e-…
  updraft calls redrive --all --function demo/resize")]
pub(crate) enum Calls {
    /// Calls, newest first
    List {
        #[command(flatten)]
        chosen: ChosenCalls,
        /// Only those in this state: queued, running, done, dead, cancelled
        #[arg(long, value_name = "STATE", conflicts_with = "dead")]
        state: Option<String>,
        /// Only dead letters
        #[arg(long)]
        dead: bool,
        /// The newest so many
        #[arg(long, value_name = "NUMBER")]
        limit: Option<u32>,
        /// Only those before the call of this number, as --json shows it
        #[arg(long, value_name = "NUMBER")]
        before: Option<i64>,
    },
    /// All that is known of a call
    Show {
        /// The call id
        call: String,
    },
    /// What the function answered: its body, or with --json all of it
    Result {
        /// The call id
        call: String,
    },
    /// End a call that waits or runs
    Cancel {
        /// The call id
        call: String,
    },
    /// Have a dead letter made again, or all of them
    Redrive {
        /// The call id
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        call: Option<String>,
        /// All dead letters, of the function or owner if one is named
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        chosen: ChosenCalls,
    },
    /// Forget a call that has ended
    Discard {
        /// The call id
        call: String,
    },
    /// The key that signs callbacks, for whoever checks them
    Key {
        /// Whose functions' callbacks; default: those of functions without an owner
        #[arg(long, value_name = "OWNER", env = "UPDRAFT_OWNER")]
        owner: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ChosenCalls {
    /// Only this function's: OWNER/NAME, or the name that `faas-cli` knows
    #[arg(long, value_name = "FUNCTION")]
    pub(crate) function: Option<String>,
    /// Only this owner's
    #[arg(long, value_name = "OWNER", env = "UPDRAFT_OWNER")]
    pub(crate) owner: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Images {
    /// Images kept here
    List,
    /// Take the images of an OCI or Docker archive under the names it carries
    Load {
        /// The archive
        file: PathBuf,
    },
    /// Remove every image that neither a function nor a kept release needs
    Prune {
        /// Only tell what would go
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove an image
    Remove {
        /// Its name
        image: String,
    },
    /// Write the watchdog, a static program, into a file: for an image that you build elsewhere
    Watchdog {
        /// The file; it must not be there yet
        file: PathBuf,
    },
    /// Make the base images of languages now, from Debian packages, so that no push waits for it
    Base {
        /// Which ones; default: list them
        names: Vec<String>,
        /// All of them
        #[arg(long)]
        all: bool,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
