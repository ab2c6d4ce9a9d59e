//! Opening the journal file: the lock, what must be true of the file before SQLite may touch it, and the schema.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, Row};

use crate::journal::{JournalError, Result};

/// One step of the schema each, in order; a step that was released is never changed.
const MIGRATIONS: [&str; 5] = [
    include_str!("../migrations/0001_jobs_and_runners.sql"),
    include_str!("../migrations/0002_jobs_by_conversation.sql"),
    include_str!("../migrations/0003_outbox.sql"),
    include_str!("../migrations/0004_attachments.sql"),
    include_str!("../migrations/0005_usage.sql"),
];

/// The file's mark in SQLite's header, "JANE": another program's database is not taken for a journal.
const APPLICATION_ID: i32 = 0x4a41_4e45;

const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Other programs (a backup, `sqlite3`) may hold the file for a moment; a prompt waits that long for its turn.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Every commit is flushed to the disk: an acknowledged prompt survives a power cut, not only a killed process. Measured
/// on ext4 over a virtual disk, the four writes of a job took 0.95 ms (p99 2 ms) with it and 0.23 ms (p99 10 ms, when
/// the log is folded in) with `NORMAL`.
const SYNCHRONOUS: SqliteSynchronous = SqliteSynchronous::Full;

/// Files up to this size are checked from end to end at the start, which took 70 ms at this size. Damage in a larger
/// one is found when the damaged page is read.
const CHECK_UP_TO_BYTES: u64 = 64 * 1024 * 1024;

/// The exclusive right to the journal, as long as this process lives. The operating system gives it back.
pub(super) struct Lock(#[expect(dead_code, reason = "held, not read: closing the file releases the lock")] File);

pub(super) async fn open(path: &Path) -> Result<(PathBuf, SqliteConnection, Lock)> {
    // Two names of one file must meet at one lock.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let open_error = |message: String| JournalError::Open { path: path.display().to_string(), message };

    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| open_error(format!("the folder {} can't be made: {error}", folder.display())))?;
    }
    let lock = take_lock(&path)?;
    let is_new = prepare_file(&path)?;
    match connect(&path).await {
        Ok(connection) => Ok((path, connection, lock)),
        Err(error) => {
            if is_new {
                // Nothing of ours is in it yet, and an empty file would look like a journal that lost everything.
                for file in [path.clone(), beside(&path, "-wal"), beside(&path, "-shm"), beside(&path, "-journal")] {
                    let _ = std::fs::remove_file(file);
                }
            }
            Err(error)
        }
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn take_lock(path: &Path) -> Result<Lock> {
    let lock_path = beside(path, ".lock");
    let open_error = |error: io::Error| JournalError::Open {
        path: path.display().to_string(),
        message: format!("its lock {} can't be written: {error}", lock_path.display()),
    };
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).to_owned();
    let mut file = options.open(&lock_path).map_err(open_error)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            // A holder that has not written its number yet is still a holder.
            let _ = file.take(16).read_to_string(&mut pid);
            let holder = match pid.trim() {
                "" => "a process that is just starting".to_owned(),
                pid => format!("process {pid}"),
            };
            return Err(JournalError::InUse { path: path.display().to_string(), holder });
        }
        Err(error) => return Err(open_error(error.into())),
    }
    let write_pid = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write_pid(&mut file).map_err(open_error)?;
    Ok(Lock(file))
}

/// Makes the file, or looks whether SQLite may open what is there. `true` when it is new.
fn prepare_file(path: &Path) -> Result<bool> {
    let open_error =
        |error: io::Error| JournalError::Open { path: path.display().to_string(), message: error.to_string() };
    let corrupt = |message: &str| JournalError::Corrupt { path: path.display().to_string(), message: message.into() };

    let has_log = std::fs::metadata(beside(path, "-wal")).is_ok_and(|log| log.len() > 0);
    let options = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).to_owned();
    match options.open(path) {
        // SQLite would throw the log of an empty file away, and with it the newest jobs.
        Ok(_) if has_log => {
            let _ = std::fs::remove_file(path);
            return Err(corrupt("the file is missing, but its write-ahead log is there"));
        }
        Ok(_) => return Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(open_error(error)),
    }

    let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(open_error)?;
    let mut magic = Vec::new();
    Read::by_ref(&mut file).take(SQLITE_MAGIC.len() as u64).read_to_end(&mut magic).map_err(open_error)?;
    if magic.is_empty() {
        // A start that was killed before it had written anything.
        return if has_log { Err(corrupt("the file is empty, but its write-ahead log is not")) } else { Ok(true) };
    }
    if magic != SQLITE_MAGIC {
        return Err(corrupt("it does not begin as a SQLite file does"));
    }
    // Prompts are in it, and a copy may have been put back with other rights.
    let mode = file.metadata().map_err(open_error)?.permissions().mode();
    if mode & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600)).map_err(open_error)?;
    }
    Ok(false)
}

fn failed(path: &Path, error: &sqlx::Error) -> JournalError {
    let path = path.display().to_string();
    match damage(error) {
        Some(message) => JournalError::Corrupt { path, message },
        None => JournalError::Open { path, message: explain(error) },
    }
}

/// The journal mode stays as it is in the file, which may turn out not to be ours.
fn options(path: &Path) -> SqliteConnectOptions {
    let options = SqliteConnectOptions::new().filename(path).foreign_keys(true).busy_timeout(BUSY_TIMEOUT);
    options.synchronous(SYNCHRONOUS).disable_statement_logging()
}

async fn connect(path: &Path) -> Result<SqliteConnection> {
    let failed = |error| failed(path, &error);
    let mut connection = options(path).connect().await.map_err(failed)?;
    let schema = known_schema(path, &mut connection).await?;
    if std::fs::metadata(path).is_ok_and(|file| file.len() <= CHECK_UP_TO_BYTES) {
        let row = connection.fetch_one("PRAGMA quick_check(1)").await.map_err(failed)?;
        let verdict: String = row.try_get(0).map_err(failed)?;
        if verdict != "ok" {
            return Err(JournalError::Corrupt {
                path: path.display().to_string(),
                message: verdict.replace('\n', " "),
            });
        }
    }
    connection.execute("PRAGMA journal_mode = WAL").await.map_err(failed)?;
    migrate(&mut connection, schema).await.map_err(failed)?;
    Ok(connection)
}

/// Takes no lock, makes nothing, changes nothing.
pub(super) async fn open_to_read(path: &Path) -> Result<SqliteConnection> {
    let open_error = |message: String| JournalError::Open { path: path.display().to_string(), message };
    if !path.is_file() {
        return Err(open_error("there is none: no service has been started with this DATA_DIR".into()));
    }
    let connection = options(path).read_only(true).connect().await;
    let mut connection = connection.map_err(|error| failed(path, &error))?;
    match known_schema(path, &mut connection).await? {
        version if version == MIGRATIONS.len() => Ok(connection),
        _ => Err(open_error("it was written by an older janebot: start this one's service once".into())),
    }
}

/// The version of the schema in the file; 0 for an empty file.
async fn known_schema(path: &Path, connection: &mut SqliteConnection) -> Result<usize> {
    let query = "SELECT (SELECT user_version FROM pragma_user_version), \
                        (SELECT application_id FROM pragma_application_id), \
                        (SELECT count(*) FROM sqlite_schema)";
    let row = connection.fetch_one(query).await;
    let read = |row: &SqliteRow| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
    let numbers: sqlx::Result<(i64, i32, i64)> = row.and_then(|row| read(&row));
    let (found, application, tables) = numbers.map_err(|error| failed(path, &error))?;
    let path = path.display().to_string();
    if application != APPLICATION_ID && tables > 0 {
        return Err(JournalError::Open { path, message: "it is the SQLite database of another program".into() });
    }
    match usize::try_from(found) {
        Ok(version) if version <= MIGRATIONS.len() => Ok(version),
        _ => Err(JournalError::Newer { path, found, known: MIGRATIONS.len() as i64 }),
    }
}

async fn migrate(connection: &mut SqliteConnection, from: usize) -> sqlx::Result<()> {
    for (index, step) in MIGRATIONS.iter().enumerate().skip(from) {
        let sql = format!(
            "BEGIN IMMEDIATE;\n{step}\nPRAGMA application_id = {APPLICATION_ID};\nPRAGMA user_version = {};\nCOMMIT;",
            index + 1
        );
        if let Err(error) = connection.execute(AssertSqlSafe(sql)).await {
            // SQLite may have rolled back by itself, as it does on a full disk; then there is nothing left to do.
            let _ = connection.execute("ROLLBACK").await;
            return Err(error);
        }
    }
    Ok(())
}

fn code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

/// What is damaged, when `error` says that the file is. Codes are at <https://www.sqlite.org/rescode.html>; the low byte
/// is the class.
pub(super) fn damage(error: &sqlx::Error) -> Option<String> {
    const CORRUPT: i32 = 11;
    const NOT_A_DATABASE: i32 = 26;
    matches!(code(error)? & 0xff, CORRUPT | NOT_A_DATABASE)
        .then(|| error.as_database_error().map(|e| e.message().to_owned()))?
}

/// The words with which the schema's trigger refused, when it did.
pub(super) fn refusal_of_trigger(error: &sqlx::Error) -> Option<String> {
    const CONSTRAINT_TRIGGER: i32 = 1811;
    (code(error)? == CONSTRAINT_TRIGGER).then(|| error.as_database_error().map(|e| e.message().to_owned()))?
}

/// `error` in words for an operator.
pub(super) fn explain(error: &sqlx::Error) -> String {
    const BUSY: i32 = 5;
    const READ_ONLY: i32 = 8;
    const FULL: i32 = 13;
    match (code(error).map(|code| code & 0xff), error.as_database_error()) {
        (Some(FULL), _) => "the disk is full".into(),
        (Some(BUSY), _) => "another program keeps it locked".into(),
        (Some(READ_ONLY), _) => "it is read-only".into(),
        (_, Some(database)) => database.message().to_owned(),
        (_, None) => error.to_string(),
    }
}
