//! Comparison sets: what labelers rank.

use std::collections::HashMap;

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Sets;
use crate::store::*;

impl Sets<'_> {
    /// Stores a set with its completions.
    pub async fn put(self, set: ComparisonSet) -> Result<()> {
        write!(self.0, |tx| sets::put(tx, &set))
    }

    /// One set. `NotFound` when there is none with this id.
    pub async fn get(self, id: &SetId) -> Result<ComparisonSet> {
        read!(self.0, |c| sets::get(c, id))
    }

    /// A page of sets, newest first, optionally in one state.
    pub async fn list(self, page: Page, status: Option<SetStatus>) -> Result<Vec<ComparisonSet>> {
        read!(self.0, |c| sets::list(c, &page, status, None))
    }

    /// Takes a set out of the queue.
    pub async fn retire(self, id: &SetId) -> Result<()> {
        write!(self.0, id = id.clone() => |tx| sets::retire(tx, &id))
    }

    /// Expected tiers of a gold set, by completion.
    pub async fn put_gold(self, set_id: &SetId, tiers: &[(CompletionId, i64)]) -> Result<()> {
        write!(self.0, set_id = set_id.clone(), tiers = tiers.to_vec() => |tx| sets::put_gold(tx, &set_id, &tiers))
    }

    /// Expected tiers of a set with a known answer, by completion; empty for others.
    pub async fn gold(self, set_id: &SetId) -> Result<Vec<(CompletionId, i64)>> {
        read!(self.0, |c| sets::get_gold(c, set_id))
    }

    /// Makes a set one with a known answer, for everybody to judge; the explanation is shown after a judgment of a
    /// calibration set.
    pub async fn make_gold(
        self,
        set_id: &SetId,
        kind: SetKind,
        tiers: &[(CompletionId, i64)],
        explanation: Option<&str>,
    ) -> Result<()> {
        write!(self.0, set_id = set_id.clone(), tiers = tiers.to_vec(), explanation = explanation.map(str::to_owned) => |tx| sets::make_gold(tx, &set_id, kind, &tiers, explanation.as_deref()))
    }

    /// The explanation of a calibration set, shown after the judgment.
    pub async fn explanation(self, set_id: &SetId) -> Result<Option<String>> {
        read!(self.0, |c| sets::explanation(c, set_id))
    }

    /// Records whose request made the set.
    pub async fn note_maker(self, set_id: &SetId, labeler: &LabelerId) -> Result<()> {
        write!(self.0, set_id = set_id.clone(), labeler = labeler.clone() => |tx| sets::made_by(tx, &set_id, &labeler))
    }

    /// Whose request made the set, if it was recorded.
    pub async fn maker(self, set_id: &SetId) -> Result<Option<LabelerId>> {
        read!(self.0, |c| sets::maker(c, set_id))
    }

    /// Sets that the labeler made or received, newest first.
    pub async fn list_of(
        self,
        page: Page,
        status: Option<SetStatus>,
        labeler: &LabelerId,
    ) -> Result<Vec<ComparisonSet>> {
        read!(self.0, |c| sets::list(c, &page, status, Some(labeler)))
    }

    /// Whether the labeler made or received the set.
    pub async fn is_of(self, set_id: &SetId, labeler: &LabelerId) -> Result<bool> {
        read!(self.0, |c| sets::is_seen_by(c, set_id, labeler))
    }

    /// A set of the queue that contains one of the completions and that the labeler has not judged.
    pub async fn unjudged_with(self, completion: &CompletionId, labeler: &LabelerId) -> Result<Option<SetId>> {
        read!(self.0, |c| reveals::unjudged_with(c, completion, labeler))
    }

    /// Requests one more judgment of a set and opens it again.
    pub async fn extend(self, set_id: &SetId, policy: &str, score: Option<f64>) -> Result<()> {
        write!(self.0, set_id = set_id.clone(), policy = policy.to_owned() => |tx| draws::extend_set(tx, &set_id, &policy, score))
    }

    /// Sets the place of an open set in the queue: higher scores come first. Returns whether the set is open.
    pub async fn prioritise(self, set_id: &SetId, score: f64) -> Result<bool> {
        write!(self.0, set_id = set_id.clone() => |tx| draws::prioritise(tx, &set_id, score))
    }

    /// Passes latest revisions of every outcome without texts to `take`, ordered by judgment id. They are read one by
    /// one, so `take` must not wait.
    pub async fn each_judged(self, filter: &JudgedFilter, mut take: impl FnMut(JudgedSet) + Send) -> Result<()> {
        let (mut after, mut last) = (String::new(), None);
        loop {
            // Each part has the time that a database has for an answer.
            let end = read!(self.0, |c| quality::end_of_part(c, &after))?;
            let part = (after.as_str(), end.as_deref());
            read!(self.0, |c| quality::judged_part(c, filter, None, part, &mut last, &mut take))?;
            match end {
                Some(end) => after = end,
                None => break,
            }
        }
        last.into_iter().for_each(take);
        Ok(())
    }

    /// Latest revisions of all labelers on every set that this labeler judged; ordered by judgment id.
    pub async fn judged_with(self, labeler: &LabelerId) -> Result<Vec<JudgedSet>> {
        read!(self.0, |c| quality::judged_with(c, labeler))
    }

    /// Texts with which labelers corrected completions of the set, oldest first; each names the completion as its parent.
    pub async fn corrections(self, set_id: &SetId) -> Result<Vec<(LabelerId, Completion)>> {
        read!(self.0, |c| prompts::corrections(c, set_id))
    }

    /// Stores the reviewer whose judgment settles the set.
    pub async fn settle(self, set_id: &SetId, reviewer: &LabelerId, now: Micros) -> Result<()> {
        write!(self.0, set_id = set_id.clone(), reviewer = reviewer.clone() => |tx| judgments::settle(tx, &set_id, &reviewer, now))
    }

    /// The reviewer who settled the set, if there is one.
    pub async fn settled_by(self, set_id: &SetId) -> Result<Option<LabelerId>> {
        read!(self.0, |c| judgments::settled_by(c, set_id))
    }

    /// Expected tiers of every set that has them.
    pub async fn all_gold(self) -> Result<Vec<(SetId, CompletionId, i64)>> {
        read!(self.0, |c| quality::all_gold(c))
    }

    /// One page, newest first, and the number of all sets that match the filter. `now` decides which leases are
    /// current.
    pub async fn browse(self, filter: &SetFilter, page: Page, now: Micros) -> Result<(Vec<SetRow>, i64)> {
        read!(self.0, |c| browse::sets_page(c, filter, &page, now))
    }

    /// The sets of a part of the list that match the filter, and the part's last set; `None` when there is none older.
    pub async fn search(self, filter: &SetFilter, part: Part, now: Micros) -> Result<(Vec<SetRow>, Option<PartEnd>)> {
        read!(self.0, |c| browse::search_sets(c, filter, &part, now))
    }

    /// The prompts of these sets; unknown ids are left out.
    pub async fn prompts(self, ids: &[SetId]) -> Result<HashMap<SetId, Vec<Message>>> {
        read!(self.0, |c| browse::set_prompts(c, ids))
    }

    /// Takes all of these sets out of the queue, or none if one is unknown.
    pub async fn retire_matching(self, ids: &[SetId]) -> Result<()> {
        write!(self.0, ids = ids.to_vec() => |tx| browse::retire_sets(tx, &ids))
    }

    /// A set with its prompt and its completions in order.
    pub async fn content(self, id: &SetId) -> Result<SetContent> {
        read!(self.0, |c| turns::content(c, id))
    }
}
