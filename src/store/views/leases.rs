//! Leases of sets. There is at most one current lease for a set and a labeler, and never more current leases,
//! submitted assignments and rankings by API on a set than its `target_overlap`.

use crate::domain::*;
use crate::store::sql::read;
use crate::store::views::Leases;
use crate::store::*;

impl Leases<'_> {
    /// Leases the next set for a labeler; `None` when there is none. A labeler never gets a set again that they have
    /// judged or skipped, nor one they hold, unless they name it: then the same lease is extended. A lease that ran out
    /// or was released unjudged may come back to them as the same assignment, with the same token and order.
    pub async fn next(self, request: LeaseRequest) -> Result<Option<Assignment>> {
        let seen = self.0.seen(&turns::for_lease(&request)).await?;
        Ok(match self.0.lease_by(request, seen).await? {
            Leased::Set(assignment) => Some(assignment),
            Leased::Nothing(_) => None,
        })
    }

    /// The queue of all projects or one at `now`.
    pub async fn queue(self, now: Micros, project: Option<&ProjectId>) -> Result<Queue> {
        read!(self.0, |c| leases::queue(c, now, project))
    }

    /// One assignment. `NotFound` when there is none with this id.
    pub async fn get(self, id: &AssignmentId) -> Result<Assignment> {
        read!(self.0, |c| leases::get_assignment(c, id))
    }

    /// Extends a lease. `LeaseLost` when the token no longer holds it.
    pub async fn renew(self, id: &AssignmentId, lease_token: &str, now: Micros, expires_at: Micros) -> Result<()> {
        let (id, token) = (id.clone(), lease_token.to_owned());
        self.0.place(leases::Renewal { id, token, now, expires_at }).await
    }

    /// Releases a lease without a judgment. `LeaseLost` when the token no longer holds it.
    pub async fn release(self, id: &AssignmentId, lease_token: &str) -> Result<()> {
        let (id, token) = (id.clone(), lease_token.to_owned());
        self.0.place(leases::Release { id, token }).await
    }

    /// Number of sets of a project and kind that the labeler can still judge at `now`, held ones included; counted up to
    /// `most`.
    pub async fn open_for(
        self,
        labeler: &LabelerId,
        project: &ProjectId,
        kind: SetKind,
        now: Micros,
        most: i64,
    ) -> Result<i64> {
        read!(self.0, |c| leases::count_for(c, labeler, project, kind, now, most))
    }

    /// Current leases of the labeler on sets of a project and kind.
    pub async fn held(self, labeler: &LabelerId, project: &ProjectId, kind: SetKind, now: Micros) -> Result<i64> {
        read!(self.0, |c| leases::count_held(c, labeler, project, kind, now))
    }

    /// Why [`Leases::next`] returned nothing.
    pub async fn why_none(self, request: &LeaseRequest) -> Result<NoLease> {
        let seen = self.0.seen(&turns::for_lease(request)).await?;
        Ok(turns::why_nothing(request, &seen))
    }

    /// The labeler's assignment on a set, in any state.
    pub async fn assignment_of(self, set_id: &SetId, labeler: &LabelerId) -> Result<Option<Assignment>> {
        read!(self.0, |c| leases::assignment_of(c, set_id, labeler))
    }

    /// The work available to a labeler, and what they hold and have done.
    pub async fn outlook(self, request: &OutlookRequest) -> Result<Outlook> {
        self.0.seen(request).await
    }

    /// Leases the next set by an outlook that was just read; returns why there is none.
    pub async fn take(self, request: LeaseRequest, outlook: Outlook) -> Result<Leased> {
        self.0.lease_by(request, outlook).await
    }
}
