//! The table of variables, row by row.

use super::*;

fn config(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::from_lookup(|name| {
        variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    })
}

fn streaming(variables: &[(&str, &str)]) -> Config {
    let mut all = vec![("fprocess", "cat")];
    all.extend_from_slice(variables);
    config(&all).unwrap()
}

#[test]
fn defaults_are_those_of_the_table() {
    let config = streaming(&[]);
    let thirty = Duration::from_secs(30);
    assert_eq!(config.mode.name(), "streaming");
    assert_eq!(config.port, 8080);
    assert_eq!(config.read_timeout, Some(thirty));
    assert_eq!(config.write_timeout, Some(thirty));
    assert_eq!(config.exec_timeout, Some(thirty));
    assert_eq!(config.healthcheck_interval, thirty);
    assert_eq!(config.content_type, "application/octet-stream");
    assert_eq!(config.max_inflight, None);
    assert!(!config.buffer_request);
    assert!(config.prefix_logs);
    assert_eq!(config.line_limit, Some(65536));
    assert!(!config.log_call_id);
    assert_eq!(config.ready_path, None);
    assert_eq!(config.lock_file, Some(PathBuf::from("/tmp/.lock")));
}

#[test]
fn function_process_wins_over_fprocess() {
    let config = config(&[("fprocess", "a"), ("function_process", "b c")]).unwrap();
    assert_eq!(config.mode.command().unwrap().text, "b c");
}

#[test]
fn http_upstream_url_wins_over_upstream_url() {
    let config = config(&[
        ("fprocess", "a"),
        ("mode", "http"),
        ("upstream_url", "http://127.0.0.1:1"),
        ("http_upstream_url", "http://127.0.0.1:2/base/"),
    ])
    .unwrap();
    let Mode::Http { upstream, .. } = config.mode else { panic!("not http") };
    assert_eq!((upstream.host.as_str(), upstream.port), ("127.0.0.1", 2));
    assert_eq!(upstream.prefix, "/base");
}

#[test]
fn an_upstream_is_an_address_or_a_name_over_http() {
    let check = |text, host: &str, port| {
        let parsed = UpstreamAddress::parse(text).unwrap();
        assert_eq!((parsed.host.as_str(), parsed.port), (host, port));
    };
    check("http://localhost:3000", "localhost", 3000);
    check("http://[::1]:5", "[::1]", 5);
    check("http://function.example", "function.example", 80);
    for text in ["https://127.0.0.1", "127.0.0.1:3000", "http://", "http://a?b"] {
        assert!(UpstreamAddress::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_missing_process_is_refused_except_in_static_mode() {
    assert_eq!(config(&[]), Err(ConfigError::MissingProcess));
    for mode in ["serializing", "streaming", "http", "classic"] {
        assert_eq!(config(&[("mode", mode)]), Err(ConfigError::MissingProcess), "{mode}");
    }
    let Mode::Static { root } = config(&[("mode", "static")]).unwrap().mode else {
        panic!("not static")
    };
    assert_eq!(root, PathBuf::from("/home/app/public"));
}

#[test]
fn a_missing_upstream_is_refused() {
    assert_eq!(config(&[("fprocess", "a"), ("mode", "http")]), Err(ConfigError::MissingUpstream));
}

#[test]
fn unknown_modes_and_removed_ones_are_refused() {
    for mode in ["afterburn", "HTTP", "x"] {
        assert_eq!(
            config(&[("fprocess", "a"), ("mode", mode)]),
            Err(ConfigError::UnknownMode(mode.to_owned()))
        );
    }
}

#[test]
fn a_mode_with_the_handler_compiled_in_needs_neither_process_nor_upstream() {
    assert_eq!(config(&[("mode", "inproc")]).unwrap().mode, Mode::InProcess);
}

#[test]
fn traces_go_nowhere_unless_a_collector_is_named_and_carry_the_functions_name() {
    assert_eq!(streaming(&[]).traces, None);
    let endpoint = ("updraft_traces_endpoint", "http://collector:4318/otlp/v1/traces");
    let service = |more: &[(&str, &str)]| {
        let traces = streaming(&[&[endpoint], more].concat()).traces.unwrap();
        assert_eq!(
            (traces.collector.port, traces.collector.prefix.as_str()),
            (4318, "/otlp/v1/traces")
        );
        traces.service
    };
    assert_eq!(service(&[]), "function");
    let named = [("OPENFAAS_NAME", "env"), ("OPENFAAS_NAMESPACE", "dev")];
    assert_eq!(service(&named), "env.dev");
    assert_eq!(service(&[("OTEL_SERVICE_NAME", "mine"), named[0]]), "mine");
    let error = config(&[("fprocess", "a"), ("updraft_traces_endpoint", "collector")]);
    assert!(matches!(error, Err(ConfigError::BadCollector { .. })), "{error:?}");
}

#[test]
fn a_zero_write_timeout_is_refused() {
    let error = config(&[("fprocess", "a"), ("write_timeout", "0")]).unwrap_err();
    assert!(error.to_string().starts_with("HTTP write timeout must be over 0s"));
}

#[test]
fn a_zero_exec_timeout_means_no_limit() {
    assert_eq!(streaming(&[("exec_timeout", "0s")]).exec_timeout, None);
}

#[test]
fn the_health_check_interval_follows_the_write_timeout() {
    let config = streaming(&[("write_timeout", "15s")]);
    assert_eq!(config.healthcheck_interval, Duration::from_secs(15));
    let config = streaming(&[("write_timeout", "15s"), ("healthcheck_interval", "0")]);
    assert_eq!(config.healthcheck_interval, Duration::ZERO);
}

#[test]
fn unparsable_integers_are_zero_and_an_unparsable_line_length_is_refused() {
    assert_eq!(streaming(&[("port", "x")]).port, 0);
    assert_eq!(streaming(&[("max_inflight", "x")]).max_inflight, None);
    assert_eq!(streaming(&[("max_inflight", "-3")]).max_inflight, None);
    assert_eq!(streaming(&[("max_inflight", "3")]).max_inflight, Some(3));
    assert_eq!(
        config(&[("fprocess", "a"), ("log_buffer_size", "x")]),
        Err(ConfigError::BadLineLength("x".to_owned()))
    );
    assert_eq!(streaming(&[("log_buffer_size", "-1")]).line_limit, None);
}

#[test]
fn booleans_are_true_or_1_and_two_of_them_take_every_go_spelling() {
    assert!(streaming(&[("buffer_http", "true")]).buffer_request);
    assert!(streaming(&[("http_buffer_req_body", "1")]).buffer_request);
    assert!(!streaming(&[("buffer_http", "TRUE")]).buffer_request);
    assert!(!streaming(&[("prefix_logs", "F")]).prefix_logs);
    assert!(streaming(&[("prefix_logs", "maybe")]).prefix_logs);
    assert!(streaming(&[("log_callid", "T")]).log_call_id);
    assert!(streaming(&[("log_call_id", "true")]).log_call_id);
    assert!(!streaming(&[("log_callid", "maybe")]).log_call_id);
}

#[test]
fn suppress_lock_means_no_lock_file_and_tmpdir_moves_it() {
    assert_eq!(streaming(&[("suppress_lock", "true")]).lock_file, None);
    assert_eq!(streaming(&[("TMPDIR", "/run/x")]).lock_file, Some(PathBuf::from("/run/x/.lock")));
}

#[test]
fn commands_are_split_on_single_spaces_without_quoting() {
    let command = CommandLine::parse("sh -c 'a  b'");
    assert_eq!(command.program, "sh");
    assert_eq!(command.arguments, ["-c", "'a", "", "b'"]);
}

#[test]
fn quotes_in_a_command_count_when_asked_for() {
    let quoted = ("updraft_quoted_fprocess", "true");
    let command = |text| {
        let config = config(&[("fprocess", text), quoted])?;
        Ok(config.mode.command().unwrap().clone())
    };
    let parsed = command("sh -c 'a  b' \"c d\"").unwrap();
    assert_eq!(parsed.program, "sh");
    assert_eq!(parsed.arguments, ["-c", "a  b", "c d"]);
    assert_eq!(command("sh 'a"), Err(ConfigError::UnbalancedQuotes("sh 'a".to_owned())));
    assert_eq!(command("   "), Err(ConfigError::MissingProcess));
}

#[test]
fn our_own_switches_are_off() {
    let config = streaming(&[]);
    assert!(!config.early_ready && !config.early_sigterm && !config.quiet_drain);
    assert_eq!((config.x_timeout, config.stream_idle_timeout), (true, None));
    assert_eq!(config.metrics_port, Some(8081));
    assert_eq!(config.max_headers, None);
    for (text, expected) in [("1000", Some(1000)), ("0", None), ("10001", None), ("x", None)] {
        assert_eq!(streaming(&[("updraft_max_headers", text)]).max_headers, expected);
    }
    assert_eq!(streaming(&[("metrics_port", "0")]).metrics_port, None);
    let port = super::Config::from_lookup(|name| match name {
        "fprocess" => Some("cat".to_owned()),
        "metrics_port" => Some("x".to_owned()),
        _ => None,
    });
    assert_eq!(port, Err(ConfigError::BadMetricsPort("x".to_owned())));
}

fn jwt(variables: &[(&str, &str)]) -> JwtAuth {
    let mut all =
        vec![("jwt_auth", "true"), ("OPENFAAS_NAME", "env"), ("OPENFAAS_NAMESPACE", "dev")];
    all.extend_from_slice(variables);
    streaming(&all).jwt_auth.unwrap()
}

#[test]
fn jwt_auth_is_off_unless_asked_for_in_any_spelling_of_true() {
    for value in ["true", "1", "T"] {
        for mode in ["streaming", "classic"] {
            let error = config(&[("fprocess", "a"), ("mode", mode), ("jwt_auth", value)]);
            assert_eq!(error, Err(ConfigError::MissingIdentity("OPENFAAS_NAME")));
        }
    }
    assert_eq!(streaming(&[("jwt_auth", "false")]).jwt_auth, None);
    assert_eq!(streaming(&[]).jwt_auth, None);
}

#[test]
fn jwt_auth_asks_the_gateway_or_this_machine_or_who_is_named() {
    assert_eq!(jwt(&[]).authority, "http://gateway.openfaas:8080");
    assert_eq!(jwt(&[("jwt_auth_local", "true")]).authority, "http://127.0.0.1:8000");
    let named = ("jwt_auth_authority", "http://10.0.0.1:8080/");
    assert_eq!(jwt(&[("jwt_auth_local", "1"), named]).authority, "http://10.0.0.1:8080");
    assert!(!jwt(&[]).debug && jwt(&[("jwt_auth_debug", "true")]).debug);
    assert_eq!(jwt(&[("updraft_jwt_refresh", "10s")]).refresh, Duration::from_secs(10));
    for authority in ["https://a", "gateway:8080", "http://", "http://a?b"] {
        let error = config(&[
            ("fprocess", "a"),
            ("jwt_auth", "1"),
            ("OPENFAAS_NAME", "env"),
            ("OPENFAAS_NAMESPACE", "dev"),
            ("jwt_auth_authority", authority),
        ]);
        assert_eq!(error, Err(ConfigError::BadAuthority(authority.to_owned())));
    }
}

#[test]
fn jwt_auth_knows_its_function_by_variables_or_by_the_service_account() {
    assert_eq!(jwt(&[]).function, "dev:env");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("namespace");
    let get = |name: &str| (name == "OPENFAAS_NAME").then(|| "env".to_owned());
    let flag = |name: &str| name == "jwt_auth";
    let missing = JwtAuth::read(&get, &flag, &file);
    assert_eq!(missing, Err(ConfigError::MissingIdentity("OPENFAAS_NAMESPACE")));
    std::fs::write(&file, "prod\n").unwrap();
    assert_eq!(JwtAuth::read(&get, &flag, &file).unwrap().unwrap().function, "prod:env");
}

fn classic(variables: &[(&str, &str)]) -> (Config, Classic) {
    let mut all = vec![("mode", "classic")];
    all.extend_from_slice(variables);
    let config = streaming(&all);
    let Mode::Classic { settings, .. } = config.mode.clone() else { panic!("not classic") };
    (config, settings)
}

#[test]
fn classic_defaults_are_those_of_its_table() {
    let (config, settings) = classic(&[]);
    let thirty = Duration::from_secs(30);
    assert_eq!(config.port, 8080);
    assert_eq!((config.read_timeout, config.write_timeout), (Some(thirty), Some(thirty)));
    assert_eq!((config.exec_timeout, config.healthcheck_interval), (None, thirty));
    assert_eq!(config.max_inflight, None);
    assert_eq!(
        settings,
        Classic {
            combine_output: true,
            cgi_headers: true,
            marshal_request: false,
            write_debug: false,
            debug_headers: false,
            content_type: None,
            all_methods: false,
        }
    );
}

#[test]
fn classic_truth_is_exactly_true() {
    let (_, settings) = classic(&[("marshal_request", "1"), ("write_debug", "TRUE")]);
    assert!(!settings.marshal_request && !settings.write_debug);
    let (_, settings) = classic(&[("combine_output", "1"), ("cgi_headers", "true")]);
    assert!(!settings.combine_output && settings.cgi_headers);
    assert!(classic(&[("suppress_lock", "1")]).0.lock_file.is_some());
    assert!(classic(&[("suppress_lock", "true")]).0.lock_file.is_none());
}

#[test]
fn classic_integers_that_make_no_sense_are_the_default() {
    for text in ["x", "-1"] {
        let (config, _) = classic(&[("port", text), ("max_inflight", text)]);
        assert_eq!((config.port, config.max_inflight), (8080, None));
    }
}

#[test]
fn variables_of_the_classic_watchdog_change_nothing_in_other_modes() {
    let variables =
        ["write_debug", "read_debug", "combine_output", "cgi_headers", "marshal_request"]
            .map(|name| (name, "true"));
    assert_eq!(streaming(&variables), streaming(&[]));
}

#[test]
fn every_variable_that_is_read_is_in_the_guide() {
    const GUIDE: &str = include_str!("../../../docs/watchdog.md");
    let names = std::cell::RefCell::new(std::collections::BTreeSet::new());
    for mode in ["http", "streaming", "serializing", "classic", "static", "inproc"] {
        let config = Config::from_lookup(|name| {
            names.borrow_mut().insert(name.to_owned());
            let value = match name {
                "mode" => mode,
                "fprocess" => "cat",
                "upstream_url" => "http://127.0.0.1:1",
                "jwt_auth" => "true",
                "updraft_traces_endpoint" => "http://collector:4318",
                "OPENFAAS_NAME" => "env",
                "OPENFAAS_NAMESPACE" => "dev",
                _ => return None,
            };
            Some(value.to_owned())
        });
        assert!(config.is_ok(), "{mode}: {config:?}");
    }
    let names = names.into_inner();
    assert!(names.len() > 40, "{names:?}");
    let missing: Vec<_> =
        names.iter().filter(|name| !GUIDE.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
