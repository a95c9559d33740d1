use super::*;

const EXAMPLE_TEXT: &str = include_str!("../../../config/server.example.toml");

fn refused(config: &Config) -> String {
    config.check().expect_err("it should be refused").to_string()
}

#[test]
fn the_example_file_shows_every_key_with_its_default() {
    assert_eq!(file::parse(EXAMPLE_TEXT, EXAMPLE), Ok(Config::default()));
    // Keys without a default stand there as comments.
    let keys: Vec<&str> = EXAMPLE_TEXT
        .lines()
        .filter_map(|line| line.trim_start_matches('#').split_once(" = "))
        .map(|(key, _)| key)
        .collect();
    let full = Config {
        node_id: Some(default_node_id()),
        advertise_url: Some("ws://a".into()),
        zone: Some("z".into()),
        shards: Some(NonZeroUsize::MIN),
        kafka: Some("k".into()),
        redis: Some("r".into()),
        connections_max: Some(1),
        ..Config::default()
    };
    for key in toml::Table::try_from(&full).unwrap().keys() {
        assert!(keys.contains(&key.as_str()), "{key} is not in the example");
    }
}

#[test]
fn what_is_printed_can_be_read_again() {
    let config = Config::load(Args::default()).unwrap();
    assert_eq!(file::parse(&config.to_toml().unwrap(), EXAMPLE), Ok(config));
}

#[test]
fn a_file_that_is_wrong_names_the_line_and_the_key() {
    for (text, line, word) in [
        ("listen = \"127.0.0.1:1\"\nshrads = 3\n", 2, "shrads"),
        ("shards = 0", 1, "shards"),
        ("\n\nshards = \"many\"", 3, "shards"),
        ("ping_interval_ms = \"5s\"", 1, "ping_interval_ms"),
        ("ping_interval_ms = -5", 1, "ping_interval_ms"),
        ("node_id = \"no spaces\"", 1, "node_id"),
        ("listen = \"here\"", 1, "listen"),
        ("log_format = \"xml\"", 1, "log_format"),
        ("echo = 1", 1, "echo"),
        ("echo = ", 1, "echo"),
    ] {
        let (found, reason) = file::parse::<Config>(text, EXAMPLE).expect_err(text);
        assert_eq!(found, line, "{reason}");
        assert!(reason.contains(word) && !reason.contains('\n'), "{reason}");
    }
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    let base = Config::default;
    let public: SocketAddr = ([0, 0, 0, 0], 8080).into();
    for (config, word) in [
        (Config { listen: public, ..base() }, "listen is 0.0.0.0:8080"),
        (Config { admin_listen: public, ..base() }, "--insecure-allow-anonymous"),
        (Config { admin_listen: base().listen, ..base() }, "different ports"),
        (Config { kafka: Some("k:9092".into()), ..base() }, "kafka is given without redis"),
        (Config { redis: Some("redis://r".into()), ..base() }, "redis is given without kafka"),
        (
            Config { kafka: Some("k".into()), redis: Some("r".into()), kafka_options: vec!["x".into()], ..base() },
            "give key=value",
        ),
        (Config { advertise_url: Some("http://a".into()), ..base() }, "advertise_url"),
        (Config { allowed_origins: vec!["app.example.com".into()], ..base() }, "allowed_origins"),
        (Config { log: "rtc_server=loud".into(), ..base() }, "log"),
        (Config { message_bytes_max: 0, ..base() }, "message_bytes_max is 0"),
        (Config { outbox_bytes_max: 1000, ..base() }, "outbox_bytes_max is 1000"),
        (Config { buffer_bytes_max: 1000, ..base() }, "buffer_bytes_max is 1000"),
        (Config { ping_interval: Duration::ZERO, ..base() }, "ping_interval_ms is 0"),
        (Config { publish_wait: Duration::from_secs(3600), ..base() }, "publish_wait_ms is 3600000"),
        (Config { shards: NonZeroUsize::new(4000), ..base() }, "shards is 4000"),
    ] {
        let reason = refused(&config);
        assert!(reason.contains(word), "{reason}");
    }
    assert!(Config { listen: public, insecure_allow_anonymous: true, ..base() }.check().is_ok());
    assert!(Config { listen: "[::1]:8080".parse().unwrap(), ..base() }.check().is_ok());
}

#[test]
fn the_nodes_limits_are_shared_out_among_its_shards() {
    let config = Config { shards: NonZeroUsize::new(4), ..Config::default() };
    let settings = config.settings();
    assert_eq!(settings.store.total_bytes * 4, config.buffer_bytes_max);
    assert_eq!(settings.store.sender_bytes * 4, config.buffer_sender_bytes_max);
    assert_eq!(settings.accepts_per_second * 4, config.accepts_per_second_max);
    assert_eq!(settings.store.recipient_bytes, config.buffer_recipient_bytes_max);
    let many = Config { shards: NonZeroUsize::new(SHARDS_MAX), ..Config::default() }.settings();
    assert!(many.store.sender_bytes > many.message_bytes_max);
}
