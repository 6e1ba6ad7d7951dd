//! What commands print: tables for people, JSON for programs, colour only on a terminal.

use std::io::{self, IsTerminal, Write};

use anyhow::Result;
use serde::Serialize;

/// Where and how a command prints its result.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    colour: bool,
}

/// Meanings that colour repeats; text always says them too.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tone {
    Good,
    Bad,
    Quiet,
    Strong,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { json, colour: wanted && !json && io::stdout().is_terminal() }
    }

    pub(crate) const fn is_json(self) -> bool {
        self.json
    }

    /// Prints a line; a reader that has gone away is no failure of ours.
    #[expect(clippy::unused_self, reason = "whatever a command prints goes through its output")]
    pub(crate) fn line(self, text: &str) -> Result<()> {
        let mut stdout = io::stdout().lock();
        match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            result => Ok(result?),
        }
    }

    /// Prints a value as one JSON document.
    pub(crate) fn json<T: Serialize + ?Sized>(self, value: &T) -> Result<()> {
        self.line(&serde_json::to_string_pretty(value)?)
    }

    /// Prints rows under a heading, columns aligned.
    pub(crate) fn table(self, heading: &[&str], rows: &[Vec<String>]) -> Result<()> {
        let widths: Vec<usize> = (0..heading.len())
            .map(|column| {
                let cells = rows.iter().map(|row| row[column].chars().count());
                cells.chain([heading[column].len()]).max().unwrap_or(0)
            })
            .collect();
        let aligned = |cells: &mut dyn Iterator<Item = &str>| {
            let padded: Vec<String> =
                cells.zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
            padded.join("  ").trim_end().to_owned()
        };
        let title = aligned(&mut heading.iter().copied());
        self.line(&self.tone(Tone::Strong, &title))?;
        for row in rows {
            self.line(&aligned(&mut row.iter().map(String::as_str)))?;
        }
        Ok(())
    }

    /// The text in the colour of its meaning, where colour is wanted.
    pub(crate) fn tone(self, tone: Tone, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Quiet => "2",
            Tone::Strong => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}
