//! What to do about a failure, read from its last lines.

/// What a line may hold, and what to do then.
const HINTS: &[(&str, &str)] = &[
    (
        "no matching distribution found for",
        "check the package's name and version in `requirements.txt`",
    ),
    (
        "could not find a version that satisfies",
        "check the package's name and version in `requirements.txt`",
    ),
    (
        "modulenotfounderror",
        "add the missing package to the function's `requirements.txt` and push again",
    ),
    ("npm err! 404", "check the package's name and version in `package.json`"),
    ("npm error 404", "check the package's name and version in `package.json`"),
    ("npm err! code e404", "check the package's name and version in `package.json`"),
    ("npm error code e404", "check the package's name and version in `package.json`"),
    (
        "cannot find module",
        "add the missing package to the function's `package.json`, or check the path in `require`",
    ),
    ("syntaxerror", "the code does not parse, fix the line that is shown and push again"),
    ("indentationerror", "the code does not parse, fix the line that is shown and push again"),
    ("no required module provides package", "run `go mod tidy` and commit `go.mod` and `go.sum`"),
    ("missing go.sum entry", "run `go mod tidy` and commit `go.mod` and `go.sum`"),
    (
        "no space left on device",
        "the build needs more disk than it may use, or the machine is full; make the build smaller or ask the operator",
    ),
    (
        "temporary failure in name resolution",
        "the build could not reach the network, check the machine's name resolution",
    ),
    (
        "could not resolve host",
        "the build could not reach the network, check the machine's name resolution",
    ),
    (
        "network is unreachable",
        "the build could not reach the network; on a machine without one, vendor the dependencies",
    ),
    (
        "copy failed: no such file",
        "a file that the Dockerfile copies is not in the handler's folder",
    ),
    (
        "exec format error",
        "the program was built for another kind of processor or has no `#!` line",
    ),
    (
        "executable file not found",
        "the program that the function starts is not in its image, check `fprocess` or the Dockerfile",
    ),
    ("permission denied", "a file may not be read or run, check its mode in git"),
    (
        "out of memory",
        "the memory limit was reached, raise `limits.memory` in the stack or use less",
    ),
    (
        "connection refused",
        "nothing listens where the watchdog expects it, check the port in `upstream_url`",
    ),
];

/// What to do, when one of the lines (the newest first) or the reason tells.
pub(crate) fn hint(reason: &str, log_tail: &[String]) -> Option<String> {
    log_tail.iter().rev().map(String::as_str).chain([reason]).find_map(|line| {
        let line = line.to_lowercase();
        let (_, hint) = HINTS.iter().find(|(sign, _)| line.contains(sign))?;
        Some((*hint).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_failures_of_builds_are_recognised() {
        let check = |line: &str, part: &str| {
            let tail = ["before".to_owned(), line.to_owned(), "after".to_owned()];
            let hint = hint("the build failed", &tail).unwrap_or_default();
            assert!(hint.contains(part), "{line}: {hint}");
        };
        check("ERROR: No matching distribution found for flaskk==1", "requirements.txt");
        check("npm ERR! 404 Not Found - GET https://registry/leftpadd", "package.json");
        check("ModuleNotFoundError: No module named 'flask'", "requirements.txt");
        check("  File \"handler.py\", line 3 SyntaxError: invalid syntax", "does not parse");
        check("cp: error writing 'x': No space left on device", "disk");
        check("main.go:3:8: no required module provides package x/y;", "go mod tidy");
    }

    #[test]
    fn a_failure_nobody_knows_has_no_hint() {
        assert_eq!(hint("exit status 1", &["something else".to_owned()]), None);
    }
}
