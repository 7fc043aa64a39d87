//! The labelers' guidelines and their version, which every judgment records. Administrators change them while
//! the server runs; the configured file is read for every request; each language has its own text.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use super::people::Actor;
use super::{Result, ServiceError, Services, bad_input, uncancelled};
use crate::domain::{Micros, ProjectId, hash, new_id};
use crate::store::GuidelineVersion;

/// Languages of the pages; the first is the one that others fall back to.
pub const LANGUAGES: [&str; 2] = ["en", "zh"];
const MAX_BYTES: usize = 256 << 10;

const BUILT_IN: [(&str, &str); 2] = [("en", include_str!("guidelines.md")), ("zh", include_str!("guidelines.zh.md"))];

/// The current guidelines of one language.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guidelines {
    pub lang: &'static str,
    /// Markdown.
    pub text: String,
    /// First 12 hex digits of the text's SHA-256.
    pub version: String,
    /// When an administrator stored this text; `None` for the file and the built-in text.
    pub since: Option<Micros>,
}

fn version(text: &str) -> String {
    hash::of_bytes(text.as_bytes())[..12].to_owned()
}

/// The page language of a tag such as `zh-Hans`; English for those without pages.
pub fn language(tag: Option<&str>) -> &'static str {
    let tag = tag.unwrap_or_default().to_ascii_lowercase();
    let primary = tag.split(['-', '_']).next().unwrap_or_default();
    LANGUAGES.into_iter().find(|l| *l == primary).unwrap_or(LANGUAGES[0])
}

/// `guide.md` → `guide.zh.md`.
fn localised(path: &Path, lang: &str) -> PathBuf {
    match path.extension().and_then(|e| e.to_str()) {
        Some(extension) => path.with_extension(format!("{lang}.{extension}")),
        None => path.with_extension(lang),
    }
}

/// The configured text in a language: the file of the language, otherwise the file itself.
async fn from_file(path: &Path, lang: &str) -> Result<String> {
    if lang != LANGUAGES[0] {
        match tokio::fs::read_to_string(localised(path, lang)).await {
            Ok(text) => return Ok(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(ServiceError::Internal(format!("guidelines {}: {e}", path.display()))),
        }
    }
    tokio::fs::read_to_string(path)
        .await
        .map_err(|e| ServiceError::Internal(format!("guidelines {}: {e}", path.display())))
}

/// The current version for a language, given the stored text.
pub(super) async fn with_stored(services: &Services, lang: &'static str, stored: Option<String>) -> Result<String> {
    match stored.filter(|text| !text.is_empty()) {
        Some(text) => Ok(version(&text)),
        None => Ok(unstored(services, lang).await?.version),
    }
}

/// The guidelines of a project for a page language: an administrator's text for the project, else for the first project,
/// else the configured file, else the built-in text.
pub async fn current(services: &Services, project: &ProjectId, lang: &'static str) -> Result<Guidelines> {
    for project in [project, &ProjectId::first()] {
        let stored = services.store.guidelines().latest(project, lang).await?;
        if let Some(g) = stored.filter(|g| !g.text.is_empty()) {
            return Ok(Guidelines { lang, version: version(&g.text), text: g.text, since: Some(g.created) });
        }
    }
    unstored(services, lang).await
}

/// The configured file, else the built-in text.
async fn unstored(services: &Services, lang: &'static str) -> Result<Guidelines> {
    let text = match &services.config.labeling.guidelines {
        Some(path) => from_file(path, lang).await?,
        None => BUILT_IN.iter().find(|(l, _)| *l == lang).map_or(BUILT_IN[0].1, |(_, text)| text).to_owned(),
    };
    Ok(Guidelines { lang, version: version(&text), text, since: None })
}

/// Stores a project's new text for a language; an empty one returns to the text of the first project, the configured file
/// or the built-in text.
///
/// # Errors
/// `BadInput` for languages that the pages do not have and for texts over the limit.
pub async fn change(
    services: &Arc<Services>,
    by: &Actor,
    project: &ProjectId,
    lang: &str,
    text: String,
) -> Result<Guidelines> {
    let Some(lang) = LANGUAGES.into_iter().find(|l| *l == lang) else {
        return Err(bad_input("lang", format!("must be one of {}; got {lang:?}", LANGUAGES.join(", "))));
    };
    if text.len() > MAX_BYTES {
        return Err(bad_input("text", format!("has {} bytes; at most {MAX_BYTES}", text.len())));
    }
    let text = if text.trim().is_empty() { String::new() } else { text };
    let now = services.now();
    let stored = GuidelineVersion {
        id: new_id(),
        project_id: project.clone(),
        lang: lang.to_owned(),
        text,
        created: now,
        created_by: by.labeler_id.clone(),
    };
    let (all, actor) = (services.clone(), by.signature());
    uncancelled(async move {
        let version = (!stored.text.is_empty()).then(|| version(&stored.text));
        let detail = json!({"version": version, "project": stored.project_id});
        all.store.guidelines().put(stored).await?;
        Ok(all.store.audit_log().append(&actor, "set_guidelines", lang, detail, now).await?)
    })
    .await?;
    current(services, project, lang).await
}

/// All texts that administrators stored for a project, newest first, with their versions (`None` = back to the file).
pub async fn versions(services: &Services, project: &ProjectId) -> Result<Vec<(GuidelineVersion, Option<String>)>> {
    let all = services.store.guidelines().list().await?;
    Ok(all
        .into_iter()
        .filter(|g| g.project_id == *project)
        .map(|g| {
            let v = (!g.text.is_empty()).then(|| version(&g.text));
            (g, v)
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_found_by_their_tag() {
        for (tag, found) in
            [("zh-Hans", "zh"), ("zh", "zh"), ("ZH_CN", "zh"), ("en-GB", "en"), ("da", "en"), ("", "en")]
        {
            assert_eq!(language(Some(tag)), found, "{tag}");
        }
        assert_eq!(language(None), "en");
        assert_eq!(localised(Path::new("/a/guide.md"), "zh"), Path::new("/a/guide.zh.md"));
        assert_eq!(localised(Path::new("/a.b/guide"), "zh"), Path::new("/a.b/guide.zh"));
    }

    /// Markdown keeps a line break as a space or a break: a sentence must not be cut in the source.
    #[test]
    fn built_in_texts_have_no_break_inside_a_sentence() {
        for (lang, text) in BUILT_IN {
            let lines: Vec<&str> = text.lines().collect();
            for pair in lines.windows(2) {
                let plain = |l: &str| !l.is_empty() && !l.starts_with(['#', '1', '2', '3', '-']);
                assert!(!(plain(pair[0]) && plain(pair[1])), "{lang}: {pair:?}");
            }
        }
    }
}
