//! A whole database as files, one per table, and back: for backups of Postgres and for moving between the two
//! databases. Tables and columns are read from the database itself, so that no migration can be forgotten.
//!
//! `TABLE.jsonl`: the first line names the columns, each further line is a row, in order of the primary key.
//! Cells: null, text, integers (flags as 0 and 1), `{"r": "1.5"}` a real, `{"b": "…"}` bytes in base64. JSON
//! columns are text.

mod cells;
mod postgres;
mod sqlite;

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::connect::Target;
use super::{Result, StoreError};
use crate::domain::files::{copy_atomically, is_disk_full};
use cells::{Cell, Kind, same};

/// Description of a dump, stored with its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// Source of the dump: `sqlite` or `postgres`.
    pub backend: String,
    /// The newest migration of the database.
    pub schema: i64,
    /// In an order in which parents come before children.
    pub tables: Vec<TableDump>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDump {
    pub name: String,
    pub rows: u64,
    /// SHA-256 (hex) of the file.
    pub sha256: String,
}

/// A table as its database describes it.
struct Table {
    name: String,
    columns: Vec<Column>,
    /// Columns of the primary key, in its order.
    key: Vec<String>,
    /// Tables that its foreign keys point to.
    parents: Vec<String>,
}

struct Column {
    name: String,
    kind: Kind,
    /// Whether the database generates the column's numbers.
    identity: bool,
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |e| match is_disk_full(&e) {
        true => StoreError::Full(path.display().to_string()),
        false => StoreError::Internal(format!("{}: {e}", path.display())),
    }
}

/// Names the file for which there is no space.
fn full_at(path: &Path) -> impl Fn(StoreError) -> StoreError {
    let path = path.to_owned();
    move |e| match e {
        StoreError::Full(_) => StoreError::Full(path.display().to_string()),
        other => other,
    }
}

fn refused<T>(message: impl Into<String>) -> Result<T> {
    Err(StoreError::Conflict(message.into()))
}

/// Writes every table of the database into `dir` from one consistent snapshot.
///
/// # Errors
/// A column type that a dump does not support; a full disk.
pub async fn export(url: &str, dir: &Path) -> Result<Dump> {
    std::fs::create_dir_all(dir).map_err(failed(dir))?;
    match super::connect::target(url)? {
        Target::Sqlite(path) => sqlite::export(&path, dir).await,
        Target::Postgres => postgres::export(url, dir).await,
    }
}

/// Fills an empty database from the files in `dir`: creates the schema of the dump, inserts every row, compares the
/// stored rows with the files, and then applies the migrations that are newer than the dump.
///
/// # Errors
/// `Conflict` when the database has tables already, when a file differs from the dump's description, or when the dump
/// was written by a newer program.
pub async fn import(url: &str, dir: &Path, dump: &Dump) -> Result<()> {
    for table in &dump.tables {
        if !table.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
            return refused(format!("'{}' is not a valid table name", table.name));
        }
        let (rows, sha256) = measure(&file(dir, &table.name))?;
        if (rows, &sha256) != (table.rows, &table.sha256) {
            return refused(format!(
                "{}.jsonl has {rows} rows and SHA-256 {sha256}; the dump says {} and {}",
                table.name, table.rows, table.sha256
            ));
        }
    }
    let newest = super::migrations::SQLITE.iter().map(|m| m.version).max().unwrap_or(0);
    if dump.schema > newest {
        return refused(format!(
            "the dump has schema version {}, this program knows {newest}: it was written by a newer instructd",
            dump.schema
        ));
    }
    match super::connect::target(url)? {
        Target::Sqlite(path) => {
            let is_new = !path.exists();
            let done = match sqlite::import(&path, dir, dump).await {
                Ok(()) => super::migrate(url).await,
                Err(error) => Err(error),
            };
            // An incomplete database would be in the way of the next attempt.
            if done.is_err() && is_new {
                remove_sqlite(&path);
            }
            done.map_err(full_at(&path))
        }
        Target::Postgres => {
            postgres::import(url, dir, dump).await?;
            super::migrate(url).await
        }
    }
}

/// Copies the SQLite database at `url` into one file from a consistent snapshot; other connections can write meanwhile.
///
/// # Errors
/// `Conflict` for other databases, and when the copy does not pass SQLite's integrity check; `Full` when there is no space
/// for it.
pub async fn copy(url: &str, to: &Path) -> Result<i64> {
    match super::connect::target(url)? {
        Target::Sqlite(path) => sqlite::copy(&path, to).await.map_err(full_at(to)),
        Target::Postgres => refused("only a SQLite database can be copied as a file"),
    }
}

/// Installs a copied SQLite file at the path of `url`, where there must be no database, and applies newer migrations.
///
/// # Errors
/// `Conflict` when there is a database; `Full` when there is no space. No database is left behind then.
pub async fn place(file: &Path, url: &str) -> Result<()> {
    let Target::Sqlite(path) = super::connect::target(url)? else {
        return refused("only a SQLite database can be copied as a file");
    };
    if path.exists() {
        return refused(format!("{} exists already", path.display()));
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(failed(parent))?;
    copy_atomically(file, &path).map_err(failed(&path))?;
    let synced = File::open(parent).and_then(|f| f.sync_all()).map_err(failed(parent));
    let done = match synced {
        Ok(()) => super::migrate(url).await.map_err(full_at(&path)),
        Err(error) => Err(error),
    };
    if done.is_err() {
        remove_sqlite(&path);
    }
    done
}

/// Removes the SQLite database at `url`, which a restore has just made; a PostgreSQL database is left as it is.
///
/// # Errors
/// An address of neither kind of database.
pub fn remove(url: &str) -> Result<()> {
    if let Target::Sqlite(path) = super::connect::target(url)? {
        remove_sqlite(&path);
    }
    Ok(())
}

/// Removes a SQLite file and the files that SQLite keeps beside it.
fn remove_sqlite(path: &Path) {
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", path.display()));
    }
}

fn file(dir: &Path, table: &str) -> PathBuf {
    dir.join(format!("{table}.jsonl"))
}

/// Rows and SHA-256 of a table's file.
fn measure(path: &Path) -> Result<(u64, String)> {
    if !std::fs::symlink_metadata(path).map_err(failed(path))?.is_file() {
        return refused(format!("{} is not a regular file: links are not followed", path.display()));
    }
    let mut reader = BufReader::new(File::open(path).map_err(failed(path))?);
    let (mut hash, mut lines, mut line) = (Sha256::new(), 0u64, Vec::new());
    while reader.read_until(b'\n', &mut line).map_err(failed(path))? > 0 {
        hash.update(&line);
        lines += 1;
        line.clear();
    }
    Ok((lines.saturating_sub(1), hex::encode(hash.finalize())))
}

/// Writes one table's file and counts.
struct Writer {
    path: PathBuf,
    out: BufWriter<File>,
    hash: Sha256,
    rows: u64,
}

impl Writer {
    fn new(dir: &Path, table: &Table) -> Result<Self> {
        let path = file(dir, &table.name);
        let out = BufWriter::new(File::create(&path).map_err(failed(&path))?);
        let mut writer = Self { path, out, hash: Sha256::new(), rows: 0 };
        let names: Vec<_> = table.columns.iter().map(|c| c.name.as_str()).collect();
        writer.line(&names)?;
        Ok(writer)
    }

    fn line<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        let mut text = serde_json::to_vec(value).map_err(|e| StoreError::Internal(e.to_string()))?;
        text.push(b'\n');
        self.hash.update(&text);
        self.out.write_all(&text).map_err(failed(&self.path))
    }

    fn row(&mut self, cells: &[Cell]) -> Result<()> {
        self.rows += 1;
        self.line(cells)
    }

    fn end(mut self, name: &str) -> Result<TableDump> {
        self.out.flush().map_err(failed(&self.path))?;
        self.out.get_ref().sync_all().map_err(failed(&self.path))?;
        Ok(TableDump { name: name.to_owned(), rows: self.rows, sha256: hex::encode(self.hash.finalize()) })
    }
}

/// Reads one table's file row by row.
struct Reader {
    path: PathBuf,
    lines: std::io::Lines<BufReader<File>>,
    columns: Vec<String>,
}

impl Reader {
    fn open(dir: &Path, table: &str) -> Result<Self> {
        let path = file(dir, table);
        let mut lines = BufReader::new(File::open(&path).map_err(failed(&path))?).lines();
        let first = lines.next().transpose().map_err(failed(&path))?.unwrap_or_default();
        let columns = serde_json::from_str(&first).map_err(|e| failed(&path)(e.into()))?;
        Ok(Self { path, lines, columns })
    }

    fn next(&mut self) -> Result<Option<Vec<Cell>>> {
        let Some(line) = self.lines.next() else { return Ok(None) };
        let cells: Vec<Cell> =
            serde_json::from_str(&line.map_err(failed(&self.path))?).map_err(|e| failed(&self.path)(e.into()))?;
        if cells.len() != self.columns.len() {
            return refused(format!("{}: a row of {} cells", self.path.display(), cells.len()));
        }
        Ok(Some(cells))
    }

    /// The kinds of the file's columns in `table`.
    fn kinds(&self, table: &Table) -> Result<Vec<Kind>> {
        let find = |name: &String| table.columns.iter().find(|c| c.name == *name).map(|c| c.kind);
        let kinds: Option<Vec<_>> = self.columns.iter().map(find).collect();
        match kinds {
            Some(kinds) if kinds.len() == table.columns.len() => Ok(kinds),
            _ => refused(format!("table {} does not have the columns of the dump", table.name)),
        }
    }
}

/// Compares stored rows with a file, one by one.
struct Comparison {
    file: Reader,
    kinds: Vec<Kind>,
    table: String,
    rows: u64,
}

impl Comparison {
    fn new(dir: &Path, table: &Table) -> Result<Self> {
        let file = Reader::open(dir, &table.name)?;
        let kinds = file.kinds(table)?;
        Ok(Self { file, kinds, table: table.name.clone(), rows: 0 })
    }

    fn row(&mut self, stored: &[Cell]) -> Result<()> {
        self.rows += 1;
        let wanted = self.file.next()?.unwrap_or_default();
        let equal = wanted.len() == stored.len()
            && self.kinds.iter().zip(wanted.iter().zip(stored)).all(|(kind, (w, s))| same(*kind, w, s));
        if equal {
            return Ok(());
        }
        refused(format!("table {}: the stored row {} differs from the dump", self.table, self.rows))
    }

    fn end(mut self) -> Result<()> {
        match self.file.next()? {
            None => Ok(()),
            Some(_) => refused(format!("table {}: only {} rows were stored", self.table, self.rows)),
        }
    }
}

/// Parents before children; tables that refer to themselves or in circles keep their alphabetical order.
fn ordered(mut tables: Vec<Table>) -> Vec<Table> {
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    let mut done: Vec<Table> = Vec::new();
    while !tables.is_empty() {
        let waits = |t: &Table| t.parents.iter().any(|p| *p != t.name && tables.iter().any(|o| o.name == *p));
        let next = tables.iter().position(|t| !waits(t)).unwrap_or(0);
        done.push(tables.remove(next));
    }
    done
}

/// A name from the database's own catalogue, quoted.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The tables of the dump as the target database describes them.
fn matched<'a>(tables: &'a [Table], dump: &Dump) -> Result<Vec<&'a Table>> {
    if let Some(unknown) = tables.iter().find(|t| !dump.tables.iter().any(|d| d.name == t.name)) {
        return refused(format!("the dump has no table {}", unknown.name));
    }
    let find = |d: &TableDump| tables.iter().find(|t| t.name == d.name);
    match dump.tables.iter().map(find).collect::<Option<Vec<_>>>() {
        Some(found) => Ok(found),
        None => refused("the dump has tables that this schema does not have"),
    }
}
