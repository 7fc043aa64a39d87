//! Variables of the environment that are meant as settings, and are not.

use crate::config::{Config, names_setting};
use crate::domain::nearest;

/// Variables of the environment that look like misspelt settings, with the settings that they may mean. Names without
/// a similar setting belong to other programs.
pub(super) fn misspelt(variables: impl Iterator<Item = String>) -> Vec<(String, String)> {
    let all = serde_json::to_value(Config::default()).unwrap_or_default();
    let is_section = |name: &str| all[name].is_object();
    let names: Vec<&String> = all.as_object().into_iter().flatten().map(|(name, _)| name).collect();
    let alike = |name: &str, section: bool| {
        let known = names.iter().map(|known| known.as_str()).filter(|known| is_section(known) == section);
        nearest(name, known).first().map(|found| found.to_ascii_uppercase())
    };
    let mut found: Vec<(String, String)> = variables
        .filter_map(|name| {
            let key = name.strip_prefix("INSTRUCTD_")?;
            if names_setting(key) {
                return None;
            }
            let lower = key.to_ascii_lowercase();
            let meant = match lower.split_once("__") {
                Some((section, setting)) => format!("{}__{}", alike(section, true)?, setting.to_ascii_uppercase()),
                None => alike(&lower, false)?,
            };
            Some((name.clone(), format!("INSTRUCTD_{meant}")))
        })
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_settings_are_found_and_other_names_are_not() {
        let names = [
            "INSTRUCTD_LISTN",
            "INSTRUCTD_LABELLING__OVERLAP",
            "INSTRUCTD_REQUIRE_INFERENC_KEY",
            "PATH",
            "INSTRUCTD_LISTEN",
            "INSTRUCTD_LABELING__OVERLAP",
            "INSTRUCTD_BIN",
            "INSTRUCTD_TEST_DEVICE",
        ];
        let found = misspelt(names.into_iter().map(str::to_owned));
        let expected = [
            ("INSTRUCTD_LABELLING__OVERLAP", "INSTRUCTD_LABELING__OVERLAP"),
            ("INSTRUCTD_LISTN", "INSTRUCTD_LISTEN"),
            ("INSTRUCTD_REQUIRE_INFERENC_KEY", "INSTRUCTD_REQUIRE_INFERENCE_KEY"),
        ];
        assert_eq!(found, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }
}
