//! What a line of flags becomes, or why it is refused.

use anyhow::Result;

use super::*;
use crate::args::Args;

fn config(line: &str) -> Result<Config> {
    use clap::Parser as _;
    let args = Args::try_parse_from(["rtc-loadtest"].into_iter().chain(line.split_whitespace()))?;
    with_defaults(args)?.try_into()
}

#[test]
fn defaults_are_complete_for_every_scenario() {
    for (line, load) in [
        ("echo", Load::Closed { depth: 1 }),
        ("p2p", Load::Open { per_second: 1000.0 }),
        ("idle", Load::Silent),
        ("storm", Load::Silent),
        ("resume", Load::Open { per_second: 1000.0 }),
        ("churn", Load::Open { per_second: 1000.0 }),
        ("capacity", Load::Open { per_second: 1000.0 }),
    ] {
        let config = config(line).unwrap();
        assert_eq!(config.load, load, "{line}");
        assert_eq!(config.servers[0].addr, "127.0.0.1:8080".parse().unwrap());
    }
}

#[test]
fn bad_values_name_themselves() {
    for (line, named) in [
        ("echo --connections 0", "--connections 0"),
        ("echo --depth 5000", "--depth 5000"),
        ("echo --rate 0", "--rate 0"),
        ("echo --payload 8", "--payload 8"),
        ("p2p --payload 100", "--payload 100"),
        ("p2p --connections 3", "--connections 3"),
        ("p2p --connections 2 --threads 2", "--connections 2"),
        ("idle --rate 5", "--rate means nothing to idle"),
        ("idle --depth 5", "--depth means nothing to idle"),
        ("echo --hold", "--hold means nothing to echo"),
        ("echo --url http://x:1", "http://x:1"),
        ("echo --url ws://127.0.0.1", "no port"),
        ("echo --url wss://127.0.0.1:1", "TLS"),
        ("echo --duration 10", "10"),
        ("echo --duration 1ms", "--duration"),
        ("echo --target p98<1ms", "p98"),
        ("echo --rate 5 --depth 5", "--depth"),
        ("resume --depth 5", "--depth means nothing to resume"),
        ("resume --hop-interval 5s", "--hop-interval means nothing to resume"),
        ("resume --cut-interval 1ms", "--cut-interval"),
        ("resume --sender-acks=false", "--sender-acks"),
        ("churn --connections 3", "--connections 3"),
        ("churn --silent-share 2", "\"2\""),
        ("p2p --silent-share 2%", "--silent-share means nothing to p2p"),
        ("echo --pairs local", "--pairs means nothing to echo"),
        ("echo --balancer http://127.0.0.1:1", "--balancer means nothing to echo"),
        ("p2p --balancer http://127.0.0.1:1 --pairs local", "--pairs and --balancer"),
        ("p2p --balancer ws://127.0.0.1:1", "does not start with http://"),
        ("p2p --balancer http://127.0.0.1", "no port"),
        ("p2p --balancer http://127.0.0.1:1/x", "http://HOST:PORT"),
        ("capacity --depth 5", "--depth means nothing to capacity"),
        ("walk", "walk"),
        ("--connections 5", "scenario"),
    ] {
        let error = format!("{:#}", config(line).expect_err(line));
        assert!(error.contains(named), "{line}: {error}");
    }
}

#[test]
fn a_fault_that_would_show_nothing_is_refused() {
    use clap::Parser as _;
    for (line, named) in [
        (&["p2p", "--fault", "at=1s kill=7"][..], "--sender-acks and --receiver-acks"),
        (&["p2p", "--depth", "1", "--sender-acks", "--receiver-acks", "--fault", "at=1s kill=7"], "--rate"),
        (&["resume", "--duration", "5s", "--fault", "at=5s kill=7"], "after the end"),
        (&["idle", "--fault", "at=1s kill=7"], "--fault means nothing to idle"),
        (&["churn", "--fault", "at=1s kill=0"], "at=1s kill=0"),
    ] {
        let args = Args::try_parse_from([&["rtc-loadtest"], line].concat()).map_err(anyhow::Error::from);
        let config = args.and_then(with_defaults).and_then(Config::try_from);
        let error = format!("{:#}", config.expect_err(named));
        assert!(error.contains(named), "{line:?}: {error}");
    }
}

#[test]
fn pairs_are_placed_as_asked() {
    let crossing = |placement: Placement, servers: usize| {
        let pairs = 0..u32::try_from(servers * servers).unwrap();
        let crosses = |pair: &u32| placement.server_of(2 * pair, servers) != placement.server_of(2 * pair + 1, servers);
        pairs.filter(crosses).count()
    };
    for servers in 2..6 {
        assert_eq!(crossing(Placement::InTurn, servers), servers * servers);
        assert_eq!(crossing(Placement::ByPairs, servers), 0);
        assert_eq!(crossing(Placement::Mixed, servers), servers * (servers - 1));
    }
    assert_eq!(Placement::Mixed.server_of(7, 1), 0);
}

#[test]
fn what_print_config_shows_reads_back_as_the_same_run() {
    use clap::Parser as _;
    let line = ["rtc-loadtest", "p2p", "--rate", "500", "--target", "p99<10ms", "--seed", "7", "--cpus", "1"];
    let args = with_defaults(Args::try_parse_from(line).unwrap()).unwrap();
    let text = toml::to_string(&args).unwrap();
    let again: Args = toml::from_str(&text).unwrap();
    assert_eq!(Config::try_from(again).unwrap(), Config::try_from(args).unwrap());
}

#[test]
fn loopback_sources_grow_with_the_connections() {
    assert_eq!(config("idle --connections 10000").unwrap().sources.len(), 1);
    let many = config("idle --connections 3000000").unwrap().sources;
    assert_eq!(many.len(), 300);
    assert_eq!(many.iter().collect::<std::collections::BTreeSet<_>>().len(), 300);
    assert_eq!(config("resume --connections 1000").unwrap().sources.len(), 4, "with the ports left behind");
}
