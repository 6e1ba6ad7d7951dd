//! The output of a build on its way to people: clean lines of bounded length and number.

use std::collections::VecDeque;

use crate::LineSink;

/// Longest line passed on, in bytes; the rest is cut.
const LINE_MAX: usize = 2_000;
/// Most bytes passed on for one build.
const TOTAL_MAX: usize = 8 << 20;
/// Lines kept for the error message.
const TAIL_LINES: usize = 30;

/// Turns bytes into lines, passes them on and remembers the last ones.
pub(crate) struct Output<'a> {
    sink: &'a LineSink,
    /// Texts replaced in each line: image ids by the names the author wrote.
    names: Vec<(String, String)>,
    /// The beginning of an instruction of ours, which nobody wrote and nobody needs to see.
    hidden: Option<String>,
    line: Vec<u8>,
    returned: bool,
    passed: usize,
    tail: VecDeque<String>,
    step: Option<String>,
}

impl<'a> Output<'a> {
    pub(crate) const fn new(
        sink: &'a LineSink,
        names: Vec<(String, String)>,
        hidden: Option<String>,
    ) -> Self {
        Self {
            sink,
            names,
            hidden,
            line: Vec::new(),
            returned: false,
            passed: 0,
            tail: VecDeque::new(),
            step: None,
        }
    }

    /// Takes the next bytes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                // A progress bar writes over its line: only its last state is worth a line.
                b'\r' => self.returned = true,
                _ => {
                    if self.returned {
                        self.line.clear();
                        self.returned = false;
                    }
                    // Escape sequences go later, so more is kept than is passed on.
                    if self.line.len() < LINE_MAX * 2 {
                        self.line.push(byte);
                    }
                }
            }
        }
    }

    /// Passes on what is left without a line end.
    pub(crate) fn finish(&mut self) {
        if !self.line.is_empty() {
            self.end_line();
        }
    }

    /// Writes a line of our own.
    pub(crate) fn say(&mut self, line: &str) {
        self.pass(line.to_owned());
    }

    /// The last lines.
    pub(crate) fn tail(&self) -> Vec<String> {
        self.tail.iter().cloned().collect()
    }

    /// The instruction that was begun last.
    pub(crate) fn step(&self) -> Option<String> {
        self.step.clone()
    }

    fn end_line(&mut self) {
        self.returned = false;
        let mut line = clean(&String::from_utf8_lossy(&std::mem::take(&mut self.line)));
        for (id, name) in &self.names {
            if line.contains(id.as_str()) {
                line = line.replace(id.as_str(), name);
            }
        }
        if let Some(step) = step(&line) {
            if self.hidden.as_ref().is_some_and(|hidden| step.starts_with(hidden)) {
                return;
            }
            self.step = Some(step.to_owned());
            // Steps that nobody wrote are counted in, so the numbers would have gaps.
            line = format!("STEP {step}");
        } else if is_bookkeeping(&line) {
            return;
        }
        self.pass(line);
    }

    fn pass(&mut self, line: String) {
        if self.passed <= TOTAL_MAX {
            self.passed += line.len() + 1;
            if self.passed <= TOTAL_MAX {
                (self.sink)(&line);
            } else {
                (self.sink)("(the rest of the log is left out, it is too long)");
            }
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }
}

/// The instruction in a line such as `[1/2] STEP 3/4: RUN make`.
fn step(line: &str) -> Option<&str> {
    let line = match line.strip_prefix('[') {
        Some(rest) => rest.split_once("] ")?.1,
        None => line,
    };
    let (count, instruction) = line.strip_prefix("STEP ")?.split_once(": ")?;
    count.bytes().all(|byte| byte.is_ascii_digit() || byte == b'/').then_some(instruction)
}

/// Whether a line tells only which layer or image a step became: `--> Using cache 0123…`,
/// `--> 0123456789a`, the names that the result got and its bare id.
fn is_bookkeeping(line: &str) -> bool {
    let is_id = |text: &str| text.len() >= 11 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let became = line.strip_prefix("--> ");
    let became = became.map(|rest| rest.strip_prefix("Using cache ").unwrap_or(rest));
    let commit = line.split_once("] ").filter(|(stage, _)| stage.starts_with('['));
    became.is_some_and(is_id)
        || (line.len() == 64 && is_id(line))
        || commit.map_or(line, |(_, rest)| rest).starts_with("COMMIT ")
        || commit.is_some_and(|(_, rest)| rest == "COMMIT")
        || line.starts_with("Successfully tagged localhost/")
}

/// The line without escape sequences and control characters, cut to its longest length.
pub(crate) fn clean(line: &str) -> String {
    let mut result = String::with_capacity(line.len().min(LINE_MAX));
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        if result.len() >= LINE_MAX {
            result.push('…');
            break;
        }
        match character {
            '\u{1b}' => match characters.next() {
                // Control sequence: parameters, then one letter.
                Some('[') => {
                    for next in characters.by_ref() {
                        if ('\u{40}'..='\u{7e}').contains(&next) {
                            break;
                        }
                    }
                }
                // Command string: up to a bell or the string terminator.
                Some(']' | 'P' | '_' | '^' | 'X') => {
                    while let Some(next) = characters.next() {
                        if next == '\u{7}' || (next == '\u{1b}' && characters.next().is_some()) {
                            break;
                        }
                    }
                }
                // Character set choice: one more character belongs to it.
                Some('(' | ')' | '#' | '%' | ' ') => drop(characters.next()),
                _ => {}
            },
            '\t' => result.push('\t'),
            character if character.is_control() => {}
            // Characters that turn the direction of writing can hide what a line says.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            character => result.push(character),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;

    fn lines(parts: &[&str]) -> Vec<String> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let keep = seen.clone();
        let sink: LineSink = Arc::new(move |line: &str| keep.lock().unwrap().push(line.to_owned()));
        let mut output =
            Output::new(&sink, vec![("abc123".into(), "python".into())], Some("ARG X=1".into()));
        for part in parts {
            output.bytes(part.as_bytes());
        }
        output.finish();
        seen.lock().unwrap().clone()
    }

    #[test]
    fn lines_are_put_together_from_pieces_and_cleaned() {
        assert_eq!(lines(&["a\u{1b}[3", "1mb\u{1b}[0m\nc"]), ["ab", "c"]);
        assert_eq!(lines(&["\u{1b}]0;title\u{7}x\u{1b}]8;;u\u{1b}\\y\u{0}\n"]), ["xy"]);
        assert_eq!(lines(&["FROM abc123\n"]), ["FROM python"]);
    }

    #[test]
    fn an_instruction_of_ours_is_not_shown() {
        let text = "STEP 1/3: FROM a\nSTEP 2/3: ARG X=1 Y=2\n--> Using cache 0123456789ab\n\
            STEP 3/3: ARG Y\n--> 0123456789a\n";
        assert_eq!(lines(&[text]), ["STEP FROM a", "STEP ARG Y"]);
    }

    #[test]
    fn which_layers_and_images_the_steps_became_is_not_shown() {
        let id = "0123456789abcdef".repeat(4);
        let text = format!(
            "[2/2] STEP 1/2: FROM a\n[2/2] STEP 2/2: RUN make\n--> Using cache {id}\nmaking\n\
             [1/2] COMMIT\n[2/2] COMMIT localhost/alice/x:1\n--> 0123456789a\n\
             Successfully tagged localhost/alice/x:1\n{id}\n"
        );
        assert_eq!(lines(&[&text]), ["STEP FROM a", "STEP RUN make", "making"]);
    }

    #[test]
    fn what_a_compiler_says_stays_as_it_is() {
        let text =
            "error[E0425]: cannot find `x`\n --> src/lib.rs:3:5\n--> src/lib.rs:3:5\n--> all\n";
        assert_eq!(lines(&[text]).len(), 4);
        assert_eq!(lines(&["COMMITTED\nabcdef0123456\n"]).len(), 2);
    }

    #[test]
    fn a_progress_bar_is_one_line() {
        assert_eq!(lines(&["10%\r20%\r100%\r\nnext\r\n"]), ["100%", "next"]);
    }

    #[test]
    fn endless_lines_and_endless_logs_are_cut() {
        let long = "x".repeat(100_000);
        let cut = lines(&[&long, "\nnext\n"]);
        assert!(cut[0].len() < LINE_MAX + 10, "{}", cut[0].len());
        assert_eq!(cut[1], "next");
        let many = format!("{}\n", "y".repeat(1_000)).repeat(10_000);
        let kept = lines(&[&many]);
        assert!(kept.len() < 9_000, "{}", kept.len());
        assert!(kept.last().unwrap().contains("too long"));
    }

    #[test]
    fn the_step_is_found_in_builds_of_one_and_more_stages() {
        assert_eq!(step("STEP 3/5: RUN make"), Some("RUN make"));
        assert_eq!(step("[2/2] STEP 1/5: FROM a AS b"), Some("FROM a AS b"));
        assert_eq!(step("STEP by step: x"), None);
    }

    proptest! {
        #[test]
        fn no_control_character_comes_through(text in "(\\PC|[\\x00-\\x1f]|\u{1b}\\[|\u{1b}\\]){0,80}") {
            let cleaned = clean(&text);
            prop_assert!(cleaned.chars().all(|c| c == '\t' || !c.is_control()), "{cleaned:?}");
        }
    }
}
