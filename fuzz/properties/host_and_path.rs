/// What must hold of a host, a root and a path, whatever a stranger sends.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.splitn(3, '\n');
    let (host, root, path) =
        (lines.next().unwrap_or(""), lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let root = Root::new(root).unwrap_or_else(|_| Root::new("example.test").expect("a domain"));
    let Ok(host) = Host::parse(host) else { return };
    if let Host::Name(name) = &host {
        assert!(!name.is_empty() && !name.starts_with('.') && !name.ends_with('.'));
        assert_eq!(Host::parse(name), Ok(host.clone()), "a host is read back as itself");
    }
    let site = Site::of(&host, &root);
    if let Site::Owner(owner) = site {
        let Host::Name(name) = &host else { panic!("an address belongs to no owner") };
        assert_eq!(**name, format!("{owner}.{}", root.as_str()), "no host reaches another owner");
    }
    let path = format!("/{}", path.trim_start_matches('/'));
    match Place::of(site, &path) {
        Place::Owned { owner, function, rest } => {
            assert_eq!(site, Site::Owner(owner));
            assert!(!function.is_empty() && !function.contains('/'));
            assert!(rest.is_empty() || rest.starts_with('/'));
            assert_eq!(path, format!("/{function}{rest}"), "nothing of a path is lost");
        }
        Place::Function { name, rest } => {
            assert!(matches!(site, Site::Gateway | Site::Loopback));
            assert!(!name.is_empty() && !name.contains('/'));
            assert_eq!(path, format!("/function/{name}{rest}"), "nothing of a path is lost");
        }
        Place::Health => assert_eq!(path, "/healthz"),
        Place::System => assert!(matches!(site, Site::System | Site::Loopback)),
        Place::Gateway => assert!(matches!(site, Site::Gateway | Site::Loopback)),
        Place::OwnerRoot => assert!(matches!(site, Site::Owner(_))),
        Place::Preview => assert_eq!(site, Site::Preview),
        Place::Unknown => assert_eq!(site, Site::Unknown),
    }
}
