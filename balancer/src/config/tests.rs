use super::*;

const EXAMPLE_TEXT: &str = include_str!("../../../config/balancer.example.toml");

fn refused(config: &Config) -> String {
    config.check().expect_err("it should be refused").to_string()
}

#[test]
fn the_example_file_shows_every_key_with_its_default() {
    assert_eq!(file::parse(EXAMPLE_TEXT, EXAMPLE), Ok(Config::default()));
    // Whatever is not written there would still equal its default: so look for the keys, too, table by table.
    let full = Config {
        kafka: Some("k".into()),
        redis: Some("r".into()),
        prometheus: Some("p".into()),
        node_id: Some(default_node_id()),
        ..Config::default()
    };
    let mut shown = vec![];
    let mut table = String::new();
    for line in EXAMPLE_TEXT.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            table = format!("{name}.");
        } else if let Some((key, _)) = line.trim_start_matches('#').split_once(" = ") {
            shown.push(format!("{table}{key}"));
        }
    }
    for (key, value) in toml::Table::try_from(&full).unwrap() {
        match value {
            toml::Value::Table(inner) => {
                for inner in inner.keys() {
                    assert!(shown.contains(&format!("{key}.{inner}")), "{key}.{inner} is not in the example");
                }
            }
            _ => assert!(shown.contains(&key), "{key} is not in the example"),
        }
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
        ("seed = 1\nsede = 3\n", 2, "sede"),
        ("policy = \"fair\"", 1, "policy"),
        ("\n[weights]\nkappa = \"much\"", 3, "kappa"),
        ("[weights]\nkind = \"feedback\"", 2, "kind"),
        ("[trigers]\n", 1, "trigers"),
        ("poll_ms = -5", 1, "poll_ms"),
    ] {
        let (found, reason) = file::parse::<Config>(text, EXAMPLE).expect_err(text);
        assert_eq!(found, line, "{reason}");
        assert!(reason.contains(word) && !reason.contains('\n'), "{reason}");
    }
}

#[test]
fn one_threshold_can_be_set_by_name() {
    let config = Config::default().with("weights.kappa=0.4").unwrap();
    assert_eq!(config, Config { weights: PolicyRules { kappa: 0.4, ..PolicyRules::default() }, ..Config::default() });
    assert_eq!(config.with("triggers.cooldown_ms=0").unwrap().triggers.cooldown_ms, 0);
    assert_eq!(config.with("queries.cpu=avg(up)").unwrap().queries.cpu, "avg(up)");
    assert_eq!(config.with("score.cpu=1.0").unwrap().score, ScoreRules { cpu: 1.0, ..ScoreRules::default() });
    for (setting, word) in [
        ("weights.kappa", "no ="),
        ("weights.kapa=1.0", "kapa"),
        ("wieghts.kappa=1.0", "wieghts"),
        ("weights.kappa=much", "invalid type"),
    ] {
        let reason = config.with(setting).unwrap_err().to_string();
        assert!(reason.contains(word) && reason.contains("--set"), "{reason}");
    }
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    let base = Config::default;
    for (config, word) in [
        (Config { listen: ([0, 0, 0, 0], 1).into(), ..base() }, "listen"),
        (Config { prometheus: Some("prom:9090".into()), ..base() }, "prometheus"),
        (Config { redis: Some("localhost".into()), ..base() }, "redis"),
        (Config { seed: u64::MAX, ..base() }, "seed"),
        (Config { poll: Duration::from_secs(3), ..base() }, "poll_ms"),
        (Config { lease: Duration::ZERO, ..base() }, "lease_ms"),
        (Config { vanished_share_max: 1.5, ..base() }, "vanished_share_max"),
        (Config { log: "rtc=loud".into(), ..base() }, "log"),
        (base().with("weights.kappa=-1.0").unwrap(), "weights.kappa"),
        (base().with("weights.kappa=3.0").unwrap(), "weights.kappa"),
        (base().with("weights.dead_band=nan").unwrap(), "weights.dead_band"),
        (base().with("weights.moved_share_max=0.0").unwrap(), "weights.moved_share_max"),
        (base().with("weights.slow_start_steps=0").unwrap(), "weights.slow_start_steps"),
        (base().with("score.epsilon=0.0").unwrap(), "score.epsilon"),
        (base().with("scaling.nodes_min=0").unwrap(), "scaling.nodes_min"),
    ] {
        assert!(refused(&config).contains(word), "{}", refused(&config));
    }
}
