//! The access that routes require of their callers.

use super::error::{ApiError, ApiResult};
use crate::domain::Role;
use crate::service::access::Actor;

/// The access that a route requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Public,
    /// Anybody, unless `require_inference_key`.
    Inference,
    /// Callers with inference rights, always authenticated, because stored data has an owner.
    Keyed,
    /// People who rank and programs that give feedback.
    Feedback,
    /// Reviewers and administrators: they see everybody's judgments and settle disagreements.
    Review,
    Admin,
}

impl Access {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Inference | Self::Keyed => "inference",
            Self::Feedback => "feedback",
            Self::Review => "review",
            Self::Admin => "admin",
        }
    }

    /// # Errors
    /// 401 without a caller, 403 for a caller without the right.
    pub(super) fn admits(self, actor: Option<&Actor>, require_inference_key: bool) -> ApiResult<()> {
        let wanted = match (self, actor) {
            (Self::Public, _) => return Ok(()),
            (Self::Inference, _) if !require_inference_key => return Ok(()),
            (_, None) => {
                return Err(ApiError::unauthorized("this route needs a key (Authorization: Bearer …) or a session"));
            }
            (Self::Inference | Self::Keyed, Some(a)) => (a.inference || a.is_admin(), "this key is not for inference"),
            (Self::Feedback, Some(a)) => (a.feedback, "this key is not for feedback"),
            (Self::Review, Some(a)) => (a.feedback && a.role >= Role::Reviewer, "this needs a reviewer"),
            (Self::Admin, Some(a)) => (a.is_admin(), "this needs an administrator"),
        };
        if wanted.0 { Ok(()) } else { Err(ApiError::forbidden(wanted.1)) }
    }
}
