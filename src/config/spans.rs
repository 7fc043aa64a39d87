//! Upper limits of durations in settings, by the unit at the end of the setting's name, so that adding a duration to a
//! time never overflows.

use super::{Config, ConfigError, error};

/// (ending of a setting's name, maximum): a year of seconds, ten years of hours, a century of days.
const LONGEST: [(&str, i64); 3] = [("_seconds", 31_536_000), ("_hours", 87_600), ("_days", 36_500)];

/// # Errors
/// When a duration is longer than allowed; the error has the key of the first one.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    let all = serde_json::to_value(config).map_err(|e| error("configuration", e.to_string()))?;
    let sections = all.as_object().into_iter().flatten();
    for (section, name, value) in sections.flat_map(|(section, values)| {
        values.as_object().into_iter().flatten().map(move |(name, value)| (section, name, value))
    }) {
        let Some((_, most)) = LONGEST.iter().find(|(unit, _)| name.ends_with(unit)) else { continue };
        // A number above i64::MAX is not read as one here and is also too long.
        if value.is_u64() && value.as_i64().is_none_or(|value| value > *most) {
            return Err(error(&format!("{section}.{name}"), format!("is {value}; must be at most {most}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_of_a_century_of_seconds_is_refused_by_name() {
        let config = Config::default();
        check(&config).expect("the defaults are short");
        for (name, most) in [("server.write_timeout_seconds", 31_536_000), ("sessions.idle_hours", 87_600)] {
            config.with(name, most.into()).expect("the longest span");
            let refused = config.with(name, (most + 1).into()).expect_err("one more");
            assert_eq!(refused.key, name);
            assert_eq!(config.with(name, i64::MAX.into()).expect_err("the largest number").key, name);
        }
        assert!(config.with("retention.request_days", u32::MAX.into()).is_err());
    }
}
