//! Ids of stored objects.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Declares ULID newtypes: lexically sortable by creation time, opaque to users.
macro_rules! ulid_ids {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            /// A fresh id; the time part comes from the system clock.
            #[expect(clippy::new_without_default, reason = "an id is never a default value")]
            pub fn new() -> Self {
                Self(new_id())
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(value: &str) -> Self {
                Self(value.to_owned())
            }
        }

        impl From<String> for $name {
            fn from(value: String) -> Self {
                Self(value)
            }
        }
    )*};
}

ulid_ids!(
    PromptId,
    ModelVersionId,
    CompletionId,
    SetId,
    AssignmentId,
    JudgmentId,
    LabelerId,
    JobId,
    DatasetId,
    ApiKeyId,
    InviteId,
    FeedbackId,
    DrawId,
    LinkId,
    ConversationId,
);

/// A fresh ULID: its first part is the time from the system clock, the rest is random.
pub fn new_id() -> String {
    ulid::Ulid::generate().to_string()
}
