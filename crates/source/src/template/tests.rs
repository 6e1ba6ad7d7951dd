//! Every embedded template is whole, and names are found as people write them.

use super::*;

fn templates() -> Templates {
    Templates::new(Bytes::from_static(b"watchdog"), false)
}

fn nowhere() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn files(template: &Template) -> Vec<String> {
    let Origin::Embedded(folder) = template.origin else { panic!("not embedded") };
    let mut names = Vec::new();
    each_file(folder, "", &mut |path, _, _| names.push(path.to_owned()));
    names
}

#[test]
fn the_languages_are_all_here_and_whole() {
    let templates = templates();
    let names: Vec<&str> = templates.all().iter().map(|template| template.name.as_str()).collect();
    assert_eq!(names, ["dockerfile", "go", "node", "python", "rust", "shell", "static"]);
    for template in templates.all() {
        let name = &template.name;
        assert!(!template.description.is_empty(), "{name}");
        assert!(!template.sample().is_empty(), "{name}");
        assert!(template.process.is_none(), "{name}: the image says what to run");
        if template.is_dockerfile() {
            assert_eq!(template.handler_folder, "");
            continue;
        }
        assert_eq!(template.handler_folder, "function", "{name}");
        assert!(files(template).iter().any(|file| file == "Dockerfile"), "{name}");
        assert!(!template.welcome.is_empty(), "{name}");
    }
}

#[test]
fn every_template_keeps_the_conventions_of_images() {
    for template in templates().all().iter().filter(|template| !template.is_dockerfile()) {
        let Origin::Embedded(folder) = template.origin else { panic!("not embedded") };
        let file = folder.get_file(folder.path().join("Dockerfile")).unwrap();
        let text = file.contents_utf8().unwrap();
        let name = &template.name;
        let last = text.rsplit("\nFROM ").next().unwrap();
        for part in ["COPY fwatchdog /usr/bin/fwatchdog", "USER app\n", "EXPOSE 8080\n", "mode=\""]
        {
            assert!(last.contains(part), "{name}: {part}");
        }
        assert!(
            last.lines().any(|line| line.starts_with("CMD [") && line.ends_with("fwatchdog\"]")),
            "{name}"
        );
        let bases: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("FROM localhost/updraft/"))
            .map(|line| line.split(' ').next().unwrap_or(line))
            .collect();
        assert_eq!(bases, template.bases, "{name}");
        let foreign = text
            .lines()
            .filter_map(|line| line.strip_prefix("FROM "))
            .find(|from| !from.starts_with("localhost/updraft/") && *from != "scratch");
        assert_eq!(foreign, None, "{name}");
    }
}

#[test]
fn no_two_templates_share_a_name_or_alias() {
    let templates = templates();
    let mut seen = std::collections::BTreeSet::new();
    for template in templates.all() {
        for name in std::iter::once(&template.name).chain(&template.aliases) {
            assert!(seen.insert(name.clone()), "{name} twice");
            assert_eq!(name.to_lowercase(), *name);
        }
    }
}

#[test]
fn names_of_openfaas_templates_are_found() {
    let (templates, checkout) = (templates(), nowhere());
    let check = |lang: &str, name: &str| {
        assert_eq!(templates.find(checkout.path(), lang).unwrap().name, name, "{lang}");
    };
    check("python", "python");
    check("python3-http", "python");
    check("Python3-HTTP-Debian", "python");
    check("python3-http@main", "python");
    check("node22", "node");
    check("golang-middleware", "go");
    check("bash-streaming", "shell");
    check("html", "static");
    check("Dockerfile", "dockerfile");
}

#[test]
fn an_unknown_template_names_the_nearest_and_all_there_are() {
    let error = templates().find(nowhere().path(), "pyton3").unwrap_err().to_string();
    assert!(error.contains("unknown template `pyton3`"), "{error}");
    assert!(error.contains("did you mean `python3`?"), "{error}");
    assert!(error.contains("dockerfile, go, node, python, rust, shell, static"), "{error}");
    let error = templates().find(nowhere().path(), "../../etc").unwrap_err().to_string();
    assert!(!error.contains("did you mean"), "{error}");
}

#[test]
fn a_repositorys_own_template_counts_only_where_allowed() {
    let checkout = nowhere();
    let own = checkout.path().join("template/mine");
    std::fs::create_dir_all(&own).unwrap();
    std::fs::write(own.join("template.yml"), "fprocess: ./run\nhandler_folder: app\n").unwrap();
    let refused = templates().find(checkout.path(), "mine").unwrap_err().to_string();
    assert!(refused.contains("not used on this platform"), "{refused}");
    let allowing = Templates::new(Bytes::new(), true);
    let found = allowing.find(checkout.path(), "mine").unwrap();
    assert_eq!((found.handler_folder.as_str(), found.process.as_deref()), ("app", Some("./run")));
    assert_eq!(allowing.find(checkout.path(), "python").unwrap().name, "python");
}

#[test]
fn a_repositorys_own_template_cannot_be_a_link_out_of_it() {
    let (checkout, outside) = (nowhere(), nowhere());
    std::fs::write(outside.path().join("template.yml"), "").unwrap();
    std::fs::create_dir(checkout.path().join("template")).unwrap();
    std::os::unix::fs::symlink(outside.path(), checkout.path().join("template/mine")).unwrap();
    let error = Templates::new(Bytes::new(), true).find(checkout.path(), "mine").unwrap_err();
    assert!(matches!(error, TemplateError::Open { cause: OpenError::Link(_), .. }), "{error}");
}

#[test]
fn a_template_whose_handler_folder_goes_upwards_is_refused() {
    let checkout = nowhere();
    let own = checkout.path().join("template/mine");
    std::fs::create_dir_all(&own).unwrap();
    std::fs::write(own.join("template.yml"), "handler_folder: ../../out\n").unwrap();
    let error = Templates::new(Bytes::new(), true).find(checkout.path(), "mine").unwrap_err();
    assert!(error.to_string().starts_with("template/mine/template.yml:1:17"), "{error}");
}

#[test]
fn the_sample_of_rust_checks_without_the_platform() {
    let templates = templates();
    let sample = templates.embedded("rust").unwrap().sample();
    let paths: Vec<&str> = sample.iter().map(|file| file.path.as_str()).collect();
    for path in ["Cargo.toml", "src/lib.rs", "updraft/Cargo.toml", "updraft/src/lib.rs"] {
        assert!(paths.contains(&path), "{path}");
    }
}

#[test]
fn the_shell_sample_is_executable() {
    let templates = templates();
    let sample = templates.embedded("bash").unwrap().sample();
    assert!(sample.iter().any(|file| file.path == "handler" && file.executable));
}
