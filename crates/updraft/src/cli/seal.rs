//! `updraft seal` and `updraft keys` as they are typed.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  updraft seal --name alice-keys --literal token=abc --from-file tls.key
  updraft seal --name alice-keys --env-file .env --cert http://127.0.0.1:8080/v1/cert.pem
  printf %s \"$KEY\" | updraft seal --name alice-keys --from-stdin key
  kubectl create secret generic alice-keys --dry-run=client -o yaml | updraft seal -o yaml
  printf %s \"$KEY\" | updraft seal --raw --name alice-keys
  updraft seal --re-encrypt .                    every file below, with the newest key
  updraft seal --validate -f secrets.yml
  updraft seal --recovery-unseal --recovery-private-key keys.yaml -f secrets.yml

Values given one by one go into secrets.yml, beside what is there; a Secret document goes to
standard output. No plain value is ever written to disk.")]
pub(crate) struct Seal {
    /// Name of the secret, by convention OWNER-NAME
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Its namespace [default: that of the document or file, else openfaas-fn]
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,

    /// Item to seal, KEY=VALUE; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) literal: Vec<String>,

    /// File to seal, under its base name or as KEY=PATH; may be repeated
    #[arg(short = 'i', long, value_name = "[KEY=]PATH")]
    pub(crate) from_file: Vec<String>,

    /// File of KEY=VALUE lines to seal, one item a line; may be repeated
    #[arg(long, visible_alias = "from-env-file", value_name = "PATH")]
    pub(crate) env_file: Vec<PathBuf>,

    /// Seal standard input under this key
    #[arg(long, value_name = "KEY")]
    pub(crate) from_stdin: Option<String>,

    /// Certificate: a file, file://, http://; default: pub-cert.pem if there is one, else the server's
    #[arg(short, long, value_name = "FILE|URL", env = "SEALED_SECRETS_CERT")]
    pub(crate) cert: Option<String>,

    /// File to write, or `yaml` or `json` for the format of standard output
    #[arg(short, long = "output-file", value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// Format: yaml or json
    #[arg(long, value_name = "FORMAT", env = "SEALED_SECRETS_FORMAT")]
    pub(crate) format: Option<String>,

    /// File with Secret documents to seal, or with what another mode reads [default: standard input]
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) secret_file: Option<PathBuf>,

    /// The same as --output-file
    #[arg(short = 'w', long, value_name = "FILE", conflicts_with = "output")]
    pub(crate) sealed_secret_file: Option<PathBuf>,

    /// Add to the first sealed secret of this file, under its name, namespace and scope
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "sealed_secret_file", "replace"])]
    pub(crate) merge_into: Option<PathBuf>,

    /// Write the file anew instead of merging into it
    #[arg(long)]
    pub(crate) replace: bool,

    /// Remove an item from the file; may be repeated
    #[arg(long, value_name = "KEY")]
    pub(crate) remove: Vec<String>,

    /// strict, namespace-wide or cluster-wide [default: that of the document or file, else strict]
    #[arg(long, value_name = "SCOPE", env = "SEALED_SECRETS_SCOPE")]
    pub(crate) scope: Option<String>,

    /// Type of the secret, such as kubernetes.io/tls
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) kind: Option<String>,

    /// Seal a secret that has no items
    #[arg(long)]
    pub(crate) allow_empty_data: bool,

    /// Seal one value and print it alone, to be pasted under `encryptedData`
    #[arg(long, conflicts_with_all = ["literal", "env_file", "merge_into"])]
    pub(crate) raw: bool,

    /// Print the certificate
    #[arg(long)]
    pub(crate) fetch_cert: bool,

    /// Configuration file (TOML) of the server, for --re-encrypt with the keys of its data directory
    #[arg(long, value_name = "FILE", env = "UPDRAFT_CONFIG")]
    pub(crate) config: Option<PathBuf>,

    /// Ask whether the sealed secrets of a file open
    #[arg(long)]
    pub(crate) validate: bool,

    /// Seal again with the newest key: a file, every file below a folder, or standard input
    #[arg(long, visible_alias = "rotate", value_name = "PATH", num_args = 0..=1)]
    #[expect(
        clippy::option_option,
        reason = "whether it is asked for, and whether it names a path"
    )]
    pub(crate) re_encrypt: Option<Option<PathBuf>>,

    /// Open sealed secrets with private keys, without a server, and print them
    #[arg(long, requires = "recovery_private_key")]
    pub(crate) recovery_unseal: bool,

    /// Private key in PEM, or a file of Secrets with keys; may be repeated
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub(crate) recovery_private_key: Vec<PathBuf>,

    /// Taken for the sake of scripts; nothing is asked of a cluster
    #[arg(long, hide = true)]
    pub(crate) controller_name: Option<String>,

    /// Taken for the sake of scripts; nothing is asked of a cluster
    #[arg(long, hide = true)]
    pub(crate) controller_namespace: Option<String>,

    /// Taken for the sake of scripts; nothing needs to be fetched
    #[arg(long, hide = true)]
    pub(crate) download: bool,

    /// Taken for the sake of scripts; nothing needs to be fetched
    #[arg(long, hide = true)]
    pub(crate) download_version: Option<String>,

    /// Taken for the sake of scripts; nothing needs to be fetched
    #[arg(long, hide = true)]
    pub(crate) download_to: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct KeysArguments {
    /// Configuration file (TOML) of the server: its `[keys]` say how keys are made and chosen
    #[arg(long, global = true, value_name = "FILE", env = "UPDRAFT_CONFIG")]
    pub(crate) config: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Keys,
}

/// Work on the data directory itself, server or not; a server that runs sees the change.
#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// Every key, the newest first
    List,
    /// Print the certificate that seals
    Certificate,
    /// Make a new key now; old ones go on opening
    #[command(visible_alias = "new")]
    Renew,
    /// Take a key out of use: what it sealed opens no more
    #[command(after_help = "\
Examples:
  updraft keys retire SHA256:n0Eib --check ./my-repository
  updraft keys retire SHA256:n0Eib --compromised --force")]
    Retire {
        /// The key's fingerprint, or its beginning
        key: String,
        /// Strangers may have it
        #[arg(long)]
        compromised: bool,
        /// Working tree whose files must not need it any more, besides what was pushed here; may
        /// be repeated
        #[arg(long, value_name = "FOLDER")]
        check: Vec<PathBuf>,
        /// Although secrets still need it
        #[arg(long)]
        force: bool,
    },
    /// Take a retired key back into use
    Activate {
        /// The key's fingerprint, or its beginning
        key: String,
    },
    /// Print all keys in the clear, as the Secrets that a cluster's controller reads
    Export,
    /// Take in keys: Secrets of a cluster's controller, or a private key in PEM
    Import {
        /// The files
        #[arg(required = true)]
        file: Vec<PathBuf>,
    },
    /// Write all keys to one encrypted file
    #[command(after_help = "\
Examples:
  updraft keys backup --recipient age1… keys.age
  updraft keys backup --passphrase-file ./passphrase keys.age")]
    Backup {
        /// File to write
        file: PathBuf,
        /// age recipient that may open it
        #[arg(long, value_name = "RECIPIENT", required_unless_present = "passphrase_file")]
        recipient: Option<String>,
        /// File whose first line is the passphrase; `-` is standard input
        #[arg(long, value_name = "FILE", conflicts_with = "recipient")]
        passphrase_file: Option<PathBuf>,
    },
    /// Take in the keys of a backup
    #[command(after_help = "\
Examples:
  updraft keys restore --identity ./age.key keys.age
  updraft keys restore --passphrase-file ./passphrase keys.age")]
    Restore {
        /// The backup
        file: PathBuf,
        /// File of the age identity that opens it
        #[arg(long, value_name = "FILE", required_unless_present = "passphrase_file")]
        identity: Option<PathBuf>,
        /// File whose first line is the passphrase; `-` is standard input
        #[arg(long, value_name = "FILE", conflicts_with = "identity")]
        passphrase_file: Option<PathBuf>,
    },
    /// Tell of every sealed secret below a folder which key opens it, or why none does
    #[command(visible_alias = "check")]
    Doctor {
        /// The file or folder
        path: PathBuf,
    },
}
