//! The sample of every language, as `updraft new` writes it, built on our own base images and
//! called. Making the toolchain images takes minutes, so `make test-templates` runs this file.

use std::fs;
use std::path::Path;

use updraft_tests::{Answer, Cloud};

/// A cloud with one base image, and a folder in which a function named `hello` was begun.
struct Journey {
    cloud: Cloud,
    folder: tempfile::TempDir,
}

impl Journey {
    fn new(language: &str, base: &str) -> Self {
        let cloud = Cloud::start_with_base_images(&[base]);
        let folder = tempfile::tempdir().expect("a folder can be made");
        let journey = Self { cloud, folder };
        journey.cloud.run_ok(&["new", "--lang", language, "--folder", journey.folder(), "hello"]);
        journey
    }

    fn folder(&self) -> &str {
        self.folder.path().to_str().expect("the path is text")
    }

    fn handler(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file of the handler.
    fn write(&self, path: &str, content: &str) -> &Self {
        let file = self.handler().join("hello").join(path);
        fs::create_dir_all(file.parent().expect("a file lies in a folder")).expect("a folder");
        fs::write(file, content).expect("the file can be written");
        self
    }

    fn push(&self) -> &Self {
        let started = std::time::Instant::now();
        self.cloud.run_ok(&["push", "--owner", "demo", "--repo", "sample", self.folder()]);
        eprintln!("measured: push {:?}", started.elapsed());
        self
    }

    async fn call(&self, query: &str) -> Answer {
        self.cloud.get("demo.localhost", &format!("/hello{query}")).await
    }

    async fn expect(&self, query: &str, body: &str) -> &Self {
        let answer = self.call(query).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, body));
        self
    }
}

#[tokio::test]
#[ignore = "builds toolchain images, minutes: make test-templates"]
async fn python_says_hello_and_installs_what_requirements_name() {
    let journey = Journey::new("python", "python");
    journey.push().expect("?name=Ada", "Hello, Ada!\n").await;
    journey
        .write("requirements.txt", "./greeting\n")
        .write(
            "greeting/setup.py",
            "import setuptools\n\nsetuptools.setup(name='greeting', version='1', py_modules=['greeting'])\n",
        )
        .write("greeting/greeting.py", "WORD = 'Bonjour'\n")
        .write(
            "handler.py",
            "import greeting\n\ndef handle(event, context):\n    return greeting.WORD\n",
        );
    journey.push().expect("", "Bonjour").await;
}

#[tokio::test]
#[ignore = "builds toolchain images, minutes: make test-templates"]
async fn node_says_hello_and_installs_what_package_json_names() {
    let journey = Journey::new("node", "node");
    journey.push().expect("?name=Ada", "Hello, Ada!\n").await;
    let package =
        r#"{"name": "hello", "version": "1.0.0", "dependencies": {"greeting": "file:greeting"}}"#;
    journey
        .write("package.json", package)
        .write("greeting/package.json", r#"{"name": "greeting", "version": "1.0.0"}"#)
        .write("greeting/index.js", "module.exports = 'Bonjour';\n")
        .write("handler.js", "module.exports = async () => require('greeting');\n");
    journey.push().expect("", "Bonjour").await;
}

#[tokio::test]
#[ignore = "builds toolchain images, minutes: make test-templates"]
async fn nodes_lock_file_is_kept_to_for_local_packages_too() {
    let journey = Journey::new("node", "node");
    let lock = r#"{"name": "hello", "version": "1.0.0", "lockfileVersion": 3, "requires": true,
        "packages": {
            "": {"name": "hello", "version": "1.0.0", "dependencies": {"greeting": "file:greeting"}},
            "greeting": {"version": "1.0.0"},
            "node_modules/greeting": {"resolved": "greeting", "link": true}
        }}"#;
    let package = |dependencies: &str| {
        format!(r#"{{"name": "hello", "version": "1.0.0", "dependencies": {{{dependencies}}}}}"#)
    };
    journey
        .write("package.json", &package(r#""greeting": "file:greeting""#))
        .write("package-lock.json", lock)
        .write("greeting/package.json", r#"{"name": "greeting", "version": "1.0.0"}"#)
        .write("greeting/index.js", "module.exports = 'Bonjour';\n")
        .write("handler.js", "module.exports = async () => require('greeting');\n");
    journey.push().expect("", "Bonjour").await;
    // A dependency that the lock file does not know is refused, not looked up somewhere.
    journey
        .write("package.json", &package(r#""greeting": "file:greeting", "other": "file:other""#))
        .write("other/package.json", r#"{"name": "other", "version": "1.0.0"}"#);
    let push = ["push", "--owner", "demo", "--repo", "sample", journey.folder()];
    let refused = journey.cloud.run(&push);
    assert_ne!(refused.code, Some(0));
    let told = refused.stdout + &refused.stderr;
    assert!(told.contains("package-lock.json"), "{told}");
    journey.expect("", "Bonjour").await;
}

#[tokio::test]
#[ignore = "builds toolchain images, minutes: make test-templates"]
async fn go_says_hello_with_a_module_and_without() {
    let journey = Journey::new("go", "go");
    journey.push().expect("?name=Ada", "Hello, Ada!\n").await;
    fs::remove_file(journey.handler().join("hello/go.mod")).expect("the sample has a go.mod");
    journey.push().expect("?name=Eve", "Hello, Eve!\n").await;
    // A module of another name, with a package of its own.
    journey
        .write("go.mod", "module example.org/shop\n\ngo 1.19\n")
        .write("greeting/greeting.go", "package greeting\n\nconst Word = \"Bonjour\"\n")
        .write(
            "handler.go",
            "package shop\n\nimport (\n\t\"net/http\"\n\n\t\"example.org/shop/greeting\"\n)\n\n\
             func Handle(w http.ResponseWriter, r *http.Request) {\n\
             \tw.Write([]byte(greeting.Word))\n}\n",
        );
    journey.push().expect("", "Bonjour").await;
}

#[tokio::test]
#[ignore = "builds toolchain images, minutes: make test-templates"]
async fn rust_says_hello_and_an_error_is_an_answer() {
    let journey = Journey::new("rust", "rust");
    journey.push().expect("?name=Ada", "Hello, Ada!\n").await;
    journey.write(
        "src/lib.rs",
        "use updraft::Request;\n\n\
         pub fn handle(request: Request) -> Result<String, std::num::ParseIntError> {\n    \
         let number: u32 = request.parameter(\"number\").unwrap_or_default().parse()?;\n    \
         Ok((number + 1).to_string())\n}\n",
    );
    journey.push().expect("?number=41", "42").await;
    assert_eq!(journey.call("?number=x").await.status, 500);
}

#[tokio::test]
#[ignore = "builds toolchain images, minutes: make test-templates"]
async fn shell_streams_the_body_through() {
    let journey = Journey::new("shell", "debian");
    journey.push().expect("", "Hello, world!\n").await;
    journey.write("handler", "#!/bin/sh\nexec tr a-z A-Z\n");
    journey.push();
    let body = "streamed ".repeat(100_000);
    let answer = journey.cloud.send("POST", "demo.localhost", "/hello", &[], body.as_str()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body, body.to_uppercase());
}

#[tokio::test]
#[ignore = "builds toolchain images, minutes: make test-templates"]
async fn a_static_site_serves_its_files() {
    let journey = Journey::new("static", "debian");
    journey.write("style.css", "h1 { color: red }\n");
    journey.push();
    let page = journey.call("/").await;
    assert_eq!(page.status, 200);
    assert!(page.body.contains("<h1>Hello, world!</h1>"), "{}", page.body);
    journey.expect("/style.css", "h1 { color: red }\n").await;
}

#[tokio::test]
#[ignore = "builds toolchain images, minutes: make test-templates"]
async fn the_sample_dockerfile_runs_behind_the_watchdog() {
    let journey = Journey::new("dockerfile", "debian");
    journey.push().expect("", "Hello, world!\n").await;
    let answer = journey.cloud.send("POST", "demo.localhost", "/hello", &[], "Ada").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "Hello, Ada!\n"));
}
