//! The draw policy `judge`: people get the sets that a language model doubts, or ranked otherwise than people.

use super::draw_request::DrawPlan;
use super::draw_steps::advance;
use super::{Result, Services, judges};
use crate::domain::{SetDraw, SetStatus};

/// Puts open sets first in the queue by a judge's doubt or its disagreement with people, and requests one more judgment
/// for finished sets by the disagreement.
pub(super) async fn run(services: &Services, plan: &DrawPlan, draw: &mut SetDraw) -> Result<()> {
    let policy = plan.request.policy.as_str();
    let found = judges::urgencies(services, plan.request.prompts.project.as_ref()).await?;
    draw.report.found = found.len() as i64;
    let sets = services.store.sets();
    for one in found {
        if draw.made == draw.wanted {
            break;
        }
        draw.looked_at += 1;
        let disagreement = one.disagreement.unwrap_or(0.0);
        let score = match sets.get(&one.set_id).await?.status {
            SetStatus::Open => one.doubt.max(disagreement),
            SetStatus::Done => disagreement,
            SetStatus::Retired => continue,
        };
        if score <= 0.0 {
            draw.report.agreed += 1;
            continue;
        }
        if sets.settled_by(&one.set_id).await?.is_some() {
            draw.report.settled += 1;
            continue;
        }
        // A set that was finished in the meantime stays finished, unless its judge and people disagree.
        if !sets.prioritise(&one.set_id, score).await? {
            if disagreement <= 0.0 {
                draw.report.agreed += 1;
                continue;
            }
            sets.extend(&one.set_id, policy, Some(score)).await?;
        }
        draw.made += 1;
        if !advance(services, draw).await? {
            break;
        }
    }
    Ok(())
}
