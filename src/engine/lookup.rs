//! Guesses of what comes next in a text, looked up in the text itself (prompt-lookup decoding): where its last tokens
//! stood before, it may go on as it did there. A guess costs a row of a step; a right one saves a step. Which tokens are
//! drawn does not depend on guesses.

/// Longest and shortest run of last tokens that is looked for.
const LONGEST: usize = 3;
const SHORTEST: usize = 2;

/// Up to `most` tokens that followed the latest earlier place of the last ones; a repetition is carried on.
pub fn continued(tokens: &[u32], most: usize) -> Vec<u32> {
    if most == 0 {
        return Vec::new();
    }
    for n in (SHORTEST..=LONGEST).rev() {
        let Some(before) = tokens.len().checked_sub(n) else { continue };
        let last = &tokens[before..];
        let Some(at) = (0..before).rev().find(|at| tokens[*at..at + n] == *last) else { continue };
        let mut draft: Vec<u32> = Vec::with_capacity(most);
        for i in at + n..at + n + most {
            // Behind the text's end its own continuation is read.
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
    fn the_latest_place_of_the_longest_run_goes_on() {
        assert_eq!(continued(&[1, 2, 3, 9, 8, 7, 1, 2, 3], 2), [9, 8]);
        // The latest of two places.
        assert_eq!(continued(&[1, 2, 5, 1, 2, 6, 1, 2], 1), [6]);
        // A longer run goes before a later shorter one.
        assert_eq!(continued(&[4, 1, 2, 5, 0, 1, 2, 6, 4, 1, 2], 1), [5]);
        assert_eq!(continued(&[1, 2, 3, 4], 4), [0u32; 0], "nothing stood before");
        assert_eq!(continued(&[1], 4), [0u32; 0]);
        assert_eq!(continued(&[1, 2, 1, 2], 0), [0u32; 0]);
        // Repetitions go on beyond the text.
        assert_eq!(continued(&[7, 7, 7, 7], 5), [7; 5]);
        assert_eq!(continued(&[1, 2, 3, 1, 2, 3, 1, 2], 5), [3, 1, 2, 3, 1]);
    }
}
