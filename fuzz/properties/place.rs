/// What must hold of a place, whatever names and namespaces a client sends.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.splitn(3, '\n');
    let name = lines.next().unwrap_or("");
    let (body, query) = (lines.next(), lines.next());
    let given = [body, query].into_iter().flatten().find(|text| !text.is_empty());
    if let Ok(namespace) = place::namespace(body, query) {
        assert_eq!(namespace.as_str(), given.unwrap_or("openfaas-fn"), "the body's comes first");
    }
    if let Ok(id) = place::function(name, body, query) {
        let shown = id.to_string();
        let meant = shown == name || shown == format!("{name}.{}", given.unwrap_or("openfaas-fn"));
        assert!(meant, "`{shown}` is not what `{name}` asks for");
        assert_ne!(id.namespace.as_str(), "kube-system");
    }
}
