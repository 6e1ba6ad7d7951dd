use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Dockerfile {
    Dockerfile::parse(text, &BTreeMap::new()).unwrap()
}

fn images(text: &str) -> Vec<String> {
    parse(text).images.iter().map(|needed| needed.image.to_string()).collect()
}

fn refused(text: &str) -> String {
    Dockerfile::parse(text, &BTreeMap::new()).unwrap_err().to_string()
}

#[test]
fn images_of_from_and_copy_are_needed_but_stages_are_not() {
    let text = "# syntax=docker/dockerfile:1\nFROM --platform=linux/amd64 golang:1 AS Build\n\
        FROM scratch\nCOPY --from=build /a /b\nCOPY --chown=1 --from=0 /a /b\n\
        COPY --from=ghcr.io/x/y:2 /a /b\nfrom build as other\n";
    assert_eq!(images(text), ["golang:1", "ghcr.io/x/y:2"]);
    assert_eq!(parse(text).images[1].line, 6);
}

#[test]
fn arguments_before_the_first_from_are_filled_in() {
    let text = "ARG TAG=3\nARG BASE=\"python:${TAG:-4}\"\nFROM ${BASE}-slim${EMPTY:+x}\n";
    assert_eq!(images(text), ["python:3-slim"]);
    let given = BTreeMap::from([("TAG".to_owned(), "9".to_owned())]);
    let file = Dockerfile::parse(text, &given).unwrap();
    assert_eq!(file.images[0].image.as_str(), "python:9-slim");
}

#[test]
fn an_argument_that_was_not_declared_does_not_count() {
    let given = BTreeMap::from([("BASE".to_owned(), "evil".to_owned())]);
    assert!(Dockerfile::parse("FROM $BASE\n", &given).is_err());
}

#[test]
fn pinning_changes_images_and_declares_variables_and_nothing_else() {
    let text = "FROM a:1 AS x # c\nRUN \\\n  # inside\n  --mount=type=cache,target=/c \\\n  make\n\
        FROM scratch\nCOPY --from=b:2 /f /f\nCMD [\"x\"]";
    let pinned = parse(text).pinned(
        |image| format!("<{image}>"),
        &[("A".into(), "1".into()), ("B".into(), "2".into())],
    );
    assert_eq!(
        pinned,
        "FROM <a:1> AS x # c\nARG A=1 B=2\nRUN \\\n  # inside\n   \\\n  make\n\
        FROM scratch\nCOPY --from=<b:2> /f /f\nCMD [\"x\"]"
    );
    let plain = "FROM scratch\r\nCMD [\"x\"]\r\n";
    assert_eq!(parse(plain).pinned(ToString::to_string, &[]), plain);
}

#[test]
fn mounts_that_could_reach_the_machine_are_refused() {
    let from = "FROM a\nRUN --mount=type=bind,from=b,source=/x,target=/y ls\n";
    assert!(refused(from).contains("line 2"), "{}", refused(from));
    assert!(refused("FROM a\nRUN --mount=from=b,target=/y ls\n").contains("COPY --from"));
    assert!(refused("FROM a\nRUN --mount=type=devpts,target=/y ls\n").contains("not supported"));
    assert!(refused("FROM a\nRUN --security=insecure ls\n").contains("insecure"));
    let secret = "FROM a\nRUN --mount=type=secret,id=x,required=true ls\n";
    assert!(refused(secret).contains("no secrets"));
    assert_eq!(
        parse("FROM a\nRUN --mount=type=bind,source=go.mod,target=/m ls\n").binds,
        [(2, "go.mod".to_owned())]
    );
}

#[test]
fn caches_are_left_out_with_a_warning() {
    let file = parse("FROM a\nRUN --mount=type=cache,target=/c pip install x\n");
    assert_eq!(file.pinned(ToString::to_string, &[]), "FROM a\nRUN  pip install x\n");
    assert!(file.warnings[0].contains("type=cache"));
}

#[test]
fn here_documents_are_refused_but_here_strings_and_shifts_are_not() {
    assert!(refused("FROM a\nRUN <<EOF\nls\nEOF\n").contains("here-documents"));
    assert!(refused("FROM a\nCOPY <<'X' /x\nls\nX\n").contains("here-documents"));
    parse("FROM a\nRUN cat <<< word && echo $((1 << 3))\n");
}

#[test]
fn a_file_without_from_or_with_a_wrong_image_tells_its_line() {
    assert!(refused("RUN ls\n").contains("no `FROM`"));
    assert!(refused("\n\nFROM A//b\n").contains("line 3"));
    assert!(refused("FROM\n").contains("no image"));
}

#[test]
fn the_escape_directive_is_honoured() {
    assert_eq!(images("# escape=`\nFROM `\n  a:1\n"), ["a:1"]);
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "(FROM|ARG|RUN|COPY|\\$\\{|\\}|--from=|--mount=|\\\\\n|#|[a-z:/=, \n'\"]|\\PC){0,40}") {
        if let Ok(file) = Dockerfile::parse(&text, &BTreeMap::new()) {
            let pinned = file.pinned(ToString::to_string, &[]);
            prop_assert!(pinned.len() <= text.len() || !file.images.is_empty());
        }
    }
}
