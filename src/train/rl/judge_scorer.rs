//! Scores of completions by a judge: grades of single completions, or comparisons of the completions of a prompt.

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail, ensure};

use super::services::Completion;
use crate::data::PromptInput;
use crate::objective::Stats;
use crate::objective::judge::{Preference, expected_grade, preference, win_rates};
use crate::train::args::JudgeBy;
use crate::train::judge::{Judge, Question};

/// The grades, worst first.
const GRADES: [&str; 10] = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"];
/// Names of the two answers of a pair, in the order of the question.
const PLACES: [&str; 2] = ["A", "B"];

/// Scores completions by a judge's answers.
pub struct JudgeScorer {
    rubric: String,
    by: JudgeBy,
    /// Maximum number of completions of a prompt that are compared with each other.
    group: usize,
    /// Statistics since the last call of `take_figures`.
    figures: Mutex<Stats>,
}

impl JudgeScorer {
    /// `group` is the number of samples per prompt. More consecutive completions of a prompt form several groups.
    pub fn new(rubric: &str, by: JudgeBy, group: usize) -> Self {
        Self { rubric: rubric.trim().to_owned(), by, group: group.max(2), figures: Mutex::default() }
    }

    /// One score per completion: the expected grade (1 to 10), or the mean probability of being better than another
    /// completion of the prompt (0 to 1). Completions of a prompt must be consecutive. A completion without a grade
    /// gets the lowest, and a pair without an answer counts as a tie.
    ///
    /// # Errors
    /// If the judge answered none of the questions.
    pub fn scores(&self, judge: &dyn Judge, items: &[Completion<'_>]) -> Result<Vec<f64>> {
        match self.by {
            JudgeBy::Grades => self.grades(judge, items),
            JudgeBy::Pairs => self.pairs(judge, items),
        }
    }

    /// Statistics of the answers since the last call: `judge_on_choices` (mean probability on the choices),
    /// `judge_without_answer` (share of grades or pairs), and of pairs `judge_consistency` and `judge_first_place`.
    pub fn take_figures(&self) -> Stats {
        std::mem::take(&mut *self.figures())
    }

    fn figures(&self) -> MutexGuard<'_, Stats> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grades(&self, judge: &dyn Judge, items: &[Completion<'_>]) -> Result<Vec<f64>> {
        let questions: Vec<Question> = items.iter().map(|item| self.grade_question(item)).collect();
        let answers = self.ask(judge, &questions, &GRADES)?;
        let grades: Vec<Option<f64>> = answers.iter().map(|probabilities| expected_grade(probabilities)).collect();
        self.note_missing(&grades)?;
        Ok(grades.into_iter().map(|grade| grade.unwrap_or(1.0)).collect())
    }

    fn pairs(&self, judge: &dyn Judge, items: &[Completion<'_>]) -> Result<Vec<f64>> {
        let of_prompts = items.chunk_by(|a, b| a.prompt == b.prompt);
        let groups: Vec<&[Completion<'_>]> = of_prompts.flat_map(|items| items.chunks(self.group)).collect();
        let preferences = self.preferences(judge, &groups)?;
        let mut wins = preferences.into_iter().map(|found| found.map_or(0.5, |found| found.probability));
        let mut scores = Vec::with_capacity(items.len());
        for group in groups {
            let n = group.len();
            let own: Vec<f64> = wins.by_ref().take(n * (n - 1) / 2).collect();
            scores.extend(win_rates(n, &own));
        }
        Ok(scores)
    }

    /// The preference on each pair (i, j), i < j, of the completions of each group, from questions in both orders; `None`
    /// where the judge gave no answer. The pairs of a group are in the order (0, 1), (0, 2), …, (1, 2), ….
    ///
    /// # Errors
    /// If the judge answered none of the questions.
    pub fn preferences(&self, judge: &dyn Judge, groups: &[&[Completion<'_>]]) -> Result<Vec<Option<Preference>>> {
        let mut questions = Vec::new();
        for group in groups {
            for (i, a) in group.iter().enumerate() {
                for b in &group[i + 1..] {
                    questions.extend([self.pair_question(a, b), self.pair_question(b, a)]);
                }
            }
        }
        let answers = self.ask(judge, &questions, &PLACES)?;
        let of = |probabilities: &[f64]| [probabilities[0], probabilities[1]];
        let preferences: Vec<_> = answers.chunks_exact(2).map(|both| preference(of(&both[0]), of(&both[1]))).collect();
        self.note_missing(&preferences)?;
        {
            let mut figures = self.figures();
            for found in preferences.iter().flatten() {
                figures.add("judge_consistency", found.consistency, 1.0);
                figures.add("judge_first_place", found.first_place, 1.0);
            }
        }
        Ok(preferences)
    }

    fn ask(&self, judge: &dyn Judge, questions: &[Question], choices: &[&str]) -> Result<Vec<Vec<f64>>> {
        if questions.is_empty() {
            return Ok(Vec::new());
        }
        let answers = judge.probabilities(questions, choices)?;
        ensure!(
            answers.len() == questions.len(),
            "the judge returned {} answers to {} questions",
            answers.len(),
            questions.len()
        );
        let mut figures = self.figures();
        for probabilities in &answers {
            ensure!(
                probabilities.len() == choices.len(),
                "the judge returned probabilities of {} choices of {}",
                probabilities.len(),
                choices.len()
            );
            figures.add("judge_on_choices", probabilities.iter().sum(), 1.0);
        }
        Ok(answers)
    }

    fn note_missing<T>(&self, found: &[Option<T>]) -> Result<()> {
        let missing = found.iter().filter(|one| one.is_none()).count();
        if missing > 0 && missing == found.len() {
            bail!(
                "the judge answered none of {missing} questions with one of the choices; use a model that follows them"
            );
        }
        let mut figures = self.figures();
        figures.add("judge_without_answer", missing as f64, found.len() as f64);
        Ok(())
    }

    fn grade_question(&self, item: &Completion<'_>) -> Question {
        let (conversation, reference) = (conversation(item.prompt), reference(item.answer));
        let after = format!(
            "\n{reference}\n## Answer to be graded\n{}\n\n## Grade\nHow good is this answer by the criteria, from 1 \
             (worst) to 10 (best)? Reply with the number alone.",
            item.text
        );
        Question { before: self.before(), conversation, after }
    }

    fn pair_question(&self, a: &Completion<'_>, b: &Completion<'_>) -> Question {
        let (conversation, reference) = (conversation(a.prompt), reference(a.answer));
        let after = format!(
            "\n{reference}\n## Answer A\n{}\n\n## Answer B\n{}\n\n## Decision\nWhich answer is better by the criteria? \
             Reply with A or B alone.",
            a.text, b.text
        );
        Question { before: self.before(), conversation, after }
    }

    fn before(&self) -> String {
        format!("You judge answers of an assistant.\n\n## Criteria\n{}\n\n## Conversation\n", self.rubric)
    }
}

/// The messages with their roles, or a raw text unchanged.
fn conversation(prompt: &PromptInput) -> String {
    match prompt {
        PromptInput::Text(text) => text.clone(),
        PromptInput::Chat(messages) => {
            messages.iter().map(|m| format!("{}: {}", m.role, m.content)).collect::<Vec<_>>().join("\n")
        }
    }
}

fn reference(answer: Option<&str>) -> String {
    answer.map(|answer| format!("\n## Correct answer\n{answer}\n")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Message;

    /// Grades by length, and prefers longer answers, with a bias towards the first position.
    struct ByLength {
        bias: f64,
    }

    impl Judge for ByLength {
        fn probabilities(&self, questions: &[Question], choices: &[&str]) -> Result<Vec<Vec<f64>>> {
            let of = |question: &Question| {
                let part = |name: &str| {
                    let start = question.after.find(name)? + name.len();
                    Some(question.after[start..].split("\n\n##").next()?.trim().len())
                };
                if choices == PLACES {
                    let (a, b) = (part("## Answer A")?, part("## Answer B")?);
                    let first =
                        (0.5 + 0.1 * (a as f64 - b as f64).signum() * f64::from(u8::from(a != b)) + self.bias).min(1.0);
                    return Some(vec![0.5 * first, 0.5 * (1.0 - first)]);
                }
                let length = part("## Answer to be graded")?;
                let mut probabilities = vec![0.0; choices.len()];
                if length > 0 {
                    probabilities[length.min(10) - 1] = 0.25;
                }
                Some(probabilities)
            };
            Ok(questions.iter().map(|question| of(question).expect("a question of this module")).collect())
        }
    }

    fn scores(by: JudgeBy, bias: f64, texts: &[(&PromptInput, &str)]) -> (Result<Vec<f64>>, Stats) {
        let items: Vec<Completion<'_>> =
            texts.iter().map(|(prompt, text)| Completion { prompt, text, answer: None }).collect();
        let judge_scorer = JudgeScorer::new("Longer is better.", by, 3);
        (judge_scorer.scores(&ByLength { bias }, &items), judge_scorer.take_figures())
    }

    #[test]
    fn completions_are_graded_separately() {
        let prompt = PromptInput::Text("q".into());
        let (found, figures) =
            scores(JudgeBy::Grades, 0.0, &[(&prompt, "abc"), (&prompt, ""), (&prompt, "abcdefghijkl")]);
        assert_eq!(found.unwrap(), [3.0, 1.0, 10.0], "without an answer: the lowest grade");
        let mean = |name: &str| figures.mean(name).unwrap();
        assert!((mean("judge_on_choices") - 0.5 / 3.0).abs() < 1e-12);
        assert!((mean("judge_without_answer") - 1.0 / 3.0).abs() < 1e-12);
        let (none, _) = scores(JudgeBy::Grades, 0.0, &[(&prompt, "")]);
        assert!(none.unwrap_err().to_string().contains("none of 1 questions"));
    }

    #[test]
    fn pairs_are_asked_in_both_orders_within_a_prompt() {
        let (one, two) = (PromptInput::Text("q".into()), PromptInput::Text("r".into()));
        let texts = [(&one, "a"), (&one, "abc"), (&one, "a"), (&two, "abcd"), (&two, "ab")];
        for bias in [0.0, 0.05] {
            let (found, figures) = scores(JudgeBy::Pairs, bias, &texts);
            // The longer one wins with 0.6 in either order; the two equal ones tie.
            for (score, expected) in found.unwrap().iter().zip([0.45, 0.6, 0.45, 0.6, 0.4]) {
                assert!((score - expected).abs() < 1e-12, "bias {bias}: {score} {expected}");
            }
            assert!((figures.mean("judge_first_place").unwrap() - 0.5 - bias).abs() < 1e-12);
            let ties = if bias == 0.0 { 0.5 } else { 0.0 };
            assert!((figures.mean("judge_consistency").unwrap() - (3.0 + ties) / 4.0).abs() < 1e-12);
        }
        // With a bias that is stronger than every difference, the two orders contradict each other.
        let (_, figures) = scores(JudgeBy::Pairs, 0.4, &texts[3..]);
        assert_eq!(figures.mean("judge_consistency"), Some(0.0));
        // Six completions of one prompt are two groups of three.
        let six = [(&one, "a"), (&one, "ab"), (&one, "abc"), (&one, "abcd"), (&one, "abcde"), (&one, "abcdef")];
        let (found, _) = scores(JudgeBy::Pairs, 0.0, &six);
        for (score, expected) in found.unwrap().iter().zip([0.4, 0.5, 0.6, 0.4, 0.5, 0.6]) {
            assert!((score - expected).abs() < 1e-12, "{score} {expected}");
        }
        assert_eq!(scores(JudgeBy::Pairs, 0.0, &texts[..1]).0.unwrap(), [0.5], "there is nothing to compare with");
    }

    #[test]
    fn questions_contain_the_conversation_the_reference_and_the_answers() {
        let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
        let prompt =
            PromptInput::Chat(vec![message("user", "2 + 2?"), message("assistant", "5"), message("user", "Sure?")]);
        let item = |text| Completion { prompt: &prompt, text, answer: Some("4") };
        let judge_scorer = JudgeScorer::new(" Be right. ", JudgeBy::Grades, 1);
        let text = judge_scorer.grade_question(&item("It is 4.")).text();
        for part in ["Be right.\n", "user: 2 + 2?\nassistant: 5\nuser: Sure?\n", "## Correct answer\n4\n", "It is 4.\n"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        let pair = judge_scorer.pair_question(&item("first"), &item("second")).text();
        assert!(pair.contains("## Answer A\nfirst\n\n## Answer B\nsecond\n"), "{pair}");
    }
}
