//! Diversity of texts.

use std::collections::BTreeSet;

/// distinct-n (1510.03055): distinct sequences of n words among all of them, over all texts together; 1 where there are
/// none. Words are what white space separates.
pub fn distinct_n<'t>(texts: impl IntoIterator<Item = &'t str>, n: usize) -> f64 {
    let (mut all, mut distinct) = (0usize, BTreeSet::new());
    for text in texts {
        let words: Vec<&str> = text.split_whitespace().collect();
        for gram in words.windows(n.max(1)) {
            all += 1;
            distinct.insert(gram.to_vec());
        }
    }
    if all == 0 { 1.0 } else { distinct.len() as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use super::distinct_n;

    #[test]
    fn repetition_lowers_it() {
        assert_eq!(distinct_n(["a b c", "d"], 1), 1.0);
        assert_eq!(distinct_n(["a a a a"], 1), 0.25);
        // ab, bc and ab again; no pair spans two texts.
        assert_eq!(distinct_n(["a b c", "a b"], 2), 2.0 / 3.0);
        assert_eq!(distinct_n(["", "a"], 2), 1.0);
    }
}
