//! Contexts as OpenFaaS lays them out, from repositories of all sorts.

use super::*;
use bytes::Bytes;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use tempfile::TempDir;

struct Repository {
    folder: TempDir,
}

impl Repository {
    fn new(stack: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("checkout")).unwrap();
        let repository = Self { folder };
        repository.write("stack.yml", stack);
        repository
    }

    fn checkout(&self) -> PathBuf {
        self.folder.path().join("checkout")
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.checkout().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn prepare_with(&self, templates: &Templates) -> Result<Context, ContextError> {
        let stack = Stack::read(&self.checkout(), &BTreeMap::new()).unwrap();
        let function = stack.functions.keys().next().unwrap();
        prepare(ContextRequest {
            checkout: &self.checkout(),
            stack: &stack,
            function,
            templates,
            destination: &self.folder.path().join("context"),
            limits: &ContextLimits::default(),
        })
    }

    fn prepare(&self) -> Result<Context, ContextError> {
        self.prepare_with(&Templates::new(Bytes::from_static(b"watchdog"), false))
    }
}

fn listing(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, prefix: &str, out: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), &format!("{name}/"), out);
            } else {
                out.push(name);
            }
        }
    }
    let mut out = Vec::new();
    walk(folder, "", &mut out);
    out.sort();
    out
}

const PYTHON: &str = "functions: {f: {lang: python3-http, handler: ./f, image: x/f:1}}\n";

#[test]
fn a_handler_lies_beside_its_templates_files() {
    let repository = Repository::new(PYTHON);
    repository.write("f/handler.py", "def handle(event, context): pass\n");
    repository.write("f/build/skipped", "");
    repository.write("f/template/skipped", "");
    repository.write("f/lib/build/kept", "");
    repository.write("secret", "not part of it");
    let context = repository.prepare().unwrap();
    assert_eq!(
        listing(&context.folder),
        ["Dockerfile", "function/handler.py", "function/lib/build/kept", "fwatchdog", "index.py"]
    );
    let watchdog = context.folder.join("fwatchdog");
    assert_eq!(fs::metadata(&watchdog).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read(watchdog).unwrap(), b"watchdog");
}

#[test]
fn the_same_input_has_the_same_digest_and_any_change_another() {
    let repository = Repository::new(PYTHON);
    repository.write("f/handler.py", "1");
    let first = repository.prepare().unwrap().digest;
    assert_eq!(repository.prepare().unwrap().digest, first);
    repository.write("unrelated", "x");
    assert_eq!(repository.prepare().unwrap().digest, first);
    let newer = Templates::new(Bytes::from_static(b"newer watchdog"), false);
    assert_ne!(repository.prepare_with(&newer).unwrap().digest, first);
    repository.write("f/handler.py", "2");
    assert_ne!(repository.prepare().unwrap().digest, first);
    repository.write("f/handler.py", "1");
    assert_eq!(repository.prepare().unwrap().digest, first);
    repository.write("stack.yml", &PYTHON.replace("image", "build_args: {A: b}, image"));
    let with_argument = repository.prepare().unwrap();
    assert_ne!(with_argument.digest, first);
    assert_eq!(with_argument.build_args["A"], "b");
}

#[test]
fn a_context_that_was_cut_short_is_made_anew() {
    let repository = Repository::new(PYTHON);
    repository.write("f/handler.py", "");
    let left = repository.folder.path().join("context/function/left/over");
    fs::create_dir_all(&left).unwrap();
    symlink("/etc", left.join("link")).unwrap();
    let context = repository.prepare().unwrap();
    assert!(!left.exists());
    assert!(listing(&context.folder).contains(&"function/handler.py".to_owned()));
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn shared_folders_and_files_are_copied_into_the_handler_folder() {
    let repository = Repository::new(
        "functions: {f: {lang: node, handler: f}}\nconfiguration: {copy: [./common, data/one.txt]}\n",
    );
    repository.write("f/handler.js", "");
    repository.write("f/common/own.js", "own");
    repository.write("common/lib/a.js", "");
    repository.write("data/one.txt", "");
    repository.write("data/two.txt", "");
    let files = listing(&repository.prepare().unwrap().folder);
    for file in ["common/lib/a.js", "common/own.js", "data/one.txt", "handler.js"] {
        assert!(files.contains(&format!("function/{file}")), "{file}: {files:?}");
    }
    assert!(!files.contains(&"function/data/two.txt".to_owned()));
}

#[test]
fn a_dockerfile_function_is_its_handler_and_the_watchdog() {
    let repository = Repository::new("functions: {f: {lang: Dockerfile, handler: .}}\n");
    repository.write("Dockerfile", "FROM scratch\n");
    repository.write("build/kept", "");
    repository.write(".git/config", "");
    let context = repository.prepare().unwrap();
    assert_eq!(listing(&context.folder), ["Dockerfile", "build/kept", "fwatchdog", "stack.yml"]);
    repository.write("fwatchdog", "own");
    assert_eq!(fs::read(repository.prepare().unwrap().folder.join("fwatchdog")).unwrap(), b"own");
}

#[test]
fn a_dockerfile_function_without_one_is_told_what_is_missing() {
    let repository = Repository::new("functions: {f: {lang: dockerfile, handler: ./f}}\n");
    repository.write("f/dockerfile", "");
    let error = repository.prepare().unwrap_err().to_string();
    assert!(
        error.contains("handler `f` has no `Dockerfile`") && error.contains("capital D"),
        "{error}"
    );
}

#[test]
fn a_handler_that_is_missing_a_file_or_a_link_is_refused() {
    let repository = Repository::new(PYTHON);
    let error = repository.prepare().unwrap_err();
    assert!(error.to_string().contains("`f` does not exist"), "{error}");
    assert!(!error.is_internal());
    repository.write("f", "");
    assert!(repository.prepare().unwrap_err().to_string().contains("not a folder"));
    fs::remove_file(repository.checkout().join("f")).unwrap();
    symlink("/etc", repository.checkout().join("f")).unwrap();
    let error = repository.prepare().unwrap_err();
    assert!(error.to_string().contains("symbolic link"), "{error}");
}

#[test]
fn a_handler_below_a_link_is_refused() {
    let repository = Repository::new("functions: {f: {lang: python, handler: up/etc}}\n");
    symlink("/", repository.checkout().join("up")).unwrap();
    let error = repository.prepare().unwrap_err();
    assert!(error.to_string().contains("symbolic link"), "{error}");
}

#[test]
fn a_shared_folder_that_is_a_link_is_refused() {
    let repository = Repository::new(
        "functions: {f: {lang: python, handler: f}}\nconfiguration: {copy: [common]}\n",
    );
    repository.write("f/handler.py", "");
    symlink("/etc", repository.checkout().join("common")).unwrap();
    let error = repository.prepare().unwrap_err();
    assert!(error.to_string().contains("configuration.copy: `common` leads through"), "{error}");
}

#[test]
fn build_options_become_packages() {
    let repository = Repository::new(
        "functions: {f: {lang: shell, handler: f, build_options: [jq, curl], build_args: {ADDITIONAL_PACKAGE: jq vim}}}\n",
    );
    repository.write("f/handler", "");
    let context = repository.prepare().unwrap();
    assert_eq!(context.build_args["ADDITIONAL_PACKAGE"], "curl jq vim");
    repository
        .write("stack.yml", "functions: {f: {lang: shell, handler: f, build_options: [nope]}}\n");
    let error = repository.prepare().unwrap_err().to_string();
    assert!(error.contains("no build option `nope`") && error.contains("curl, jq"), "{error}");
}

#[test]
fn a_repositorys_own_template_brings_its_sample_and_process() {
    let repository = Repository::new("functions: {f: {lang: mine, handler: f}}\n");
    repository.write("template/mine/template.yml", "fprocess: ./run\n");
    repository.write("template/mine/Dockerfile", "FROM scratch\n");
    repository.write("template/mine/function/defaults.txt", "sample");
    repository.write("template/mine/function/handler", "sample");
    repository.write("f/handler", "own");
    assert!(matches!(repository.prepare(), Err(ContextError::Template(_))));
    let templates = Templates::new(Bytes::from_static(b"w"), true);
    let context = repository.prepare_with(&templates).unwrap();
    assert_eq!(
        listing(&context.folder),
        ["Dockerfile", "function/defaults.txt", "function/handler", "fwatchdog"]
    );
    assert_eq!(fs::read(context.folder.join("function/handler")).unwrap(), b"own");
    assert_eq!(context.process.as_deref(), Some("./run"));
    repository.write("stack.yml", "functions: {f: {lang: mine, handler: f, fprocess: ./own}}\n");
    assert_eq!(repository.prepare_with(&templates).unwrap().process.as_deref(), Some("./own"));
}

#[test]
fn the_examples_and_samples_of_the_repository_make_contexts_without_warnings() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let templates = Templates::new(Bytes::from_static(b"w"), false);
    let target = tempfile::tempdir().unwrap();
    for (example, count) in [("hello", 1), ("four-languages", 4)] {
        let checkout = root.join("examples").join(example);
        let stack = Stack::read(&checkout, &BTreeMap::new()).unwrap();
        assert_eq!((stack.functions.len(), stack.warnings.as_slice()), (count, &[][..]));
        for function in stack.functions.keys() {
            stack.check_template(function, &checkout, &templates).unwrap();
            prepare(ContextRequest {
                checkout: &checkout,
                stack: &stack,
                function,
                templates: &templates,
                destination: &target.path().join("context"),
                limits: &ContextLimits::default(),
            })
            .unwrap();
        }
    }
    for template in templates.all() {
        let stack = format!("functions: {{f: {{lang: {}, handler: f}}}}\n", template.name);
        let repository = Repository::new(&stack);
        for file in template.sample() {
            repository
                .write(&format!("f/{}", file.path), std::str::from_utf8(file.content).unwrap());
        }
        repository.prepare().unwrap();
    }
}
