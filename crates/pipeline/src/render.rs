//! Events as lines for a terminal: behind `remote:` of `git push`, and in `updraft push`.
//!
//! Plain text without colours; who prints may add some.

use updraft_model::{FunctionName, ItemKey, SecretName};
use updraft_store::PushState;

use crate::event::{
    FailedStep, PlannedAction, PlannedFunction, PushEvent, PushEventKind, SecretOutcome,
};

/// Lines of a failed step that are shown.
pub const LOG_TAIL: usize = 30;

/// The lines that tell of an event; none for what only programs care about.
pub fn terminal(event: &PushEvent) -> Vec<String> {
    match &event.kind {
        PushEventKind::State { .. } => Vec::new(),
        PushEventKind::Plan { functions, removed } => plan(functions, removed),
        PushEventKind::Notice { text } => vec![text.clone()],
        PushEventKind::Warning { text } => vec![format!("warning: {text}")],
        PushEventKind::BuildStarted { function, .. } => vec![format!("{function} | building")],
        PushEventKind::BuildLine { function, line } => vec![format!("{function} | {line}")],
        PushEventKind::BuildReused { function, .. } => {
            vec![format!("{function} | same input as an earlier build, its image is used again")]
        }
        PushEventKind::BuildFinished { function, milliseconds, .. } => {
            vec![format!("{function} | built in {}", seconds(*milliseconds))]
        }
        PushEventKind::Deployed { function, release, url } => {
            vec![format!("{function} v{release} is live: {url}")]
        }
        PushEventKind::Unchanged { function, release, url } => {
            vec![format!("{function} v{release} is unchanged: {url}")]
        }
        PushEventKind::Pinned { owner, function, live, newest, url } => vec![
            format!("{function} stays at v{live}, to which it was rolled back: {url}"),
            format!(
                "{function} v{newest} waits; make it live with: updraft rollback {owner}/{function} --unpin"
            ),
        ],
        PushEventKind::Removed { function } => {
            vec![format!("{function} left the stack and is removed")]
        }
        PushEventKind::FunctionFailed { function, step, reason, log_tail, hint } => {
            let head = format!("{function} failed: {} ({})", first_line(reason), step.as_str());
            failure(head, reason, *step, log_tail, hint.as_deref(), &format!("{function} | "))
        }
        PushEventKind::PushFailed { step, reason, hint } => {
            let head = format!("failed: {} ({})", first_line(reason), step.as_str());
            failure(head, reason, *step, &[], hint.as_deref(), "")
        }
        PushEventKind::SecretTaken { secret, file, keys, outcome } => {
            let done = match outcome {
                SecretOutcome::Created => "is new",
                SecretOutcome::Replaced => "is replaced",
                SecretOutcome::Unchanged => "is unchanged",
            };
            let keys: Vec<_> = keys.iter().map(ItemKey::as_str).collect();
            let keys = if keys.is_empty() { "no items".to_owned() } else { keys.join(", ") };
            vec![format!("secret {secret} {done} ({file}: {keys})")]
        }
        PushEventKind::SecretRefused { file, place, name, reason, keeps, users } => {
            let at = if place.is_empty() { file.clone() } else { format!("{file}, {place}") };
            let what = name.as_ref().map_or("secrets".to_owned(), |name| format!("secret {name}"));
            let mut lines = vec![format!("{what} not taken: {at}: {}", first_line(reason))];
            lines.extend(reason.lines().skip(1).map(str::to_owned));
            let what = match name {
                Some(_) => format!("{what} keeps its earlier value"),
                None => "what it brought before stays".to_owned(),
            };
            if *keeps && users.is_empty() {
                lines.push(what);
            } else if *keeps {
                let users = join(users);
                lines.push(format!("{what}, which these functions have: {users}"));
            }
            lines
        }
        PushEventKind::SecretRemoved { secret } => {
            vec![format!("secret {secret} left the repository and is removed")]
        }
        PushEventKind::SecretStays { secret, users } => vec![format!(
            "secret {secret} left the repository and stays, because these functions have it: {}",
            join(users)
        )],
        PushEventKind::Rolled { function, repository, release, secrets } => {
            let names: Vec<_> = secrets.iter().map(SecretName::as_str).collect();
            let names = names.join(", ");
            vec![format!(
                "{function} v{release} of repository {repository} is started afresh with {names}"
            )]
        }
        PushEventKind::Finished { verdict } => {
            let took = seconds(verdict.milliseconds);
            let summary = &verdict.summary;
            match verdict.state {
                PushState::Ready | PushState::Failed => vec![format!("{summary} ({took})")],
                _ => vec![summary.clone()],
            }
        }
    }
}

fn plan(functions: &[PlannedFunction], removed: &[updraft_model::FunctionName]) -> Vec<String> {
    let described: Vec<String> = functions
        .iter()
        .map(|function| {
            let action = match &function.action {
                PlannedAction::Build => "build".to_owned(),
                PlannedAction::Reuse => "built before".to_owned(),
                PlannedAction::Image => "ready image".to_owned(),
                PlannedAction::Unchanged => "unchanged".to_owned(),
                PlannedAction::Refused => "refused".to_owned(),
                PlannedAction::Taken { by } => format!("belongs to repository {by}"),
            };
            if function.template.is_empty() {
                format!("{} {action}", function.name)
            } else {
                format!("{} ({}) {action}", function.name, function.template)
            }
        })
        .collect();
    let count = match functions.len() {
        0 => "no functions in the stack".to_owned(),
        1 => format!("1 function: {}", described.join(", ")),
        more => format!("{more} functions: {}", described.join(", ")),
    };
    let mut lines = vec![count];
    if !removed.is_empty() {
        let names: Vec<_> = removed.iter().map(updraft_model::FunctionName::as_str).collect();
        lines.push(format!("no longer in the stack: {}", names.join(", ")));
    }
    lines
}

fn failure(
    head: String,
    reason: &str,
    step: FailedStep,
    log_tail: &[String],
    hint: Option<&str>,
    prefix: &str,
) -> Vec<String> {
    let mut lines = vec![head];
    lines.extend(reason.lines().skip(1).map(|line| format!("{prefix}{line}")));
    let shown = &log_tail[log_tail.len().saturating_sub(LOG_TAIL)..];
    if !shown.is_empty() {
        let what = if step == FailedStep::Build { "of the build" } else { "of the function" };
        lines.push(format!("{prefix}last {} lines {what}:", shown.len()));
        lines.extend(shown.iter().map(|line| format!("{prefix}  {line}")));
    }
    lines.extend(hint.map(|hint| format!("{prefix}hint: {hint}")));
    lines
}

fn join(functions: &[FunctionName]) -> String {
    functions.iter().map(FunctionName::as_str).collect::<Vec<_>>().join(", ")
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// `0.8 s`, `12.3 s`, `3 min 5 s`.
fn seconds(milliseconds: u64) -> String {
    if milliseconds < 60_000 {
        format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100)
    } else {
        format!("{} min {} s", milliseconds / 60_000, milliseconds % 60_000 / 1000)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::event::Verdict;

    fn name(text: &str) -> FunctionName {
        FunctionName::new(text).unwrap()
    }

    fn lines(kind: PushEventKind) -> Vec<String> {
        terminal(&PushEvent { seq: 1, at: Timestamp::UNIX_EPOCH, kind })
    }

    #[test]
    fn a_plan_is_one_line_and_names_what_leaves() {
        let planned = |text: &str, template: &str, action| PlannedFunction {
            name: name(text),
            template: template.to_owned(),
            action,
        };
        let functions = vec![
            planned("api", "node", PlannedAction::Unchanged),
            planned("cache", "", PlannedAction::Image),
            planned("hello", "python", PlannedAction::Build),
        ];
        assert_eq!(
            lines(PushEventKind::Plan { functions, removed: vec![name("old")] }),
            [
                "3 functions: api (node) unchanged, cache ready image, hello (python) build",
                "no longer in the stack: old",
            ]
        );
    }

    #[test]
    fn a_failure_shows_its_last_thirty_lines_and_a_hint() {
        let lines = lines(PushEventKind::FunctionFailed {
            function: name("hello"),
            step: FailedStep::Build,
            reason: "exit status 1".to_owned(),
            log_tail: (0..40).map(|number| format!("line {number}")).collect(),
            hint: Some("check requirements.txt".to_owned()),
        });
        assert_eq!(lines.len(), 33);
        assert_eq!(lines[0], "hello failed: exit status 1 (build)");
        assert_eq!(lines[1], "hello | last 30 lines of the build:");
        assert_eq!(lines[2], "hello |   line 10");
        assert_eq!(lines[32], "hello | hint: check requirements.txt");
    }

    #[test]
    fn a_reason_of_several_lines_keeps_its_excerpt() {
        let lines = lines(PushEventKind::PushFailed {
            step: FailedStep::Plan,
            reason: "stack.yml:3:1: unknown field\n3 | lagn: python".to_owned(),
            hint: None,
        });
        assert_eq!(lines, ["failed: stack.yml:3:1: unknown field (plan)", "3 | lagn: python"]);
    }

    #[test]
    fn the_end_says_how_long_it_took() {
        let end = |state, milliseconds| {
            let verdict = Verdict { state, summary: "1 function live".to_owned(), milliseconds };
            lines(PushEventKind::Finished { verdict })
        };
        assert_eq!(end(PushState::Ready, 840), ["1 function live (0.8 s)"]);
        assert_eq!(end(PushState::Failed, 185_000), ["1 function live (3 min 5 s)"]);
        assert_eq!(end(PushState::Superseded, 5), ["1 function live"]);
    }
}
