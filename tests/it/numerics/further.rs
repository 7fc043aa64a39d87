//! Models in other shapes than the fixtures', made by tests/fixtures/make_more_families.py: where
//! `INSTRUCTD_TEST_FAMILIES` names their directory.

use candle_core::Device;
use instructd::model::load;

use super::models::{cached_steps_equal_the_full_forward, decoder_matches, encoder_matches, greedy_tokens_are};
use crate::support::further_models;

#[test]
fn further_models_match_transformers() {
    let mut different = Vec::new();
    for path in further_models() {
        let name = path.to_str().unwrap();
        let encoder = load(&path, &Device::Cpu).unwrap().config.is_encoder();
        let checks: &[fn(&str)] = match encoder {
            true => &[encoder_matches],
            false => &[decoder_matches, greedy_tokens_are, cached_steps_equal_the_full_forward],
        };
        for check in checks {
            if std::panic::catch_unwind(|| check(name)).is_err() {
                different.push(name.to_owned());
            }
        }
    }
    assert!(different.is_empty(), "{different:?}");
}
