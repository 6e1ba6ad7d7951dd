//! `updraft secrets`: everything about secrets but their values, which only ever go in.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use updraft_api::client::Client;
use updraft_api::wire::{self, ItemAction, SecretAction, SecretOrigin};
use updraft_model::{FunctionName, ItemKey, OwnerName, RepositoryName, SecretName};

use crate::cli::Secrets;
use crate::output::{Output, Tone};

pub(crate) async fn run(client: &Client, command: Secrets, output: Output) -> Result<()> {
    match command {
        Secrets::List(owner) => {
            let secrets = client.secrets(&OwnerName::new(owner.owner)?).await?;
            if output.is_json() {
                return output.json(&secrets);
            }
            let rows: Vec<_> = secrets.iter().map(row).collect();
            output.table(&["NAME", "ITEMS", "DIGEST", "CHANGED", "BY", "FUNCTIONS"], &rows)
        }
        Secrets::Describe { name, owner } => {
            let (owner, name) = (OwnerName::new(owner.owner)?, SecretName::new(name)?);
            let secret = client.secret(&owner, &name).await?;
            if output.is_json() {
                return output.json(&secret);
            }
            describe(&owner, &secret, output)
        }
        Secrets::Set { name, from_file, literals, files, env_files, owner } => {
            let (owner, name) = (OwnerName::new(owner.owner)?, SecretName::new(name)?);
            if literals.is_empty() && files.is_empty() && env_files.is_empty() {
                let value = value(from_file.as_deref())?;
                return Ok(client.set_secret(&owner, &name, value).await?);
            }
            let items = wire::SecretItems { items: items(&literals, &files, &env_files)? };
            Ok(client.set_secret_items(&owner, &name, &items).await?)
        }
        Secrets::Unset { name, owner } => {
            let (owner, name) = (OwnerName::new(owner.owner)?, SecretName::new(name)?);
            Ok(client.unset_secret(&owner, &name).await?)
        }
        Secrets::Diff { repository, file, owner } => {
            let owner = OwnerName::new(owner.owner)?;
            let repository = RepositoryName::new(repository)?;
            let differences = client.compare_secrets(&owner, &repository, read(&file)?).await?;
            if output.is_json() {
                return output.json(&differences);
            }
            differences.iter().try_for_each(|difference| differ(difference, output))
        }
    }
}

fn row(secret: &wire::Secret) -> Vec<String> {
    let keys: Vec<_> = secret.items.iter().map(|item| item.key.as_str()).collect();
    let users: Vec<_> = secret.users.iter().map(FunctionName::as_str).collect();
    vec![
        secret.name.to_string(),
        keys.join(","),
        secret.digest.clone(),
        age(secret.changed_at),
        origin(&secret.origin),
        if users.is_empty() { "-".to_owned() } else { users.join(",") },
    ]
}

/// `3d`, `5h`, `2m`, `10s`.
fn age(then: Timestamp) -> String {
    let seconds = Timestamp::now().duration_since(then).as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn origin(origin: &SecretOrigin) -> String {
    match origin {
        SecretOrigin::Api => "hand".to_owned(),
        SecretOrigin::Sealed { repository, commit, .. } => {
            let short = commit.get(..7).unwrap_or(commit);
            format!("{repository}@{short}")
        }
    }
}

fn describe(owner: &OwnerName, secret: &wire::Secret, output: Output) -> Result<()> {
    output.line(&format!("name:     {} (kept as {owner}-{})", secret.name, secret.name))?;
    output.line(&format!("type:     {}", secret.kind.as_deref().unwrap_or("Opaque")))?;
    output.line(&format!("digest:   {}", secret.digest))?;
    output.line(&format!("made by:  {}", origin(&secret.origin)))?;
    output.line(&format!("created:  {}", secret.created_at))?;
    output.line(&format!("changed:  {}", secret.changed_at))?;
    let users: Vec<_> = secret.users.iter().map(FunctionName::as_str).collect();
    let users = if users.is_empty() { "none".to_owned() } else { users.join(", ") };
    output.line(&format!("used by:  {users}"))?;
    let rows = secret.items.iter().map(|item| {
        let file = format!("/var/openfaas/secrets/{}", item.key);
        vec![item.key.to_string(), item.bytes.to_string(), item.digest.clone(), file]
    });
    output.table(&["ITEM", "BYTES", "DIGEST", "FILE"], &rows.collect::<Vec<_>>())
}

fn differ(difference: &wire::SecretDifference, output: Output) -> Result<()> {
    let name = difference.name.as_deref().unwrap_or("(the file)");
    let (sign, tone, what) = match difference.action {
        SecretAction::Create => ("+", Tone::Good, "is new"),
        SecretAction::Replace => ("~", Tone::Good, "is replaced"),
        SecretAction::Keep => ("=", Tone::Good, "is unchanged"),
        SecretAction::Refuse => ("!", Tone::Bad, "cannot be taken"),
        SecretAction::Remove => ("-", Tone::Bad, "is removed once no function has it"),
    };
    output.line(&output.tone(tone, &format!("{sign} {name} {what}")))?;
    for (key, action) in &difference.items {
        let sign = match action {
            ItemAction::Add => "+",
            ItemAction::Change => "~",
            ItemAction::Keep => continue,
            ItemAction::Remove => "-",
        };
        output.line(&format!("    {sign} {key}"))?;
    }
    if let Some(reason) = &difference.reason {
        output.line(&format!("    {reason}"))?;
    }
    Ok(())
}

/// Items of the command line, in base64. A key may be there once.
fn items(
    literals: &[String],
    files: &[String],
    env_files: &[PathBuf],
) -> Result<BTreeMap<ItemKey, String>> {
    let mut items = BTreeMap::new();
    let mut add = |key: &str, value: &[u8]| {
        let key = ItemKey::new(key)?;
        if items.insert(key.clone(), STANDARD.encode(value)).is_some() {
            bail!("item `{key}` is given twice");
        }
        Ok(())
    };
    for literal in literals {
        // A message must not show what may be the value.
        let (key, value) = literal.split_once('=').context("--literal wants KEY=VALUE")?;
        add(key.trim(), value.as_bytes())?;
    }
    for file in files {
        let (key, path) = if let Some((key, path)) = file.split_once('=') {
            (key, Path::new(path))
        } else {
            let path = Path::new(file);
            let name = path.file_name().and_then(|name| name.to_str());
            (name.context("--file wants [KEY=]FILE")?, path)
        };
        add(key, &read(path)?)?;
    }
    for file in env_files {
        let text = String::from_utf8(read(file)?)
            .map_err(|_| anyhow::anyhow!("{} is no UTF-8 text", file.display()))?;
        for (key, value) in env_lines(&text)
            .with_context(|| format!("{} cannot be read as items", file.display()))?
        {
            add(key, value.as_bytes())?;
        }
    }
    Ok(items)
}

/// Lines `KEY=VALUE`, with `export ` before the key and quotes around the value taken off.
fn env_lines(text: &str) -> Result<Vec<(&str, &str)>> {
    let mut items = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let Some((key, value)) = line.split_once('=') else {
            bail!("line {} is no KEY=VALUE", index + 1);
        };
        let value = value.trim();
        let bare = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
        items.push((key.trim(), bare('"').or_else(|| bare('\'')).unwrap_or(value)));
    }
    Ok(items)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// The file as it is; standard input without the line feed that a terminal or `echo` adds.
fn value(file: Option<&Path>) -> Result<Vec<u8>> {
    if let Some(file) = file {
        return read(file);
    }
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input).context("cannot read standard input")?;
    if input.last() == Some(&b'\n') {
        input.pop();
    }
    Ok(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_from_literals_files_and_environment_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tls.key");
        std::fs::write(&file, [0, 255]).unwrap();
        let env = folder.path().join(".env");
        std::fs::write(&env, "# note\nexport A=1\nB = \"two words\"\n\nC='=x='\n").unwrap();
        let path = file.display().to_string();
        let literals = ["user=a=b".to_owned()];
        let files = [path.clone(), format!("other={path}")];
        let items = items(&literals, &files, &[env]).unwrap();
        let shown: Vec<_> = items
            .iter()
            .map(|(key, value)| (key.as_str(), STANDARD.decode(value).unwrap()))
            .collect();
        let expected: [(&str, &[u8]); 6] = [
            ("A", b"1"),
            ("B", b"two words"),
            ("C", b"=x="),
            ("other", &[0, 255]),
            ("tls.key", &[0, 255]),
            ("user", b"a=b"),
        ];
        assert_eq!(shown, expected.map(|(key, value)| (key, value.to_vec())));
    }

    #[test]
    fn what_is_wrong_is_told_without_the_value() {
        let twice = ["a=hunter2".to_owned(), "a=hunter3".to_owned()];
        for literals in [&["hunter2".to_owned()][..], &twice, &["a b=hunter2".to_owned()]] {
            let error = format!("{:#}", items(literals, &[], &[]).unwrap_err());
            assert!(!error.contains("hunter"), "{error}");
        }
        assert!(env_lines("A=1\nhunter2").unwrap_err().to_string().contains("line 2"));
    }
}
