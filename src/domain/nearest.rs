//! Suggestions for misspelt names, and the message about an unknown name.

/// More names than these are counted, not listed.
const LISTED: usize = 24;

/// Up to three of the known names that are most similar to `name`, the nearest first.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    // Distances of long texts take time, and such texts are not misspelt names.
    let wanted: Vec<char> = name.to_lowercase().chars().take(80).collect();
    let most = (wanted.len() / 3).max(2);
    let mut found: Vec<(usize, &str)> = Vec::new();
    for candidate in known {
        let other: Vec<char> = candidate.to_lowercase().chars().take(80).collect();
        let contains = |long: &[char], short: &[char]| {
            short.len() >= 3 && short.len() < long.len() && long.windows(short.len()).any(|part| part == short)
        };
        let part = contains(&other, &wanted) || contains(&wanted, &other);
        let far = distance(&wanted, &other);
        let far = if part { far.min(most) } else { far };
        // A short name needs fewer changes than it has letters to be similar.
        if far <= most && (part || far < other.len().max(wanted.len())) {
            found.push((far, candidate));
        }
    }
    found.sort_by_key(|(far, _)| *far);
    found.into_iter().map(|(_, candidate)| candidate).take(3).collect()
}

/// Insertions, deletions, replacements and exchanges of neighbours between two words.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for (j, y) in b.iter().enumerate() {
            let mut best = (last[j] + usize::from(x != y)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or_default()
}

/// `there is no model 'buildin'; did you mean 'builtin'? There are builtin, gpt2`.
pub fn unknown_name(what: &str, name: &str, known: &[&str]) -> String {
    let near = nearest(name, known.iter().copied());
    let meant = match near.as_slice() {
        [] => String::new(),
        near => format!("; did you mean '{}'?", near.join("' or '")),
    };
    let listed = known.iter().take(LISTED).copied().collect::<Vec<_>>().join(", ");
    let more = known.len().saturating_sub(LISTED);
    let there = match (known, more) {
        ([], _) => "and none of its kind yet".to_owned(),
        ([_], _) => format!("there is {listed}"),
        (_, 0) => format!("there are {listed}"),
        (_, more) => format!("there are {listed} and {more} more"),
    };
    if meant.is_empty() {
        let between = if known.is_empty() { ", " } else { "; " };
        return format!("there is no {what} '{name}'{between}{there}");
    }
    let mut there = there;
    if let Some(first) = there.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    format!("there is no {what} '{name}'{meant} {there}")
}

/// Adds similar names to serde's message about an unknown field or variant: `unknown field `a`, expected one of …`. Other
/// messages stay as they are.
pub fn with_nearest(message: String) -> String {
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let Some((name, known)) = names.split_first().filter(|_| message.starts_with("unknown ")) else { return message };
    let near = nearest(name, known.iter().copied());
    match (message.split_once(", expected"), near.as_slice()) {
        (Some((what, expected)), [_, ..]) => {
            format!("{what}; did you mean `{}`? expected{expected}", near.join("` or `"))
        }
        _ => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_names_are_found() {
        let known = ["builtin", "smollm2-135m-instruct", "my-policy-sft", "gpt2"];
        let near = |name| nearest(name, known);
        assert_eq!(near("buildin"), ["builtin"]);
        assert_eq!(near("smollm2-135m"), ["smollm2-135m-instruct"]);
        assert_eq!(near("my_policy_sft"), ["my-policy-sft"]);
        assert_eq!(near("gtp2"), ["gpt2"]);
        assert_eq!(near("nobody"), [""; 0]);
        assert_eq!(nearest("x", ["y", "z"]), [""; 0], "nothing in common");
        assert_eq!(nearest(&"x".repeat(1 << 20), known), [""; 0]);
    }

    #[test]
    fn the_message_has_what_there_is() {
        assert_eq!(
            unknown_name("model", "buildin", &["builtin", "gpt2"]),
            "there is no model 'buildin'; did you mean 'builtin'? There are builtin, gpt2"
        );
        assert_eq!(unknown_name("model", "nobody", &["builtin"]), "there is no model 'nobody'; there is builtin");
        assert_eq!(unknown_name("model", "a", &[]), "there is no model 'a', and none of its kind yet");
        let many: Vec<String> = (0..30).map(|i| format!("model-number-{i}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(unknown_name("model", "qqq", &many).ends_with("and 6 more"));
    }
}
