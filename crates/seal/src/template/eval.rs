//! Filling a template in.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::functions::{self, Budget};
use super::parse::{Command, Node, Pipeline, Term};
use super::value::Value;
use crate::SecretBytes;

/// Largest filled-in text, in bytes: what Kubernetes takes as one secret.
const OUTPUT_MAX: usize = 1 << 20;

/// Most steps of one text.
const STEPS_MAX: usize = 100_000;

/// Fills a template in with items.
pub(super) fn render(
    nodes: &[Node],
    items: &BTreeMap<String, SecretBytes>,
) -> Result<SecretBytes, String> {
    let items = items.iter().map(|(key, value)| (key.clone(), Value::text(value.expose())));
    let root = Value::Map(items.collect());
    let mut run = Run {
        variables: vec![(String::new(), root.clone())],
        output: Zeroizing::new(Vec::new()),
        steps: 0,
        budget: Budget::default(),
    };
    run.nodes(nodes, &root)?;
    Ok(run.output.into())
}

struct Run {
    /// The innermost last; `$` is the first, without a name.
    variables: Vec<(String, Value)>,
    output: Zeroizing<Vec<u8>>,
    steps: usize,
    budget: Budget,
}

impl Run {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<(), String> {
        let variables = self.variables.len();
        for node in nodes {
            self.node(node, dot)?;
        }
        self.variables.truncate(variables);
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        self.steps += 1;
        if self.steps > STEPS_MAX { Err("the template does too much".to_owned()) } else { Ok(()) }
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<(), String> {
        self.step()?;
        let variables = self.variables.len();
        match node {
            Node::Text(text) => return self.write(text.as_bytes()),
            Node::Print(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                if !pipeline.variables.is_empty() {
                    // A declaration writes nothing and goes on counting after this node.
                    return Ok(());
                }
                let written = value.written().map_err(|error| at(pipeline, &error))?;
                return self.write(&written);
            }
            Node::If(branches, otherwise) => {
                for (condition, nodes) in branches {
                    if self.pipeline(condition, dot)?.is_true() {
                        self.nodes(nodes, dot)?;
                        self.variables.truncate(variables);
                        return Ok(());
                    }
                }
                self.nodes(otherwise, dot)?;
            }
            Node::With(pipeline, nodes, otherwise) => {
                let value = self.pipeline(pipeline, dot)?;
                if value.is_true() {
                    self.nodes(nodes, &value)?;
                } else {
                    self.nodes(otherwise, dot)?;
                }
            }
            Node::Range(pipeline, nodes, otherwise) => {
                self.range(pipeline, nodes, otherwise, dot)?;
            }
        }
        self.variables.truncate(variables);
        Ok(())
    }

    fn range(
        &mut self,
        pipeline: &Pipeline,
        nodes: &[Node],
        otherwise: &[Node],
        dot: &Value,
    ) -> Result<(), String> {
        let value = self.commands(pipeline, dot)?;
        let entries: Vec<(Value, Value)> = match value {
            Value::Nothing => Vec::new(),
            Value::List(list) => {
                let index = |index| Value::Int(i64::try_from(index).unwrap_or(i64::MAX));
                list.into_iter().enumerate().map(|(at, value)| (index(at), value)).collect()
            }
            Value::Map(map) => {
                map.into_iter().map(|(key, value)| (Value::text(key), value)).collect()
            }
            _ => return Err(at(pipeline, "`range` goes through a list or a map")),
        };
        if entries.is_empty() {
            return self.nodes(otherwise, dot);
        }
        let variables = self.variables.len();
        for (index, value) in entries {
            self.step()?;
            match pipeline.variables.as_slice() {
                [] => {}
                [one] => self.variables.push((one.clone(), value.clone())),
                [one, two, ..] => {
                    self.variables.push((one.clone(), index));
                    self.variables.push((two.clone(), value.clone()));
                }
            }
            self.nodes(nodes, &value)?;
            self.variables.truncate(variables);
        }
        Ok(())
    }

    fn write(&mut self, text: &[u8]) -> Result<(), String> {
        if self.output.len() + text.len() > OUTPUT_MAX {
            return Err(format!("the text becomes larger than {OUTPUT_MAX} bytes"));
        }
        self.output.extend(text);
        Ok(())
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value, String> {
        let value = self.commands(pipeline, dot)?;
        match pipeline.variables.as_slice() {
            [] => {}
            [name] if pipeline.declares => self.variables.push((name.clone(), value.clone())),
            [name] => {
                let known = self.variables.iter_mut().rev().find(|(known, _)| known == name);
                let unknown = || at(pipeline, &format!("the variable `${name}` is unknown"));
                known.ok_or_else(unknown)?.1 = value.clone();
            }
            _ => return Err(at(pipeline, "two variables are for `range` only")),
        }
        Ok(value)
    }

    fn commands(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value, String> {
        let mut fed: Option<Value> = None;
        for command in &pipeline.commands {
            self.step()?;
            let value = match command {
                Command::Term(_) if fed.is_some() => {
                    return Err(at(pipeline, "a value that is no function cannot be fed"));
                }
                Command::Term(term) => self.term(term, dot),
                Command::Call(name, arguments) => self.call(name, arguments, fed.take(), dot),
            };
            fed = Some(value.map_err(|error| at(pipeline, &error))?);
        }
        Ok(fed.unwrap_or(Value::Nothing))
    }

    fn call(
        &mut self,
        name: &str,
        arguments: &[Term],
        fed: Option<Value>,
        dot: &Value,
    ) -> Result<Value, String> {
        let mut values = Vec::with_capacity(arguments.len() + 1);
        for argument in arguments {
            let value = self.term(argument, dot)?;
            // These two look no further than they have to.
            if (name == "and" && !value.is_true()) || (name == "or" && value.is_true()) {
                return Ok(value);
            }
            values.push(value);
        }
        values.extend(fed);
        functions::call(name, values, &mut self.budget)
            .map_err(|error| format!("`{name}`: {error}"))
    }

    fn term(&mut self, term: &Term, dot: &Value) -> Result<Value, String> {
        self.step()?;
        match term {
            Term::Field(fields) => field(dot, fields),
            Term::Variable(name, fields) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                let (_, value) =
                    known.ok_or_else(|| format!("the variable `${name}` is unknown"))?;
                field(value, fields)
            }
            Term::Text(text) => Ok(Value::text(text.as_bytes())),
            Term::Int(number) => Ok(Value::Int(*number)),
            Term::Float(number) => Ok(Value::Float(*number)),
            Term::Bool(truth) => Ok(Value::Bool(*truth)),
            Term::Nil => Ok(Value::Nothing),
            Term::Inner(pipeline, fields) => field(&self.pipeline(pipeline, dot)?, fields),
            Term::Name(name) => functions::call(name, Vec::new(), &mut self.budget),
        }
    }
}

/// A field of a field; one that is not there is nothing, and only writing that out is an error.
fn field(value: &Value, fields: &[String]) -> Result<Value, String> {
    let mut value = value;
    for name in fields {
        value = match value {
            Value::Map(map) => match map.get(name) {
                Some(inner) => inner,
                None => return Ok(Value::Nothing),
            },
            Value::Nothing => {
                return Err(format!("`.{name}` is asked of a value that is not there"));
            }
            _ => return Err(format!("`.{name}` is asked of a value that has no fields")),
        };
    }
    Ok(value.clone())
}

fn at(pipeline: &Pipeline, error: &str) -> String {
    // An inner pipeline has said it already.
    if error.starts_with("line ") {
        error.to_owned()
    } else {
        format!("line {}: {error}", pipeline.line)
    }
}
