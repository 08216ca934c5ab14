//! Every verb on everything that is there, as each role's own user.

use std::collections::BTreeSet;

use harness::Servers;
use harness::database::{Database, ROLES};
use harness::report;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

use super::rights::{COLUMNS, DENIED_TO_ALL, FUNCTIONS, Rights, SEQUENCES, TABLES, VIEWS};

/// Something that a role does, and whether it may.
struct Try {
    role: &'static str,
    statement: String,
    allowed: bool,
}

/// One statement, as each of the roles; those with `right` may.
fn as_each_role(statement: &str, rights: Rights, right: char) -> impl Iterator<Item = Try> {
    let statement = statement.to_owned();
    ROLES.into_iter().zip(rights).map(move |(role, rights)| Try {
        role,
        statement: statement.clone(),
        allowed: rights.contains(right),
    })
}

/// Rights are looked at before rows, so that none need be there and none is changed.
fn tries() -> Vec<Try> {
    let mut tries = Vec::new();
    for &(table, column, rights) in COLUMNS {
        let statements = [
            ('S', format!("SELECT {column} FROM {table} WHERE false")),
            ('I', format!("INSERT INTO {table} ({column}) SELECT NULL WHERE false")),
            ('U', format!("UPDATE {table} SET {column} = NULL WHERE false")),
        ];
        tries.extend(statements.iter().flat_map(|(right, statement)| as_each_role(statement, rights, *right)));
    }
    for &(table, rights) in TABLES {
        tries.extend(as_each_role(&format!("DELETE FROM {table} WHERE false"), rights, 'D'));
        tries.extend(as_each_role(&format!("TRUNCATE {table}"), rights, 'T'));
        let trigger =
            format!("CREATE TRIGGER t AFTER INSERT ON {table} EXECUTE FUNCTION suppress_redundant_updates_trigger()");
        tries.extend(as_each_role(&trigger, rights, 'R'));
    }
    for &(view, rights) in VIEWS {
        tries.extend(as_each_role(&format!("SELECT * FROM {view} LIMIT 0"), rights, 'S'));
        tries.extend(as_each_role(&format!("DELETE FROM {view} WHERE false"), rights, 'D'));
    }
    for &(sequence, rights) in SEQUENCES {
        tries.extend(as_each_role(&format!("SELECT nextval('{sequence}')"), rights, 'G'));
    }
    for &(_, call, rights) in FUNCTIONS {
        tries.extend(as_each_role(&format!("SELECT {call}"), rights, 'E'));
    }
    for statement in DENIED_TO_ALL {
        tries.extend(as_each_role(statement, [""; ROLES.len()], '-'));
    }
    for (index, target) in ROLES.into_iter().enumerate() {
        let own = std::array::from_fn(|role| if role == index { "=" } else { "" });
        tries.extend(as_each_role(&format!("SET ROLE outhook_{target}"), own, '='));
    }
    tries
}

/// Whether it was allowed, or what else went wrong. Nothing of it stays.
async fn attempt(connection: &mut PgConnection, statement: &str) -> Result<bool, String> {
    let mut transaction = connection.begin().await.expect("a transaction begins");
    let done = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await;
    transaction.rollback().await.expect("a transaction rolls back");
    match done {
        Ok(_) => Ok(true),
        Err(error) => {
            let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
            // insufficient_privilege; a view that cannot be written to says so before anybody asks who.
            if matches!(code.as_deref(), Some("42501" | "55000")) { Ok(false) } else { Err(error.to_string()) }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_verb_on_every_column_is_refused_to_whom_it_is_not_given() {
    let database = Database::create(Servers::shared().await).await;
    let (tries, mut wrong, mut refused) = (tries(), Vec::new(), 0);
    for role in ROLES {
        let mut connection = PgConnection::connect(&database.url_of(role)).await.expect("the role's user logs in");
        for Try { statement, allowed, .. } in tries.iter().filter(|it| it.role == role) {
            let done = attempt(&mut connection, statement).await;
            refused += usize::from(done == Ok(false));
            if done != Ok(*allowed) {
                wrong.push(format!("{role}: {statement}: expected {allowed}, found {done:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} rights are not as they should be:\n{}", wrong.len(), wrong.join("\n"));
    report(&format!("least privilege: {} statements as {} users, {refused} refused", tries.len(), ROLES.len()));
    database.drop().await;
}

/// What is there that somebody could have rights on.
async fn existing(pool: &PgPool, statement: &'static str) -> BTreeSet<String> {
    let names: Vec<String> = sqlx::query_scalar(statement).fetch_all(pool).await.expect("the catalog can be read");
    names.into_iter().collect()
}

/// Panics with what is on one side only.
fn assert_all_named(what: &str, existing: &BTreeSet<String>, named: impl IntoIterator<Item = String>) {
    let named: BTreeSet<String> = named.into_iter().collect();
    let unnamed: Vec<_> = existing.difference(&named).collect();
    assert!(unnamed.is_empty(), "{what} that rights.rs does not name, so nobody has said whose they are: {unnamed:?}");
    let gone: Vec<_> = named.difference(existing).collect();
    assert!(gone.is_empty(), "{what} that rights.rs names and that are not there: {gone:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_there_whose_rights_are_not_written_down() {
    let database = Database::create(Servers::shared().await).await;
    let pool = &database.pool;
    let columns = "SELECT format('%s.%s.%s', relnamespace::regnamespace, relname, attname)
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        WHERE relnamespace IN ('public'::regnamespace, 'outhook'::regnamespace) AND relkind IN ('r', 'p', 'f')
          AND attnum > 0 AND NOT attisdropped";
    let named = COLUMNS.iter().map(|(table, column, _)| format!("{table}.{column}"));
    assert_all_named("columns", &existing(pool, columns).await, named);
    let relations = "SELECT format('%s.%s', relnamespace::regnamespace, relname) FROM pg_class
        WHERE relnamespace IN ('public'::regnamespace, 'outhook'::regnamespace) AND relkind NOT IN ('i', 'I')";
    let all = [TABLES, VIEWS, SEQUENCES].concat();
    let named = all.iter().map(|(name, _)| (*name).to_owned());
    assert_all_named("tables, views and sequences", &existing(pool, relations).await, named);
    let functions = "SELECT format('%s.%s', pronamespace::regnamespace, proname) FROM pg_proc
        WHERE pronamespace IN ('public'::regnamespace, 'outhook'::regnamespace)
          -- A trigger's cannot be called.
          AND prorettype <> 'trigger'::regtype";
    let named = FUNCTIONS.iter().map(|(name, ..)| (*name).to_owned());
    assert_all_named("functions", &existing(pool, functions).await, named);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_catalog_says_is_what_is_written_down() {
    let database = Database::create(Servers::shared().await).await;
    let mut wrong = Vec::new();
    let has = async |question: String| -> bool {
        sqlx::query_scalar(AssertSqlSafe(question)).fetch_one(&database.pool).await.expect("Postgres knows")
    };
    for &(table, column, rights) in COLUMNS {
        for (role, rights) in ROLES.into_iter().zip(rights) {
            for (right, verb) in [('S', "SELECT"), ('I', "INSERT"), ('U', "UPDATE"), ('R', "REFERENCES")] {
                let ask = format!("SELECT has_column_privilege('outhook_{role}', '{table}', '{column}', '{verb}')");
                if has(ask).await != rights.contains(right) {
                    wrong.push(format!("{role} {verb} {table}.{column}"));
                }
            }
        }
    }
    for &(relation, rights) in TABLES.iter().chain(VIEWS) {
        for (role, rights) in ROLES.into_iter().zip(rights) {
            for (right, verb) in [('D', "DELETE"), ('T', "TRUNCATE"), ('R', "TRIGGER")] {
                let ask = format!("SELECT has_table_privilege('outhook_{role}', '{relation}', '{verb}')");
                if has(ask).await != rights.contains(right) {
                    wrong.push(format!("{role} {verb} {relation}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // Nor has a role what no statement above needs: an attribute, another role, something of its own.
    let strong = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'outhook\\_%'
        AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)";
    let members = "SELECT count(*) FROM pg_auth_members JOIN pg_roles ON pg_roles.oid = member
        WHERE rolname LIKE 'outhook\\_%' AND rolname NOT LIKE '%\\_login'
          AND (rolname, roleid::regrole::text) <> ('outhook_reader', 'pg_read_all_stats')";
    let owners = "SELECT count(*) FROM (SELECT relowner AS owner FROM pg_class UNION ALL SELECT proowner FROM pg_proc
        UNION ALL SELECT nspowner FROM pg_namespace) AS owned JOIN pg_roles ON pg_roles.oid = owner WHERE rolname LIKE 'outhook\\_%'";
    for (what, statement) in [("attribute", strong), ("membership", members), ("object", owners)] {
        assert!(!has(format!("SELECT ({statement}) > 0")).await, "a role has an {what} of its own");
    }
    database.drop().await;
}
