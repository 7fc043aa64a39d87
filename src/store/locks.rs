//! Advisory locks of write transactions. SQLite has one writer and needs none.

/// Advisory lock of transactions that take or free a place on a set; taken at their start. A place is one of the
/// `target_overlap` judgments of a set.
pub(super) const PLACES: i64 = 0x1abe1;
/// Advisory lock of imports: two of them must not both find that a set is new.
pub(super) const IMPORTS: i64 = 0x1390;
/// Advisory lock of activations: two concurrent ones would read the same active version.
pub(super) const ACTIVATION: i64 = 0xac71;
/// Advisory lock of writes of files and batches: row locks do not cover sums over other rows.
pub(super) const BATCHES: i64 = 17_017;
/// Advisory lock of claims of webhook deliveries and of changes of notices.
pub(super) const WEBHOOKS: i64 = 0xeb00c;
/// Advisory lock of new jobs that name their model: two of them must not take one name.
pub(super) const JOB_NAMES: i64 = 0x10b5;
/// Advisory lock of people's first sign-ins: two requests of one person must not make two people.
pub(super) const IDENTITIES: i64 = 0x1de7;
/// Advisory lock of migrations through a pooler.
pub(super) const MIGRATIONS: i64 = 0x5c4e3a;
