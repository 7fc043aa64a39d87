//! What is read from text, environment and command line, and what is refused.

use super::*;

fn from_toml(text: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("c.toml");
    std::fs::write(&path, text).expect("write");
    Config::load(Some(&path), &Overrides::default())
}

#[test]
fn errors_name_the_key() {
    for (text, key) in [
        ("[server]\nmax_conections = 3", "server.max_conections"),
        ("modell = \"x\"", "modell"),
        ("[limits]\nsamples = \"many\"", "limits.samples"),
        ("[limits]\nsamples = 0", "limits.samples"),
        ("listen = \"nowhere\"", "listen"),
        ("admin_key = \" \"", "admin_key"),
        ("database_url = \"mysql://x\"", "database_url"),
        ("[artifacts]\nurl = \"/srv/models\"", "artifacts.url"),
        ("[artifacts]\naccess_key_id = \"k\"", "artifacts.secret_access_key"),
    ] {
        let e = from_toml(text).expect_err(text);
        assert_eq!(e.key, key, "{text}: {e}");
    }
}

#[test]
fn the_shipped_file_is_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.toml");
    let shipped: Config = Figment::from(Toml::file_exact(path)).extract().expect("config.toml");
    assert_eq!(shipped, Config::default());
}

/// A setting that the list of names forgets could not be set by environment.
#[test]
fn every_setting_can_come_from_the_environment() {
    let everything = Config {
        admin_key: Some("k".into()),
        database_url: Some("d".into()),
        encoder: Some("e".into()),
        ..Config::default()
    };
    let serde_json::Value::Object(keys) = serde_json::to_value(everything).expect("json") else { panic!() };
    for (key, value) in keys {
        let name = if value.is_object() { format!("{key}__x") } else { key };
        assert!(names_setting(&name), "{name}");
    }
    assert!(!names_setting("bin") && !names_setting("require_postgres") && !names_setting("config"));
}

#[test]
fn settings_of_the_cpu_and_of_drafts_are_checked() {
    let refused = |text: &str| from_toml(text).expect_err(text).to_string();
    let draft = refused("[engine]\ndraft_model = \"small\"");
    assert!(draft.contains("engine.draft_model") && draft.contains("engine.draft_tokens"), "{draft}");
    assert!(from_toml("[engine]\ndraft_model = \"small\"\ndraft_tokens = 4").is_ok());
    assert!(from_toml("[engine]\ndevice = \"sim\"\nshare_base = true").is_ok());
    for setting in ["kv_cache = \"q8_0\"", "draft_model = \"small\"\ndraft_tokens = 4"] {
        let message = refused(&format!("[engine]\ndevice = \"sim\"\n{setting}"));
        assert!(message.contains("requires engine.device = \"cpu\""), "{message}");
    }
}

#[test]
fn devices_are_one_name_a_list_or_names_with_commas() {
    for (text, devices) in [
        ("", &["cpu"][..]),
        ("device = \"cuda\"", &["cuda"]),
        ("device = [\"cuda:0\", \"cuda:1\"]", &["cuda:0", "cuda:1"]),
        ("device = \"cuda:0, cuda:1\"", &["cuda:0", "cuda:1"]),
    ] {
        let config = from_toml(&format!("[engine]\n{text}")).expect(text);
        assert_eq!(config.engine.device, devices, "{text}");
    }
    // Figment reads a variable with brackets as a list, and others as one value.
    for value in ["cuda:0,cuda:1", "[cuda:0, cuda:1]"] {
        let device: figment::value::Value = value.parse().expect("no value is refused");
        let config: Config = Figment::from(Serialized::defaults(Config::default()))
            .merge(Serialized::default("engine.device", device))
            .extract()
            .expect(value);
        assert_eq!(config.engine.device, ["cuda:0", "cuda:1"], "{value}");
    }
    assert_eq!(from_toml("[engine]\ndevice = 7").expect("a text").engine.device, ["7"], "refused by the engine");
}

#[test]
fn numbers_are_keys_too() {
    let config = from_toml("admin_key = 12345678").expect("loads");
    assert_eq!(config.admin_key.as_deref(), Some("12345678"));
}

#[test]
fn a_short_admin_key_is_for_loopback_only() {
    for open in ["0.0.0.0:8080", "[::]:8080", "192.168.1.7:80"] {
        let e = from_toml(&format!("admin_key = \"fifteen-letters\"\nlisten = \"{open}\"")).expect_err(open);
        assert_eq!(e.key, "admin_key");
        assert!(e.to_string().contains("15 characters") && e.to_string().contains(open), "{e}");
        from_toml(&format!("admin_key = \"sixteen-letters!\"\nlisten = \"{open}\"")).expect("long enough");
    }
    for own in ["127.0.0.1:8080", "[::1]:8080", "[::ffff:127.0.0.1]:80"] {
        from_toml(&format!("admin_key = \"short\"\nlisten = \"{own}\"")).expect("only this machine");
    }
}

#[test]
fn flags_win() {
    let overrides = Overrides { listen: Some("0.0.0.0:9".into()), ..Overrides::default() };
    let config = Config::load(None, &overrides).expect("loads");
    assert_eq!(config.listen, SocketAddr::from(([0, 0, 0, 0], 9)));
}

/// The configuration that deploy/kubernetes gives its servers and workers.
#[test]
fn the_configuration_of_the_manifests_loads() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes/config.yaml");
    let text = std::fs::read_to_string(path).expect("config.yaml");
    let (_, block) = text.split_once("config.toml: |\n").expect("a block of text");
    let lines = block.lines().take_while(|line| line.is_empty() || line.starts_with("    "));
    let toml: String = lines.map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect();
    let config = from_toml(&toml).unwrap_or_else(|e| panic!("{e}\n{toml}"));
    assert!(config.artifacts.url.is_some() && config.require_inference_key && config.server.secure_cookies);
}

#[test]
fn places_of_jobs_come_from_file_and_environment() {
    let text = "[executors]\nkinds = { ppo = 'far' }\n[executors.places.far]\ntype = 'ray'\nurl = 'http://head:8265'\ngpus = 1\n\
                [trainers]\ndpo = ['python3', 'dpo.py', '{job}']";
    let config = from_toml(text).expect("loads");
    assert_eq!(config.executors.place_of("ppo"), Some("far"));
    assert_eq!((config.executors.place_of("sft"), config.executors.places["far"].gpus), (None, Some(1.0)));
    assert_eq!(config.trainers["dpo"].len(), 3);
    let e = from_toml("[executors]\nkinds = { ppo = 'nowhere' }").expect_err("no such place");
    assert_eq!(e.key, "executors.kinds.ppo");
    assert!(names_setting("executors__places__far__token"));
    let e =
        from_toml("[executors.places.far]\ntype = 'ray'\nurl = 'http://head'\ngpu = 1").expect_err("a misspelt field");
    assert!(e.to_string().contains("gpu"), "{e}");
}
