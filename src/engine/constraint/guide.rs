//! The state of one sample's constraint.

use std::sync::{Arc, Mutex, PoisonError};

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

use super::readable;
use crate::generation::sampling::{DrawContext, Drawn, Warpers, draw_among};

/// Computes which tokens may come next, and whether the text may or must end.
pub struct Guide {
    matcher: Mutex<Matcher>,
    /// Tokens that must not be the first one.
    not_first: Option<Arc<SimpleVob>>,
    eos_ids: Arc<[u32]>,
}

impl Guide {
    pub fn new(matcher: Matcher, not_first: Option<Arc<SimpleVob>>, eos_ids: Arc<[u32]>) -> Self {
        Self { matcher: Mutex::new(matcher), not_first, eos_ids }
    }

    /// A copy in the same state, for another sample.
    pub fn fork(&self) -> Self {
        let matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Self { matcher: Mutex::new(matcher), not_first: self.not_first.clone(), eos_ids: self.eos_ids.clone() }
    }

    /// The tokens that are allowed after `generated` tokens.
    ///
    /// # Errors
    /// Why the constraint cannot be satisfied.
    pub fn allowed(&self, generated: usize) -> Result<SimpleVob, String> {
        let mut matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner);
        let mut allowed = matcher.compute_mask_or_eos().map_err(|e| readable(&e.to_string()))?;
        if let Some(not_first) = self.not_first.as_ref().filter(|_| generated == 0) {
            allowed.sub(not_first);
        }
        Ok(allowed)
    }

    /// Draws among the allowed tokens. An end token that must not be drawn yet is drawn if no other token is allowed.
    ///
    /// # Errors
    /// Why the constraint cannot be satisfied.
    pub fn draw(
        &self,
        logits: &[f32],
        warpers: &Warpers,
        context: &DrawContext<'_>,
        ignore_eos: bool,
    ) -> Result<Drawn, String> {
        let allowed = self.allowed(context.generated.len())?;
        let stuck = || "it cannot be followed: no token of this model goes on from here".to_owned();
        if !ignore_eos && context.forbidden.is_empty() {
            return draw_among(logits, warpers, context, allowed.as_slice()).ok_or_else(stuck);
        }
        let mut without_end = allowed.clone();
        let ends = context.forbidden.iter().chain(self.eos_ids.iter().filter(|_| ignore_eos));
        for id in ends.filter(|id| (**id as usize) < allowed.len()) {
            without_end.disallow_token(*id);
        }
        let unrestricted = DrawContext { forbidden: &[], ..*context };
        draw_among(logits, warpers, &unrestricted, without_end.as_slice())
            .or_else(|| draw_among(logits, warpers, &unrestricted, allowed.as_slice()))
            .ok_or_else(stuck)
    }

    /// Advances by a drawn token. `true` if no token can follow it.
    ///
    /// # Errors
    /// Why the constraint cannot be satisfied.
    pub fn advance(&self, id: u32) -> Result<bool, String> {
        let mut matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner);
        matcher.consume_token(id).map_err(|e| readable(&e.to_string()))?;
        Ok(matcher.is_stopped())
    }
}
