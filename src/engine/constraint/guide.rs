//! One sample's place in its form.

use std::sync::{Arc, Mutex, PoisonError};

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

use super::compile::explained;
use crate::generation::sampling::{Context, Drawn, Warpers, draw_among};

/// Which tokens may come next, and whether the text may or must end here.
pub struct Guide {
    matcher: Mutex<Matcher>,
    /// Not to be drawn as the first token.
    unlike: Option<Arc<SimpleVob>>,
    eos_ids: Arc<[u32]>,
}

impl Guide {
    pub fn new(matcher: Matcher, unlike: Option<Arc<SimpleVob>>, eos_ids: Arc<[u32]>) -> Self {
        Self { matcher: Mutex::new(matcher), unlike, eos_ids }
    }

    /// The same place for another sample.
    pub fn fork(&self) -> Self {
        let matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Self { matcher: Mutex::new(matcher), unlike: self.unlike.clone(), eos_ids: self.eos_ids.clone() }
    }

    /// The tokens that may be drawn behind `written` tokens.
    ///
    /// # Errors
    /// Why the form can be followed no further.
    pub fn allowed(&self, written: usize) -> Result<SimpleVob, String> {
        let mut matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner);
        let mut allowed = matcher.compute_mask_or_eos().map_err(|e| explained(&e.to_string()))?;
        if let Some(unlike) = self.unlike.as_ref().filter(|_| written == 0) {
            allowed.sub(unlike);
        }
        Ok(allowed)
    }

    /// Draws among the allowed tokens. An end token that must not be drawn yet is drawn after all where the form
    /// lets nothing else through.
    ///
    /// # Errors
    /// Why the form can be followed no further.
    pub fn draw(
        &self,
        logits: &[f32],
        warpers: &Warpers,
        context: &Context<'_>,
        ignore_eos: bool,
    ) -> Result<Drawn, String> {
        let allowed = self.allowed(context.generated.len())?;
        let stays = || "it cannot be followed: no token of this model goes on from here".to_owned();
        if !ignore_eos && context.forbidden.is_empty() {
            return draw_among(logits, warpers, context, allowed.as_slice()).ok_or_else(stays);
        }
        let mut going_on = allowed.clone();
        let ends = context.forbidden.iter().chain(self.eos_ids.iter().filter(|_| ignore_eos));
        for id in ends.filter(|id| (**id as usize) < allowed.len()) {
            going_on.disallow_token(*id);
        }
        let left = Context { forbidden: &[], ..*context };
        draw_among(logits, warpers, &left, going_on.as_slice())
            .or_else(|| draw_among(logits, warpers, &left, allowed.as_slice()))
            .ok_or_else(stays)
    }

    /// Goes on by a token that was drawn. `true` when nothing can follow it.
    ///
    /// # Errors
    /// Why the form can be followed no further.
    pub fn advance(&self, id: u32) -> Result<bool, String> {
        let mut matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner);
        matcher.consume_token(id).map_err(|e| explained(&e.to_string()))?;
        Ok(matcher.is_stopped())
    }
}
