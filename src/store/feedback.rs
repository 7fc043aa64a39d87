//! Queries for labeling: feedback, its queue and its people.

use async_trait::async_trait;

use super::sql::{SqlStore, read, write};
use super::*;

/// The second half of `Store`: known answers, draws of sets, settled sets, audit, erasure.
#[async_trait]
pub trait FeedbackStore: Send + Sync + 'static {
    /// Makes a set one with a known answer, for everybody to judge; the explanation is shown after the
    /// vote on calibration sets.
    async fn make_gold(
        &self,
        set_id: &SetId,
        kind: SetKind,
        tiers: &[(CompletionId, i64)],
        explanation: Option<&str>,
    ) -> Result<()>;
    async fn set_explanation(&self, set_id: &SetId) -> Result<Option<String>>;
    /// Calibration sets that the labeler has judged (skips do not count).
    async fn calibrations_done(&self, labeler: &LabelerId) -> Result<i64>;
    /// Sets of a kind that the labeler can still judge at `now`, those in hand included; counted up to `most`.
    async fn sets_open_for(&self, labeler: &LabelerId, kind: SetKind, now: Micros, most: i64) -> Result<i64>;
    /// Current leases of the labeler on sets of a kind.
    async fn sets_held(&self, labeler: &LabelerId, kind: SetKind, now: Micros) -> Result<i64>;
    /// Why [`Store::lease_next`] gave nothing.
    async fn no_lease(&self, request: &LeaseRequest) -> Result<NoLease>;
    /// The labeler's assignment on a set, in whatever state.
    async fn assignment_of(&self, set_id: &SetId, labeler: &LabelerId) -> Result<Option<Assignment>>;
    /// Notes whose request made the set.
    async fn set_made_by(&self, set_id: &SetId, labeler: &LabelerId) -> Result<()>;
    async fn set_maker(&self, set_id: &SetId) -> Result<Option<LabelerId>>;
    /// Sets that the labeler made or was handed, newest first.
    async fn list_sets_of(
        &self,
        page: Page,
        status: Option<SetStatus>,
        labeler: &LabelerId,
    ) -> Result<Vec<ComparisonSet>>;
    async fn set_is_of(&self, set_id: &SetId, labeler: &LabelerId) -> Result<bool>;
    /// Prompts of those sets, newest first.
    async fn list_prompts_of(&self, page: Page, labeler: &LabelerId) -> Result<Vec<Prompt>>;
    /// A set out of the queue's sets that holds the completion and that the labeler has not judged.
    async fn unjudged_set_with(&self, completion: &CompletionId, labeler: &LabelerId) -> Result<Option<SetId>>;
    /// What the labeler has been shown of a set.
    async fn reveals(&self, set_id: &SetId, labeler: &LabelerId) -> Result<Vec<Knowledge>>;
    async fn put_reveal(&self, set_id: &SetId, labeler: &LabelerId, what: Knowledge, now: Micros) -> Result<()>;
    /// Stores the guidelines of a language; an empty text returns to the configured file.
    async fn put_guidelines(&self, version: GuidelineVersion) -> Result<()>;
    /// The version in force for a language, if any was stored.
    async fn latest_guidelines(&self, lang: &str) -> Result<Option<GuidelineVersion>>;
    /// All versions, newest first.
    async fn guidelines(&self) -> Result<Vec<GuidelineVersion>>;
    /// Asks for one more judgment of a set and opens it again.
    async fn extend_set(&self, set_id: &SetId, policy: &str, score: Option<f64>) -> Result<()>;
    /// Prompts that fit, oldest first, with the ids after `after`.
    async fn select_prompts(&self, filter: &PromptFilter, after: Option<&str>, limit: i64) -> Result<Vec<Prompt>>;
    /// How many prompts the filter fits, and how many of them `select_prompts` leaves out, by reason.
    async fn count_prompts(&self, filter: &PromptFilter) -> Result<PromptCounts>;
    // draws of sets
    async fn put_draw(&self, draw: SetDraw) -> Result<()>;
    async fn get_draw(&self, id: &DrawId) -> Result<SetDraw>;
    async fn list_draws(&self, page: Page) -> Result<Vec<SetDraw>>;
    /// Stores where a running draw stands; false when it is no longer running (cancelled).
    async fn advance_draw(&self, draw: SetDraw) -> Result<bool>;
    /// Conflict when it has ended.
    async fn cancel_draw(&self, id: &DrawId, now: Micros) -> Result<SetDraw>;
    /// Latest revisions of every outcome without texts, of sets of `kind` (all when absent), created since
    /// `since`; ordered by judgment id.
    async fn judged_sets(&self, kind: Option<SetKind>, since: Option<Micros>) -> Result<Vec<JudgedSet>>;
    /// The same, of every set that this labeler judged: everybody's words on them.
    async fn judged_with(&self, labeler: &LabelerId) -> Result<Vec<JudgedSet>>;
    /// Latest judgments of everybody on a set, oldest first.
    async fn set_judgments(&self, set_id: &SetId) -> Result<Vec<Judgment>>;
    /// Names the reviewer whose own judgment settles the set, once there is one.
    async fn settle_set(&self, set_id: &SetId, reviewer: &LabelerId, now: Micros) -> Result<()>;
    async fn settled_by(&self, set_id: &SetId) -> Result<Option<LabelerId>>;
    /// Expected tiers of every set that has them.
    async fn all_gold(&self) -> Result<Vec<(SetId, CompletionId, i64)>>;
    /// Lines of an imported file, in one transaction: all or none.
    async fn import_lines(&self, lines: Arc<Vec<ImportLine>>) -> Result<Vec<ImportedLine>>;
    /// As `ranked_sets`, at most `limit` judgments with ids after `after`; and the id to go on after, `None` at the
    /// end.
    async fn ranked_page(
        &self,
        filter: &RankedFilter,
        after: Option<&JudgmentId>,
        limit: i64,
    ) -> Result<(Vec<RankedSet>, Option<JudgmentId>)>;
    /// When the latest judgment was made or settled.
    async fn latest_judgment(&self) -> Result<Option<Micros>>;
    /// Demonstrations with their prompts and labelers, at most `limit` after (created, completion), oldest first.
    async fn demonstration_page(
        &self,
        after: Option<&Demonstration>,
        limit: i64,
    ) -> Result<Vec<(Demonstration, Prompt, Completion)>>;
    /// Every event up to `as_of` with what it is about, oldest first; on request without those on answers to requests.
    async fn feedback_facts(&self, as_of: Option<Micros>, without_requests: bool) -> Result<Vec<FeedbackFact>>;
    /// Newest first; `before` is an id (exclusive).
    async fn list_audit(&self, filter: &AuditFilter, before: Option<i64>, limit: i64) -> Result<Vec<AuditEntry>>;
    /// Changes role, quota and whether the labeler may come in, where given.
    async fn change_labeler(
        &self,
        id: &LabelerId,
        role: Option<Role>,
        daily_quota: Option<Option<i64>>,
        active: Option<bool>,
    ) -> Result<Labeler>;
    /// Ends an unused invite. Conflict when it is used.
    async fn revoke_invite(&self, id: &InviteId, now: Micros) -> Result<()>;
    /// Takes a person's data away on request; the labeler's row stays, nameless and closed.
    async fn erase_labeler(&self, id: &LabelerId, how: Erase, actor_hash: &str, now: Micros) -> Result<Erased>;
    /// What erasing reaches beside judgments: demonstrations, sessions' (created, expires), feedback.
    async fn personal_data(&self, id: &LabelerId, actor_hash: &str) -> Result<PersonalData>;
    /// By id or name.
    async fn get_dataset(&self, id_or_name: &str) -> Result<DatasetVersion>;
}

#[async_trait]
impl FeedbackStore for SqlStore {
    async fn make_gold(
        &self,
        set_id: &SetId,
        kind: SetKind,
        tiers: &[(CompletionId, i64)],
        explanation: Option<&str>,
    ) -> Result<()> {
        write!(self, set_id = set_id.clone(), tiers = tiers.to_vec(), explanation = explanation.map(str::to_owned) => |tx| sets::make_gold(tx, &set_id, kind, &tiers, explanation.as_deref()))
    }

    async fn set_explanation(&self, set_id: &SetId) -> Result<Option<String>> {
        read!(self, |c| sets::explanation(c, set_id))
    }

    async fn calibrations_done(&self, labeler: &LabelerId) -> Result<i64> {
        read!(self, |c| sets::calibrations_done(c, labeler))
    }

    async fn sets_open_for(&self, labeler: &LabelerId, kind: SetKind, now: Micros, most: i64) -> Result<i64> {
        read!(self, |c| leases::count_for(c, labeler, kind, now, most))
    }

    async fn sets_held(&self, labeler: &LabelerId, kind: SetKind, now: Micros) -> Result<i64> {
        read!(self, |c| leases::count_held(c, labeler, kind, now))
    }

    async fn no_lease(&self, request: &LeaseRequest) -> Result<NoLease> {
        let seen = self.seen(&turns::for_lease(request)).await?;
        Ok(turns::why_nothing(request, &seen))
    }

    async fn assignment_of(&self, set_id: &SetId, labeler: &LabelerId) -> Result<Option<Assignment>> {
        read!(self, |c| leases::assignment_of(c, set_id, labeler))
    }

    async fn set_made_by(&self, set_id: &SetId, labeler: &LabelerId) -> Result<()> {
        write!(self, set_id = set_id.clone(), labeler = labeler.clone() => |tx| sets::made_by(tx, &set_id, &labeler))
    }

    async fn set_maker(&self, set_id: &SetId) -> Result<Option<LabelerId>> {
        read!(self, |c| sets::maker(c, set_id))
    }

    async fn list_sets_of(
        &self,
        page: Page,
        status: Option<SetStatus>,
        labeler: &LabelerId,
    ) -> Result<Vec<ComparisonSet>> {
        read!(self, |c| sets::list(c, &page, status, Some(labeler)))
    }

    async fn set_is_of(&self, set_id: &SetId, labeler: &LabelerId) -> Result<bool> {
        read!(self, |c| sets::is_seen_by(c, set_id, labeler))
    }

    async fn list_prompts_of(&self, page: Page, labeler: &LabelerId) -> Result<Vec<Prompt>> {
        read!(self, |c| async move {
            let (mut found, mut bytes) = (Vec::new(), 0);
            for id in sets::prompts_seen_by(c, &page, labeler).await? {
                let one = prompts::get(c, &id).await?;
                bytes += prompts::size(&one);
                found.push(one);
                if bytes >= super::sql::PAGE_BYTES {
                    break;
                }
            }
            Ok(found)
        })
    }

    async fn unjudged_set_with(&self, completion: &CompletionId, labeler: &LabelerId) -> Result<Option<SetId>> {
        read!(self, |c| reveals::unjudged_with(c, completion, labeler))
    }

    async fn reveals(&self, set_id: &SetId, labeler: &LabelerId) -> Result<Vec<Knowledge>> {
        read!(self, |c| reveals::of(c, set_id, labeler))
    }

    async fn put_reveal(&self, set_id: &SetId, labeler: &LabelerId, what: Knowledge, now: Micros) -> Result<()> {
        write!(self, set_id = set_id.clone(), labeler = labeler.clone() => |tx| reveals::put(tx, &set_id, &labeler, what, now))
    }

    async fn put_guidelines(&self, version: GuidelineVersion) -> Result<()> {
        write!(self, |tx| settings::put_guidelines(tx, &version))
    }

    async fn latest_guidelines(&self, lang: &str) -> Result<Option<GuidelineVersion>> {
        read!(self, |c| settings::latest_guidelines(c, lang))
    }

    async fn guidelines(&self) -> Result<Vec<GuidelineVersion>> {
        read!(self, |c| settings::guidelines(c))
    }

    async fn extend_set(&self, set_id: &SetId, policy: &str, score: Option<f64>) -> Result<()> {
        write!(self, set_id = set_id.clone(), policy = policy.to_owned() => |tx| draws::extend_set(tx, &set_id, &policy, score))
    }

    async fn select_prompts(&self, filter: &PromptFilter, after: Option<&str>, limit: i64) -> Result<Vec<Prompt>> {
        read!(self, |c| draws::select_prompts(c, filter, after, limit))
    }

    async fn count_prompts(&self, filter: &PromptFilter) -> Result<PromptCounts> {
        read!(self, |c| draws::count_prompts(c, filter))
    }

    async fn put_draw(&self, draw: SetDraw) -> Result<()> {
        write!(self, |tx| draws::put(tx, &draw))
    }

    async fn get_draw(&self, id: &DrawId) -> Result<SetDraw> {
        read!(self, |c| draws::get(c, id))
    }

    async fn list_draws(&self, page: Page) -> Result<Vec<SetDraw>> {
        read!(self, |c| draws::list(c, &page))
    }

    async fn advance_draw(&self, draw: SetDraw) -> Result<bool> {
        write!(self, |tx| draws::advance(tx, &draw))
    }

    async fn cancel_draw(&self, id: &DrawId, now: Micros) -> Result<SetDraw> {
        write!(self, id = id.clone() => |tx| draws::cancel(tx, &id, now))
    }

    async fn judged_sets(&self, kind: Option<SetKind>, since: Option<Micros>) -> Result<Vec<JudgedSet>> {
        read!(self, |c| quality::judged_sets(c, kind, since))
    }

    async fn judged_with(&self, labeler: &LabelerId) -> Result<Vec<JudgedSet>> {
        read!(self, |c| quality::judged_with(c, labeler))
    }

    async fn set_judgments(&self, set_id: &SetId) -> Result<Vec<Judgment>> {
        read!(self, |c| judgments::of_set(c, set_id))
    }

    async fn settle_set(&self, set_id: &SetId, reviewer: &LabelerId, now: Micros) -> Result<()> {
        write!(self, set_id = set_id.clone(), reviewer = reviewer.clone() => |tx| judgments::settle(tx, &set_id, &reviewer, now))
    }

    async fn settled_by(&self, set_id: &SetId) -> Result<Option<LabelerId>> {
        read!(self, |c| judgments::settled_by(c, set_id))
    }

    async fn all_gold(&self) -> Result<Vec<(SetId, CompletionId, i64)>> {
        read!(self, |c| quality::all_gold(c))
    }

    async fn import_lines(&self, lines: Arc<Vec<ImportLine>>) -> Result<Vec<ImportedLine>> {
        write!(self, |tx| imports::put(tx, &lines))
    }

    async fn ranked_page(
        &self,
        filter: &RankedFilter,
        after: Option<&JudgmentId>,
        limit: i64,
    ) -> Result<(Vec<RankedSet>, Option<JudgmentId>)> {
        read!(self, |c| judgments::ranked_page(c, filter, after.map(JudgmentId::as_str), limit))
    }

    async fn latest_judgment(&self) -> Result<Option<Micros>> {
        read!(self, |c| judgments::latest(c))
    }

    async fn demonstration_page(
        &self,
        after: Option<&Demonstration>,
        limit: i64,
    ) -> Result<Vec<(Demonstration, Prompt, Completion)>> {
        read!(self, |c| prompts::demonstration_page(c, after, limit))
    }

    async fn feedback_facts(&self, as_of: Option<Micros>, without_requests: bool) -> Result<Vec<FeedbackFact>> {
        read!(self, |c| prompts::feedback_facts(c, as_of, without_requests))
    }

    async fn list_audit(&self, filter: &AuditFilter, before: Option<i64>, limit: i64) -> Result<Vec<AuditEntry>> {
        read!(self, |c| people::list_audit(c, filter, before, limit))
    }

    async fn change_labeler(
        &self,
        id: &LabelerId,
        role: Option<Role>,
        daily_quota: Option<Option<i64>>,
        active: Option<bool>,
    ) -> Result<Labeler> {
        write!(self, id = id.clone() => |tx| people::change_labeler(tx, &id, role, daily_quota, active))
    }

    async fn revoke_invite(&self, id: &InviteId, now: Micros) -> Result<()> {
        write!(self, id = id.clone() => |tx| people::revoke_invite(tx, &id, now))
    }

    async fn erase_labeler(&self, id: &LabelerId, how: Erase, actor_hash: &str, now: Micros) -> Result<Erased> {
        write!(self, id = id.clone(), actor_hash = actor_hash.to_owned() => |tx| erasure::erase(tx, &id, how, &actor_hash, now))
    }

    async fn personal_data(&self, id: &LabelerId, actor_hash: &str) -> Result<PersonalData> {
        read!(self, |c| erasure::personal_data(c, id, actor_hash))
    }

    async fn get_dataset(&self, id_or_name: &str) -> Result<DatasetVersion> {
        read!(self, |c| models::get_dataset(c, id_or_name))
    }
}
