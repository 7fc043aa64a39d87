//! Prompt-lookup decoding: drafts the next tokens of a text from an earlier occurrence of its last tokens. A drafted
//! token costs one row of a step; if the sampler draws it, it saves a step. Drafts do not change which tokens are
//! drawn.

/// Longest and shortest n-gram of last tokens that is searched for.
const LONGEST: usize = 3;
const SHORTEST: usize = 2;

/// Up to `limit` tokens that followed the latest earlier occurrence of the last tokens. Past the end of the text the
/// draft itself is continued, so that a repetition goes on.
pub fn draft(tokens: &[u32], limit: usize) -> Vec<u32> {
    if limit == 0 {
        return Vec::new();
    }
    for n in (SHORTEST..=LONGEST).rev() {
        let Some(before) = tokens.len().checked_sub(n) else { continue };
        let last = &tokens[before..];
        let Some(at) = (0..before).rev().find(|at| tokens[*at..at + n] == *last) else { continue };
        let mut draft: Vec<u32> = Vec::with_capacity(limit);
        for i in at + n..at + n + limit {
            // Past the end of the text, the draft follows it.
            let next = tokens.get(i).copied().unwrap_or_else(|| draft[i - tokens.len()]);
            draft.push(next);
        }
        return draft;
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_occurrence_of_the_longest_n_gram_is_continued() {
        assert_eq!(draft(&[1, 2, 3, 9, 8, 7, 1, 2, 3], 2), [9, 8]);
        // The latest of two occurrences.
        assert_eq!(draft(&[1, 2, 5, 1, 2, 6, 1, 2], 1), [6]);
        // A longer n-gram is preferred to a later shorter one.
        assert_eq!(draft(&[4, 1, 2, 5, 0, 1, 2, 6, 4, 1, 2], 1), [5]);
        assert_eq!(draft(&[1, 2, 3, 4], 4), [0u32; 0], "no n-gram occurs twice");
        assert_eq!(draft(&[1], 4), [0u32; 0]);
        assert_eq!(draft(&[1, 2, 1, 2], 0), [0u32; 0]);
        // Repetitions continue past the end of the text.
        assert_eq!(draft(&[7, 7, 7, 7], 5), [7; 5]);
        assert_eq!(draft(&[1, 2, 3, 1, 2, 3, 1, 2], 5), [3, 1, 2, 3, 1]);
    }
}
