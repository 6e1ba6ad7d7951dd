//! Functions to push that need no base image, so that a test of the pipeline starts in no time.

use crate::Repository;

/// The one static program the fixtures run, from Debian's `busybox-static`.
const BUSYBOX: &str = "/bin/busybox";

/// Writes `stack.yml` from the entries of its `functions:` map.
pub fn stack(repository: &Repository, functions: &[String]) {
    let mut text = String::from("version: 1.0\nprovider:\n  name: openfaas\nfunctions:\n");
    text.extend(functions.iter().map(String::as_str));
    repository.write("stack.yml", text);
}

/// A static site named `name` whose page says `text`; returns its stack entry.
pub fn site(repository: &Repository, name: &str, text: &str) -> String {
    repository.write(&format!("{name}/index.html"), text);
    format!("  {name}:\n    lang: static\n    handler: ./{name}\n    image: {name}:latest\n")
}

/// A compiled binary from a `Dockerfile`, an HTTP server whose page says `text`; returns its
/// stack entry.
pub fn binary(repository: &Repository, name: &str, text: &str) -> String {
    repository
        .copy_program(BUSYBOX, &format!("{name}/busybox"))
        .write(&format!("{name}/www/index.html"), text)
        .write(&format!("{name}/www/_/health"), "OK")
        .write(
            &format!("{name}/Dockerfile"),
            "FROM scratch\n\
             COPY busybox /busybox\n\
             COPY www /www\n\
             USER 12000\n\
             EXPOSE 8080\n\
             CMD [\"/busybox\", \"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n",
        );
    format!("  {name}:\n    lang: dockerfile\n    handler: ./{name}\n    image: {name}:latest\n")
}
