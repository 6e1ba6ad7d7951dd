/// What must hold of an alert, whatever a stranger sends.
pub fn check(data: &[u8]) {
    match Alert::parse(data) {
        Ok(alert) => {
            assert!(alert.notices.len() <= 1_000, "notices are bounded");
            assert!(alert.notices.iter().all(|notice| !notice.function.is_empty()));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
