//! Judgments are append-only. The labelers `admin` and `import` exist from the start.

use std::sync::Arc;

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Judgments;
use crate::store::*;

impl Judgments<'_> {
    /// Stores a judgment with all of its effects, in one transaction. A known idempotency key returns the stored
    /// judgment. An expired lease is accepted as long as nobody else took the place. The store numbers revisions; a skip
    /// frees the place; a revision needs no lease.
    ///
    /// # Errors
    /// `KeyReused` if the judgment that is stored under the idempotency key says something else.
    pub async fn submit(self, submit: SubmitJudgment) -> Result<Submitted> {
        self.0.place(submit).await
    }

    /// One judgment. `NotFound` when there is none with this id.
    pub async fn get(self, id: &JudgmentId) -> Result<Judgment> {
        read!(self.0, |c| judgments::get(c, id))
    }

    /// A page of judgments, newest first, optionally of one labeler.
    pub async fn list(self, page: Page, labeler: Option<&LabelerId>) -> Result<Vec<Judgment>> {
        read!(self.0, |c| judgments::list(c, &page, labeler))
    }

    /// Number of first judgments (revisions do not count) of the labeler since `since`, and in total.
    pub async fn counts(self, labeler: &LabelerId, since: Micros) -> Result<LabelerCounts> {
        read!(self.0, |c| judgments::counts(c, labeler, since))
    }

    /// First judgments since `since`, of all projects or one, without imported ones.
    pub async fn throughput(self, since: Micros, project: Option<&ProjectId>) -> Result<Throughput> {
        read!(self.0, |c| throughput::since(c, since, project))
    }

    /// Latest revisions only, joined with texts, ordered by judgment id; rankings of models last.
    pub async fn ranked(self, filter: &RankedFilter) -> Result<Vec<RankedSet>> {
        read!(self.0, |c| judgments::ranked_sets(c, filter, judgments::Part::After(None)))
    }

    /// Calibration sets of a project that the labeler has judged (skips do not count).
    pub async fn calibrations_done(self, labeler: &LabelerId, project: &ProjectId) -> Result<i64> {
        read!(self.0, |c| sets::calibrations_done(c, labeler, project))
    }

    /// What has been revealed to the labeler about a set.
    pub async fn reveals(self, set_id: &SetId, labeler: &LabelerId) -> Result<Vec<Knowledge>> {
        read!(self.0, |c| reveals::of(c, set_id, labeler))
    }

    /// Records that something about the set was revealed to the labeler.
    pub async fn put_reveal(self, set_id: &SetId, labeler: &LabelerId, what: Knowledge, now: Micros) -> Result<()> {
        write!(self.0, set_id = set_id.clone(), labeler = labeler.clone() => |tx| reveals::put(tx, &set_id, &labeler, what, now))
    }

    /// Latest judgments of everybody on a set, oldest first.
    pub async fn of_set(self, set_id: &SetId) -> Result<Vec<Judgment>> {
        read!(self.0, |c| judgments::of_set(c, set_id))
    }

    /// Lines of an imported file, in one transaction: all or none.
    pub async fn import(self, lines: Arc<Vec<ImportLine>>) -> Result<Vec<ImportedLine>> {
        write!(self.0, |tx| imports::put(tx, &lines))
    }

    /// Latest revisions by labelers of one kind joined with texts, at most `limit` judgments with ids after `after`; and
    /// the id to continue after, `None` at the end.
    pub async fn ranked_page(
        self,
        filter: &RankedFilter,
        kind: LabelerKind,
        after: Option<&JudgmentId>,
        limit: i64,
    ) -> Result<(Vec<RankedSet>, Option<JudgmentId>)> {
        read!(self.0, |c| judgments::ranked_page(
            c,
            filter,
            kind,
            judgments::Part::After(after.map(JudgmentId::as_str)),
            limit
        ))
    }

    /// The rankings of one set that a data set of `filter` contains, of labelers of all kinds that it asks for.
    pub async fn ranked_of_set(self, filter: &RankedFilter, set_id: &SetId) -> Result<Vec<RankedSet>> {
        read!(self.0, |c| judgments::ranked_sets(c, filter, judgments::Part::OfSet(set_id.as_str())))
    }

    /// When the latest judgment was made or settled.
    pub async fn latest(self) -> Result<Option<Micros>> {
        read!(self.0, |c| judgments::latest(c))
    }

    /// Ratings of latest revisions that count; by rubric, set, completion, dimension and labeler.
    pub async fn ratings(self, filter: &JudgedFilter) -> Result<Vec<GivenRating>> {
        read!(self.0, |c| quality::ratings(c, filter))
    }

    /// One page, newest first, and the number of all judgments that match the filter.
    pub async fn browse(self, filter: &JudgmentFilter, page: Page) -> Result<(Vec<JudgmentRow>, i64)> {
        read!(self.0, |c| browse::judgments_page(c, filter, &page))
    }

    /// The current judgments of a part of the list that match the filter, and the part's last judgment; `None` when there
    /// is none older.
    pub async fn search(self, filter: &JudgmentFilter, part: Part) -> Result<(Vec<JudgmentRow>, Option<PartEnd>)> {
        read!(self.0, |c| browse::search_judgments(c, filter, &part))
    }

    /// Facts about a set before a judgment of it, with the rubric of the given version or the active one. Of a
    /// quota in the set's project, judgments since `since` are counted.
    pub async fn question(
        self,
        place: &Place,
        labeler: &LabelerId,
        former: Option<&JudgmentId>,
        lang: Option<&str>,
        rubric: Option<&str>,
        since: Micros,
    ) -> Result<Question> {
        read!(self.0, |c| submits::question(c, place, labeler, former, lang, rubric, since))
    }
}
