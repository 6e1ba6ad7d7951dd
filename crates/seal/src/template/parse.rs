//! A template's words as a tree.

use super::functions;
use super::lex::{Piece, Word, pieces};

/// How deep blocks and brackets may be nested.
const DEPTH_MAX: usize = 32;

/// A part of a template.
#[derive(Debug)]
pub(super) enum Node {
    Text(String),
    /// Its value is written out.
    Print(Pipeline),
    /// `if` and `else if`, tried in order, and `else`.
    If(Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
    With(Pipeline, Vec<Node>, Vec<Node>),
    Range(Pipeline, Vec<Node>, Vec<Node>),
}

/// Commands, each fed to the next as its last argument; the value may go into variables.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) variables: Vec<String>,
    pub(super) declares: bool,
    pub(super) commands: Vec<Command>,
    pub(super) line: usize,
}

#[derive(Debug)]
pub(super) enum Command {
    Call(String, Vec<Term>),
    Term(Term),
}

#[derive(Debug)]
pub(super) enum Term {
    Field(Vec<String>),
    Variable(String, Vec<String>),
    Text(String),
    Int(i64),
    Float(f64),
    Bool(bool),
    Nil,
    Inner(Box<Pipeline>, Vec<String>),
    /// A function without arguments.
    Name(String),
}

pub(super) fn parse(template: &str) -> Result<Vec<Node>, String> {
    let mut parser = Parser { pieces: pieces(template)?.into_iter(), depth: 0 };
    match parser.nodes()? {
        (nodes, None) => Ok(nodes),
        (_, Some((end, line))) => Err(format!("line {line}: `{}` closes nothing", end.as_str())),
    }
}

struct Parser<'a> {
    pieces: std::vec::IntoIter<Piece<'a>>,
    depth: usize,
}

/// A list of nodes with what ended it, and in which line; nothing at the end of the text.
type Nodes = (Vec<Node>, Option<(End, usize)>);

/// What ends a list of nodes.
enum End {
    Block,
    Else,
    ElseIf(Pipeline),
}

impl End {
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Block => "end",
            Self::Else | Self::ElseIf(_) => "else",
        }
    }
}

impl Parser<'_> {
    fn nodes(&mut self) -> Result<Nodes, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("blocks are nested more than {DEPTH_MAX} deep"));
        }
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let (words, line) = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text.to_owned()));
                    continue;
                }
                Piece::Action(words, line) => (words, line),
            };
            let keyword = match words.first() {
                Some(Word::Name(name)) => name.as_str(),
                _ => "",
            };
            let rest = words.get(1..).unwrap_or_default();
            match keyword {
                "end" if rest.is_empty() => {
                    self.depth -= 1;
                    return Ok((nodes, Some((End::Block, line))));
                }
                "else" if rest.is_empty() => {
                    self.depth -= 1;
                    return Ok((nodes, Some((End::Else, line))));
                }
                "else" if rest.first() == Some(&Word::Name("if".to_owned())) => {
                    self.depth -= 1;
                    let pipeline = pipeline(&rest[1..], line)?;
                    return Ok((nodes, Some((End::ElseIf(pipeline), line))));
                }
                "if" => nodes.push(self.branches(pipeline(rest, line)?, line)?),
                "with" => {
                    let (then, otherwise) = self.block(line)?;
                    nodes.push(Node::With(pipeline(rest, line)?, then, otherwise));
                }
                "range" => {
                    let (then, otherwise) = self.block(line)?;
                    nodes.push(Node::Range(pipeline(rest, line)?, then, otherwise));
                }
                "end" | "else" | "define" | "template" | "block" | "break" | "continue" => {
                    return Err(format!("line {line}: `{keyword}` is not supported here"));
                }
                _ => nodes.push(Node::Print(pipeline(&words, line)?)),
            }
        }
        self.depth -= 1;
        Ok((nodes, None))
    }

    fn branches(&mut self, first: Pipeline, line: usize) -> Result<Node, String> {
        let mut branches = Vec::new();
        let mut condition = first;
        loop {
            let (nodes, end) = self.nodes()?;
            branches.push((condition, nodes));
            match end {
                Some((End::Block, _)) => return Ok(Node::If(branches, Vec::new())),
                Some((End::ElseIf(next), _)) => condition = next,
                Some((End::Else, _)) => {
                    let otherwise = self.last(line)?;
                    return Ok(Node::If(branches, otherwise));
                }
                None => return Err(format!("line {line}: a block has no `end`")),
            }
        }
    }

    fn block(&mut self, line: usize) -> Result<(Vec<Node>, Vec<Node>), String> {
        match self.nodes()? {
            (then, Some((End::Block, _))) => Ok((then, Vec::new())),
            (then, Some((End::Else, _))) => Ok((then, self.last(line)?)),
            _ => Err(format!("line {line}: a block has no `end`")),
        }
    }

    fn last(&mut self, line: usize) -> Result<Vec<Node>, String> {
        match self.nodes()? {
            (nodes, Some((End::Block, _))) => Ok(nodes),
            _ => Err(format!("line {line}: a block has no `end`")),
        }
    }
}

fn pipeline(words: &[Word], line: usize) -> Result<Pipeline, String> {
    let mut reader = Reader { words, at: 0, depth: 0, line };
    let pipeline = reader.pipeline()?;
    if reader.at < words.len() {
        return Err(format!("line {line}: a bracket closes nothing"));
    }
    Ok(pipeline)
}

struct Reader<'a> {
    words: &'a [Word],
    at: usize,
    depth: usize,
    line: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<&Word> {
        self.words.get(self.at)
    }

    fn error<T>(&self, text: impl std::fmt::Display) -> Result<T, String> {
        Err(format!("line {}: {text}", self.line))
    }

    fn pipeline(&mut self) -> Result<Pipeline, String> {
        let (variables, declares) = self.variables()?;
        let mut commands = vec![self.command()?];
        while self.peek() == Some(&Word::Pipe) {
            self.at += 1;
            commands.push(self.command()?);
        }
        Ok(Pipeline { variables, declares, commands, line: self.line })
    }

    /// `$a :=`, `$a =` or `$a, $b :=` at the start.
    fn variables(&mut self) -> Result<(Vec<String>, bool), String> {
        let words = &self.words[self.at..];
        let (names, used, how) = match words {
            [Word::Variable(one, fields), how @ (Word::Declare | Word::Assign), ..]
                if fields.is_empty() =>
            {
                (vec![one.clone()], 2, how)
            }
            [
                Word::Variable(one, first),
                Word::Comma,
                Word::Variable(two, second),
                how @ Word::Declare,
                ..,
            ] if first.is_empty() && second.is_empty() => (vec![one.clone(), two.clone()], 4, how),
            _ => return Ok((Vec::new(), false)),
        };
        if names.iter().any(String::is_empty) {
            return self.error("`$` cannot be changed");
        }
        self.at += used;
        Ok((names, *how == Word::Declare))
    }

    fn command(&mut self) -> Result<Command, String> {
        let Some(first) = self.term()? else { return self.error("a value is missing") };
        let mut arguments = Vec::new();
        while let Some(argument) = self.term()? {
            arguments.push(argument);
        }
        match first {
            Term::Name(name) => {
                if !functions::is_known(&name) {
                    return self.error(format_args!("the function `{name}` is not supported"));
                }
                Ok(Command::Call(name, arguments))
            }
            term if arguments.is_empty() => Ok(Command::Term(term)),
            _ => self.error("a value that is no function has arguments"),
        }
    }

    fn term(&mut self) -> Result<Option<Term>, String> {
        let Some(word) = self.peek().cloned() else { return Ok(None) };
        let term = match word {
            Word::Pipe | Word::Close(_) => return Ok(None),
            Word::Name(name) => match name.as_str() {
                "true" => Term::Bool(true),
                "false" => Term::Bool(false),
                "nil" => Term::Nil,
                _ if functions::is_known(&name) => Term::Name(name),
                _ => return self.error(format_args!("the function `{name}` is not supported")),
            },
            Word::Field(fields) => Term::Field(fields),
            Word::Variable(name, fields) => Term::Variable(name, fields),
            Word::Text(text) => Term::Text(text),
            Word::Int(number) => Term::Int(number),
            Word::Float(number) => Term::Float(number),
            Word::Open => {
                self.at += 1;
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return self.error("brackets are nested too deep");
                }
                let inner = self.pipeline()?;
                self.depth -= 1;
                let Some(Word::Close(fields)) = self.peek() else {
                    return self.error("a bracket is not closed");
                };
                Term::Inner(Box::new(inner), fields.clone())
            }
            Word::Declare | Word::Assign | Word::Comma => {
                return self.error("`:=`, `=` or `,` is not understood here");
            }
        };
        self.at += 1;
        Ok(Some(term))
    }
}
