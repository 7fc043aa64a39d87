//! The migrations of both databases, embedded in the binary and read from `migrations/` at build time.
//!
//! sqlx's `migrate!` does the same at compile time, but its macro builds sqlx, SQLite and a TLS library a second time
//! for the compiler's own machine; that costs more than a minute of every cold build.

use std::sync::LazyLock;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, SqlSafeStr};

#[derive(rust_embed::RustEmbed)]
#[folder = "migrations/sqlite"]
struct Sqlite;

#[derive(rust_embed::RustEmbed)]
#[folder = "migrations/postgres"]
struct Postgres;

pub(super) static SQLITE: LazyLock<Migrator> = LazyLock::new(embedded::<Sqlite>);
pub(super) static POSTGRES: LazyLock<Migrator> = LazyLock::new(embedded::<Postgres>);

/// The migrations among the files of `E`, sorted by version. A file is named `VERSION_description.sql`.
fn embedded<E: rust_embed::RustEmbed>() -> Migrator {
    let migrations = E::iter().map(|name| migration(&name, &E::get(&name).expect(EMBEDDED)));
    Migrator::with_migrations(migrations.collect())
}

/// Why a malformed file is a panic and not an error: the files are part of the program.
const EMBEDDED: &str = "migrations are embedded as VERSION_description.sql";

fn migration(name: &str, file: &rust_embed::EmbeddedFile) -> Migration {
    let (version, description) = name.strip_suffix(".sql").and_then(|n| n.split_once('_')).expect(EMBEDDED);
    let sql = std::str::from_utf8(&file.data).expect(EMBEDDED).to_owned();
    let version = version.parse().expect(EMBEDDED);
    let description = description.replace('_', " ").into();
    Migration::new(version, description, MigrationType::Simple, AssertSqlSafe(sql).into_sql_str(), false)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Databases record name and hash of each migration: both must stay those that sqlx itself finds in the files.
    #[tokio::test]
    async fn embedded_migrations_are_those_that_sqlx_reads() {
        for (ours, dir) in [(&SQLITE, "migrations/sqlite"), (&POSTGRES, "migrations/postgres")] {
            let theirs = Migrator::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)).await.unwrap();
            let all = |m: &Migrator| -> Vec<_> {
                m.iter()
                    .map(|m| (m.version, m.description.clone(), m.migration_type, m.checksum.clone(), m.no_tx))
                    .collect()
            };
            assert!(ours.iter().count() >= 13, "{dir}");
            assert_eq!(all(ours), all(&theirs), "{dir}");
        }
    }
}
