//! `updraft seal`: sealing with nothing but the certificate, and what else is done with files of
//! sealed secrets.
//!
//! Plain values come from arguments, files or standard input and stay in memory.

mod input;
mod reseal;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use updraft_api::client::{Client, ServerAddress, fetch_certificate};
use updraft_seal::{
    Certificate, Draft, Format, Hints, Limits, OpeningKey, Scope, SealedFile, SealedSecret,
    Template, import_keys, parse_secrets, seal, seal_value, unseal_with_keys,
};

use crate::cli::{Global, Seal};
use crate::connection;
use crate::data_dir::DataDir;
use crate::output::Output;

pub(crate) use input::{passphrase, read_capped, sealed_files};

/// Where functions' secrets live unless something says otherwise.
const NAMESPACE: &str = "openfaas-fn";

/// The certificate that is taken when it lies in the folder.
const CERTIFICATE: &str = "pub-cert.pem";

/// The file that the platform reads.
const FILE: &str = "secrets.yml";

pub(crate) async fn run(global: &Global, command: Seal, output: Output) -> Result<()> {
    let format = format(&command)?;
    if command.fetch_cert {
        // The one that lies here may be old, or the empty file that the shell has just made for
        // what is printed.
        let certificate = match command.cert.as_deref() {
            Some(named) => certificate(global, Some(named)).await?,
            None => served_certificate(global).await?,
        };
        return printed(certificate.to_pem());
    }
    if command.recovery_unseal {
        return recover(&command, format.unwrap_or(Format::Json));
    }
    if command.validate {
        return validate(&connection::client(global)?, &command, output).await;
    }
    if let Some(path) = &command.re_encrypt {
        let path = path.as_deref().or(command.secret_file.as_deref());
        let configuration = command.config.as_deref();
        return reseal::run(global, configuration, path, format, output).await;
    }
    if command.raw {
        return raw(global, &command).await;
    }
    seal_all(global, &command, format, output).await
}

/// The format that was asked for: `-o yaml` as `kubeseal` has it, although `-o` is a file here.
fn format(command: &Seal) -> Result<Option<Format>> {
    let short = command.output.as_deref().and_then(Path::to_str);
    let short = short.filter(|text| matches!(*text, "yaml" | "json"));
    match command.format.as_deref().or(short) {
        None => Ok(None),
        Some("yaml") => Ok(Some(Format::Yaml)),
        Some("json") => Ok(Some(Format::Json)),
        Some(other) => bail!("unsupported output format `{other}`, choose yaml or json"),
    }
}

/// The file to write, if any was named.
fn target(command: &Seal) -> Option<PathBuf> {
    let named = |path: &&PathBuf| !matches!(path.to_str(), Some("yaml" | "json"));
    let output = command.output.as_ref().filter(named);
    output.or(command.sealed_secret_file.as_ref()).or(command.merge_into.as_ref()).cloned()
}

/// The certificate that a flag names, or that lies here, or the server's.
async fn certificate(global: &Global, named: Option<&str>) -> Result<Certificate> {
    let read = |path: &Path| {
        let bytes = read_capped(path)?;
        Certificate::from_pem(&bytes).with_context(|| format!("{}", path.display()))
    };
    match named {
        Some(url) if url.starts_with("http://") => {
            let address = url.strip_prefix("http://").unwrap_or_default();
            let (host, path) = address.split_once('/').unwrap_or((address, "v1/cert.pem"));
            let server: ServerAddress = format!("http://{host}").parse()?;
            let bytes = fetch_certificate(&server, &format!("/{path}")).await;
            let bytes = bytes.with_context(|| format!("cannot fetch certificate: {url}"))?;
            Ok(Certificate::from_pem(&bytes).with_context(|| url.to_owned())?)
        }
        Some(url) if url.starts_with("https://") => bail!(
            "https is not spoken here yet; fetch the certificate and name the file: \
             curl -fsSo {CERTIFICATE} {url}"
        ),
        Some(path) => read(Path::new(path.strip_prefix("file://").unwrap_or(path))),
        None if Path::new(CERTIFICATE).is_file() => read(Path::new(CERTIFICATE)),
        None => served_certificate(global).await,
    }
}

/// The newest certificate of the server.
async fn served_certificate(global: &Global) -> Result<Certificate> {
    let server = if let Some(server) = &global.server {
        server.parse()?
    } else {
        let record = DataDir::open(&global.data_dir).ok().and_then(|dir| dir.server());
        let record = record.with_context(|| {
            format!(
                "there is no certificate: put {CERTIFICATE} here, or name a file or address with \
                 --cert, or a server with --server"
            )
        })?;
        record.address.into()
    };
    let bytes = fetch_certificate(&server, "/v1/cert.pem").await;
    Ok(Certificate::from_pem(&bytes.context("cannot fetch certificate")?)?)
}

async fn raw(global: &Global, command: &Seal) -> Result<()> {
    let scope: Scope = command.scope.as_deref().unwrap_or("strict").parse()?;
    let namespace = command.namespace.as_deref().unwrap_or(NAMESPACE);
    let name = match (&command.name, scope) {
        (Some(name), _) => name.as_str(),
        (None, Scope::Strict) => {
            bail!("must provide the --name flag with --raw and --scope strict")
        }
        (None, _) => "",
    };
    let value = match command.from_file.as_slice() {
        [] => input::standard_input()?,
        [one] => input::file(one)?.1,
        _ => bail!("--raw seals one value; give one --from-file"),
    };
    let certificate = certificate(global, command.cert.as_deref()).await?;
    certificate.check_time(Timestamp::now())?;
    printed(&seal_value(&certificate, &scope.label(namespace, name), &value)?)
}

async fn seal_all(
    global: &Global,
    command: &Seal,
    format: Option<Format>,
    output: Output,
) -> Result<()> {
    let items = input::items(command)?;
    let given = !items.is_empty() || !command.remove.is_empty() || command.from_stdin.is_some();
    let path = target(command).or_else(|| given.then(|| PathBuf::from(FILE)));
    let known = match &path {
        Some(path) if !command.replace && path.is_file() => {
            let file = SealedFile::parse(&read_capped(path)?, Limits::usual());
            Some(file.with_context(|| format!("{}", path.display()))?)
        }
        _ => None,
    };
    let is_yaml = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == "yml" || extension == "yaml")
    };
    let usual = if path.as_ref().is_some_and(is_yaml) { Format::Yaml } else { Format::Json };
    let mut file = known.unwrap_or_else(|| SealedFile::new(format.unwrap_or(usual)));
    let drafts = if given { vec![draft(command, &file, items)?] } else { documents(command)? };
    let certificate =
        if drafts.iter().all(|draft| draft.items.is_empty()) && !command.remove.is_empty() {
            None
        } else {
            Some(certificate(global, command.cert.as_deref()).await?)
        };

    for mut draft in drafts {
        let known = match &command.merge_into {
            Some(path) if command.name.is_none() => {
                let first = file.sealed()?.into_iter().next();
                Some(first.with_context(|| format!("{} has no sealed secret", path.display()))?)
            }
            _ => file.find(&draft.name, draft.namespace.as_deref())?,
        };
        if let Some(known) = &known {
            adopt(command, known, &mut draft)?;
        }
        if draft.namespace.is_none() && draft.scope != Scope::ClusterWide {
            draft.namespace = Some(NAMESPACE.to_owned());
        }
        if path.is_some() {
            let namespace = draft.namespace.as_deref().unwrap_or("any");
            output.line(&format!("Sealing secret: {} in namespace: {namespace}\n", draft.name))?;
        }
        if let Some(certificate) = &certificate {
            let sealed = seal(certificate, &draft, Timestamp::now())?;
            match &known {
                Some(known) => file.merge(known, &sealed)?,
                None => file.append(&sealed)?,
            }
        }
        for key in &command.remove {
            let known = file.find(&draft.name, draft.namespace.as_deref())?;
            let known =
                known.with_context(|| format!("there is no sealed secret `{}`", draft.name))?;
            file.remove_item(&known, key)?;
        }
    }
    match path {
        None => printed(file.as_str()),
        Some(path) => {
            input::write(&path, file.as_str())?;
            output.line(&format!("{} written.", path.display()))
        }
    }
}

/// The secret that the flags describe.
fn draft(
    command: &Seal,
    file: &SealedFile,
    items: BTreeMap<String, updraft_seal::SecretBytes>,
) -> Result<Draft> {
    let name = match (&command.name, &command.merge_into) {
        (Some(name), _) => name.clone(),
        (None, Some(_)) => {
            file.sealed()?.first().map(|secret| secret.name.clone()).unwrap_or_default()
        }
        (None, None) => bail!("name the secret with --name, by convention OWNER-NAME"),
    };
    Ok(Draft {
        name,
        namespace: command.namespace.clone(),
        scope: command.scope.as_deref().unwrap_or("strict").parse()?,
        template: Template { kind: command.kind.clone(), ..Template::default() },
        items,
    })
}

/// The secrets of Secret documents.
fn documents(command: &Seal) -> Result<Vec<Draft>> {
    let bytes = match &command.secret_file {
        Some(path) => read_capped(path)?.into(),
        None => input::standard_input()?,
    };
    let secrets = parse_secrets(&bytes, Limits::usual())?;
    if secrets.is_empty() {
        bail!(
            "no secrets found. The input must be Secret documents in UTF-8; shells of Windows may \
             write UTF-16"
        );
    }
    let mut drafts = Vec::new();
    for secret in secrets {
        let mut draft = Draft::of(secret);
        if let Some(name) = &command.name {
            draft.name.clone_from(name);
        }
        if let Some(scope) = &command.scope {
            draft.scope = scope.parse()?;
        }
        if let Some(namespace) = &command.namespace
            && draft.scope != Scope::ClusterWide
        {
            if draft.namespace.as_ref().is_some_and(|known| known != namespace) {
                bail!(
                    "the secret `{}` is in the namespace `{}`, and --namespace says `{namespace}`",
                    draft.name,
                    draft.namespace.unwrap_or_default()
                );
            }
            draft.namespace = Some(namespace.clone());
        }
        if draft.items.is_empty() && !command.allow_empty_data {
            bail!(
                "the secret `{}` has no items; --allow-empty-data seals it all the same",
                draft.name
            );
        }
        drafts.push(draft);
    }
    Ok(drafts)
}

/// What is added to a sealed secret is sealed for the place and scope that it has.
fn adopt(command: &Seal, known: &SealedSecret, draft: &mut Draft) -> Result<()> {
    if let Some(scope) = &command.scope
        && scope.parse::<Scope>()? != known.scope
    {
        bail!(
            "`{}` is {} in the file, and --scope says {scope}; write it anew with --replace",
            known.name,
            known.scope
        );
    }
    draft.scope = known.scope;
    draft.name.clone_from(&known.name);
    draft.namespace = known.namespace.clone().or(draft.namespace.take());
    Ok(())
}

fn recover(command: &Seal, format: Format) -> Result<()> {
    if target(command).is_some() {
        bail!("plain values are not written to disk; they go to standard output");
    }
    let mut pairs = Vec::new();
    for path in &command.recovery_private_key {
        let read = import_keys(&read_capped(path)?);
        pairs.extend(read.with_context(|| format!("{}", path.display()))?);
    }
    let keys: Vec<OpeningKey<'_>> =
        pairs.iter().map(|pair| OpeningKey { key: &pair.private, in_use: true }).collect();
    let file = input::sealed_input(command.secret_file.as_deref())?;
    for secret in file.sealed()? {
        let secret = secret.or_in_namespace(command.namespace.as_deref().unwrap_or(NAMESPACE));
        let opened = unseal_with_keys(&keys, &secret, &Hints::default(), Limits::usual())
            .with_context(|| secret.name.clone())?;
        printed(&opened.to_text(format))?;
    }
    Ok(())
}

async fn validate(client: &Client, command: &Seal, output: Output) -> Result<()> {
    let file = input::sealed_input(command.secret_file.as_deref())?;
    let mut refused = Vec::new();
    for secret in file.sealed()? {
        if !reseal::patiently(async || client.verify(&secret.to_text(Format::Json)).await).await? {
            refused.push(secret.name);
        }
    }
    match refused.as_slice() {
        [] => output.line("every sealed secret opens"),
        names => bail!("unable to decrypt sealed secret: {}", names.join(", ")),
    }
}

/// Prints a text as it is, without a line feed of its own.
fn printed(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    Ok(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())?)
}
