//! Stack files as people write them, right and wrong.

use super::*;
use proptest::prelude::*;

fn variables() -> BTreeMap<String, String> {
    [("UPDRAFT_BRANCH", "main"), ("UPDRAFT_SHA", "0123abc")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

fn parse(text: &str) -> Result<Stack, StackError> {
    Stack::parse(text, "stack.yml", &variables())
}

fn only(text: &str) -> StackFunction {
    let stack = parse(text).unwrap();
    assert_eq!(stack.functions.len(), 1);
    stack.functions.into_values().next().unwrap()
}

/// The error's text; fails unless it contains every part.
fn refuse(text: &str, parts: &[&str]) {
    let error = parse(text).expect_err(text).to_string();
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in:\n{error}");
    }
}

const WHOLE: &str = r#"
version: 1.0
provider:
  name: openfaas
  gateway: http://127.0.0.1:8080
functions:
  hello-world:
    lang: python3-http
    handler: ./hello-world
    image: ${REGISTRY:-ghcr.io/me}/hello:${UPDRAFT_SHA}
    fprocess: python3 other.py
    environment:
      number: 8080
      version: 1.10
      switch: yes
      empty: ~
      quoted: "${UPDRAFT_BRANCH}"
      price: $$5
    environment_file: [env.yml, ./more/env.yml]
    secrets: [db-password, api.key]
    constraints: ["node.role == worker"]
    labels:
      com.openfaas.scale.min: 2
      com.openfaas.scale.zero: true
    annotations: {topic: cron, schedule: "*/5 * * * *"}
    limits: {memory: 40Mi, cpu: 100m}
    requests: {memory: 20Mi}
    readonly_root_filesystem: true
    timeout: 90
    build_options: [dev]
    build_args: {GO111MODULE: off, N: 1}
configuration:
  copy: [./common]
"#;

#[test]
fn every_field_is_read() {
    let stack = parse(WHOLE).unwrap();
    let function = &stack.functions["hello-world"];
    assert_eq!(function.template, "python3-http");
    assert_eq!(function.handler, "hello-world");
    assert_eq!(function.image.as_deref(), Some("ghcr.io/me/hello:0123abc"));
    assert_eq!(function.process.as_deref(), Some("python3 other.py"));
    let environment = |name: &str| function.environment[name].as_str();
    assert_eq!(environment("number"), "8080");
    assert_eq!(environment("version"), "1.10");
    assert_eq!(environment("switch"), "yes");
    assert_eq!(environment("empty"), "");
    assert_eq!(environment("quoted"), "main");
    assert_eq!(environment("price"), "$5");
    assert_eq!(function.environment_files, ["env.yml", "more/env.yml"]);
    assert_eq!(function.secrets.len(), 2);
    assert_eq!(function.labels["com.openfaas.scale.min"], "2");
    assert_eq!(function.labels["com.openfaas.scale.zero"], "true");
    assert_eq!(function.annotations["schedule"], "*/5 * * * *");
    assert_eq!(function.annotations["updraft.timeout"], "90");
    assert_eq!(function.limits.as_ref().unwrap().memory.as_ref().unwrap().bytes(), 40 << 20);
    assert_eq!(function.requests.as_ref().unwrap().cpu, None);
    assert_eq!(function.read_only_root, Some(true));
    assert_eq!(function.build_options, ["dev"]);
    assert_eq!(function.build_args["GO111MODULE"], "off");
    assert_eq!(function.line, 7);
    assert_eq!(stack.copy, ["common"]);
    assert_eq!(stack.warnings.len(), 1, "{:?}", stack.warnings);
    assert!(stack.warnings[0].contains("constraints"));
}

#[test]
fn old_files_and_short_files_are_understood() {
    let function = only(
        "provider: {name: faas, network: func_functions}\nfunctions:\n  f:\n    lang: node\n    handler: ./f\n    skip_build: no\n    environment:\n      fprocess: cat\n      a: b\n",
    );
    assert_eq!(function.process.as_deref(), Some("cat"));
    assert_eq!(function.environment.len(), 1);
    assert!(parse("functions: {}").unwrap().functions.is_empty());
    assert!(parse("functions:\n").unwrap().functions.is_empty());
}

#[test]
fn fields_without_effect_are_warned_about_by_name_function_and_line() {
    let text = "functions:\n  f:\n    lang: node\n    handler: f\n    platforms: linux/amd64\n    build_secrets: {a: b}\n    registry_auth: abc\n    namespace: staging\n    enviroment: {a: b}\n    limits: {memroy: 1Mi}\n    labels: {com.openfaas.cloud.git-owner: eve, faas_function: x, mine: y}\nconfiguration:\n  templates: [{name: x, source: y}]\nfunction: {}\n";
    let stack = parse(text).unwrap();
    let warned = |line: usize, parts: &[&str]| {
        let prefix = format!("stack.yml:{line}: ");
        let found = stack.warnings.iter().any(|warning| {
            warning.starts_with(&prefix) && parts.iter().all(|part| warning.contains(part))
        });
        assert!(found, "{line} {parts:?}: {:#?}", stack.warnings);
    };
    warned(5, &["`platforms`", "`f`"]);
    warned(6, &["`build_secrets`", "`f`"]);
    warned(7, &["`registry_auth`", "credentials"]);
    warned(8, &["`namespace`", "`f`"]);
    warned(9, &["`enviroment`", "did you mean `environment`?"]);
    warned(10, &["`memroy`", "did you mean `memory`?"]);
    warned(11, &["`com.openfaas.cloud.git-owner`", "the platform sets it"]);
    warned(11, &["`faas_function`"]);
    warned(13, &["`configuration.templates`"]);
    warned(14, &["`function`", "did you mean `functions`?"]);
    assert_eq!(stack.functions["f"].labels.keys().collect::<Vec<_>>(), ["mine"]);
}

#[test]
fn errors_show_line_column_excerpt_and_hint() {
    refuse(
        "functions:\n  hello:\n    lang: python\n    handler: ../other\n",
        &[
            "stack.yml:4:14: `handler`: `../other` goes upwards",
            "4 |     handler: ../other",
            "^^^^^^^^",
        ],
    );
    refuse(
        "functions:\n  Hello_World:\n    lang: a\n",
        &["stack.yml:2:3", "`hello-world` would do"],
    );
    refuse("functions:\n  f: {handler: f}\n", &["stack.yml:2:3", "no `lang`"]);
    refuse("functions:\n  f: {lang: node}\n", &["no `handler`", "handler: ./f"]);
    refuse(
        "functions:\n  f: {lang: node, handler: f}\n  f: {lang: go, handler: g}\n",
        &["stack.yml:3:3", "duplicate"],
    );
    refuse("functions:\n- f\n", &["`functions` must be a map, this is a list"]);
    refuse("functions: {f: {lang: [a], handler: f}}", &["`lang` must be a text"]);
    refuse(
        "functions: {f: {lang: a, handler: f, limits: {memory: lots}}}",
        &["quantity `lots`", "128Mi"],
    );
    refuse(
        "functions: {f: {lang: a, handler: f, skip_build: maybe}}",
        &["`maybe`, not true or false"],
    );
    refuse("functions: {f: {lang: a, handler: f, secrets: [A/B]}}", &["secret `A/B`"]);
    refuse("functions: {f: {skip_build: true}}", &["no `image`"]);
    refuse("functions: {f: {skip_build: true, image: /x}}", &["image reference"]);
    refuse("functions: {f: {lang: a, handler: f, environment: {a=b: c}}}", &["`a=b`"]);
    refuse("functions: {f: {lang: a, handler: f, build_args: {a b: c}}}", &["`a b`"]);
    refuse(
        "functions: {f: {lang: a, handler: 'f', fprocess: '${A^^}'}}",
        &["`${A^^}` is not supported", "`${NAME:-default}`"],
    );
    refuse("provider: {name: lambda}\nfunctions: {}", &["provider `lambda`", "name: openfaas"]);
    refuse("version: 2.0\nfunctions: {}", &["version `2.0`"]);
    refuse("", &["empty"]);
    refuse("provider: {name: openfaas}", &["declares no `functions`"]);
    refuse("functions: {}\nconfiguration: {copy: [.]}", &["whole repository"]);
    refuse("functions: {}\nconfiguration: {copy: [/etc]}", &["absolute"]);
    refuse("functions:\n\tf: {}\n", &["stack.yml:2", "tab"]);
}

#[test]
fn a_value_cannot_add_fields() {
    let evil = BTreeMap::from([("X".to_owned(), "a\n    handler: /etc".to_owned())]);
    let text = "functions:\n  f:\n    lang: node\n    handler: f\n    fprocess: ${X}\n";
    let stack = Stack::parse(text, "stack.yml", &evil).unwrap();
    assert_eq!(stack.functions["f"].handler, "f");
    assert_eq!(stack.functions["f"].process.as_deref(), Some("a\n    handler: /etc"));
}

#[test]
fn unknown_variables_are_warned_about_and_become_empty() {
    let stack =
        parse("functions: {f: {lang: node, handler: f, image: \"x/${UPDRAFT_SAH}y\"}}").unwrap();
    assert_eq!(stack.functions["f"].image.as_deref(), Some("x/y"));
    assert!(stack.warnings[0].contains("`${UPDRAFT_SAH}`"), "{:?}", stack.warnings);
    assert!(stack.warnings[0].contains("did you mean `${UPDRAFT_SHA}`?"), "{:?}", stack.warnings);
}

#[test]
fn there_is_an_end_to_functions_and_warnings() {
    let many: String =
        (0..101).map(|n| ["  f", &n.to_string(), ": {lang: a, handler: f}\n"].concat()).collect();
    refuse(&format!("functions:\n{many}"), &["101 functions, 100 are allowed", "stack.yml:102"]);
    let noise: String = (0..200).map(|n| ["unknown", &n.to_string(), ": 1\n"].concat()).collect();
    let stack = parse(&format!("{noise}functions: {{}}\n")).unwrap();
    assert_eq!(stack.warnings.len(), WARNINGS_MAX + 1);
}

fn checkout(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    folder
}

fn read(folder: &tempfile::TempDir) -> Result<Stack, StackError> {
    Stack::read(folder.path(), &variables())
}

#[test]
fn the_yaml_file_wins_over_the_yml_file_and_says_so() {
    let both = checkout(&[("stack.yaml", "functions: {}"), ("stack.yml", "nonsense")]);
    assert!(read(&both).unwrap().warnings[0].contains("`stack.yml` is ignored"));
    let one = checkout(&[("stack.yml", "functions: {}")]);
    assert!(read(&one).unwrap().warnings.is_empty());
}

#[test]
fn a_repository_without_a_stack_file_is_told_what_to_do() {
    let error = read(&checkout(&[("hello.yml", "")])).unwrap_err().to_string();
    assert!(error.contains("rename it to `stack.yml`") && error.contains("`hello.yml`"), "{error}");
    let error = read(&checkout(&[("README", "")])).unwrap_err().to_string();
    assert!(error.contains("updraft new"), "{error}");
}

#[test]
fn environment_files_override_each_other_and_the_stack() {
    let folder = checkout(&[
        (
            "stack.yml",
            "functions: {f: {lang: a, handler: f, environment: {a: 1, b: 1, c: 1}, environment_file: [one.yml, two.yml]}}",
        ),
        ("one.yml", "environment:\n  b: 2\n  c: 2\n"),
        ("two.yml", "environment: {c: '${UPDRAFT_SHA}', fprocess: cat}\n"),
    ]);
    let stack = read(&folder).unwrap();
    let function = &stack.functions["f"];
    let values: Vec<&str> = function.environment.values().map(String::as_str).collect();
    assert_eq!(values, ["1", "2", "${UPDRAFT_SHA}"]);
    assert_eq!(function.process.as_deref(), Some("cat"));
}

#[test]
fn environment_files_stay_inside_the_repository() {
    let stack = |file: &str| {
        format!("functions: {{f: {{lang: a, handler: f, environment_file: [{file}]}}}}")
    };
    for bad in ["../env.yml", "/etc/environment"] {
        let folder = checkout(&[("stack.yml", &stack(bad))]);
        assert!(matches!(read(&folder), Err(StackError::Invalid(_))), "{bad}");
    }
    let folder = checkout(&[("stack.yml", &stack("env.yml"))]);
    assert!(read(&folder).unwrap_err().to_string().contains("`env.yml` does not exist"));
    std::os::unix::fs::symlink("/etc/passwd", folder.path().join("env.yml")).unwrap();
    assert!(read(&folder).unwrap_err().to_string().contains("symbolic link"));
    let folder = checkout(&[("stack.yml", &stack("env.yml")), ("env.yml", "a: 1\n")]);
    let error = read(&folder).unwrap_err().to_string();
    assert!(error.starts_with("env.yml:1:1: unknown field `a`"), "{error}");
}

#[test]
fn an_environment_that_no_process_can_have_is_refused() {
    let value = "x".repeat(100_000);
    let text = format!(
        "functions: {{f: {{lang: a, handler: f, environment: {{a: {value}, b: {value}, c: {value}}}}}}}"
    );
    let error = read(&checkout(&[("stack.yml", &text)])).unwrap_err().to_string();
    assert!(error.contains("300003 bytes"), "{error}");
    assert!(error.len() < 2_000, "{}", error.len());
}

#[test]
fn a_stack_file_that_is_a_link_or_huge_is_refused() {
    let folder = checkout(&[]);
    std::os::unix::fs::symlink("/etc/passwd", folder.path().join("stack.yml")).unwrap();
    assert!(matches!(read(&folder), Err(StackError::Read(OpenError::Link(_)))));
    let folder = checkout(&[("stack.yml", "")]);
    let file = std::fs::File::options().write(true).open(folder.path().join("stack.yml")).unwrap();
    file.set_len(1 << 30).unwrap();
    assert!(matches!(read(&folder), Err(StackError::Read(OpenError::TooLarge { .. }))));
}

#[test]
fn an_unknown_template_is_shown_in_the_stack_file() {
    let folder = checkout(&[]);
    let templates = Templates::new(bytes::Bytes::new(), false);
    let f: FunctionName = FunctionName::new("f").unwrap();
    let stack = parse("functions:\n  f:\n    lang: pyton\n    handler: f\n").unwrap();
    let error = stack.check_template(&f, folder.path(), &templates).unwrap_err().to_string();
    assert!(error.starts_with("stack.yml:3:11: unknown template `pyton`\n"), "{error}");
    assert!(error.contains("did you mean `python`?"), "{error}");
    let skipped = parse("functions: {f: {lang: pyton, skip_build: true, image: a/b}}").unwrap();
    skipped.check_template(&f, folder.path(), &templates).unwrap();
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "(?s).{0,200}") {
        drop(parse(&text));
    }

    #[test]
    fn no_function_body_makes_the_reader_panic(
        field in "lang|handler|image|environment|labels|limits|secrets|skip_build|build_args|copy",
        value in "[\\[\\]{}:a-z0-9$ ,~'\"/.*&!-]{0,40}",
    ) {
        drop(parse(&format!("functions:\n  f:\n    lang: a\n    handler: f\n    {field}: {value}\n")));
    }

    #[test]
    fn a_handler_that_is_accepted_stays_inside(handler in "[./a-z]{1,20}") {
        if let Ok(stack) = parse(&format!("functions: {{f: {{lang: a, handler: \"{handler}\"}}}}")) {
            let handler = &stack.functions["f"].handler;
            prop_assert!(!handler.starts_with('/'));
            prop_assert!(handler.split('/').all(|part| part != ".."));
        }
    }
}
