#!/usr/bin/env bash
# Expected: psycopg's sql.Identifier makes any name safe in a statement: a table called "a%sb" is one, and its % is no
#   placeholder.
# Happens: as soon as the statement has parameters, the % inside of the quoted name is read as one of its placeholders.
#   "%s" in a name is counted as a placeholder ("2 placeholders but 1 parameters"); without parameters the same
#   identifier is taken as it is. Doubling the % in the name by hand gives the right statement with parameters, and the
#   name of another table without them.
# Why it matters: names of tables that come from outside, as names of collections of vectors do, go through
#   sql.Identifier because it is the documented way; whether one works depends on whether the statement has parameters.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'psycopg[binary]==3.3.9'
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import psycopg
from psycopg import sql
from psycopg._queries import PostgresQuery
from psycopg.adapt import Transformer


def converted(name, parameters):
    """What would go to the server, or what is said instead; as cursors do it, and without one."""
    statement = sql.SQL("SELECT id FROM {} WHERE id = " + ("%s" if parameters else "1")).format(sql.Identifier(name))
    query = PostgresQuery(Transformer())
    try:
        query.convert(statement.as_bytes(None), parameters)
    except psycopg.ProgrammingError as error:
        return f"refused: {error}"
    return query.query.decode()


print(f"psycopg {psycopg.__version__}")
found = {}
for name in ("a%sb", "a%%sb"):
    for parameters in (None, (1,)):
        found[name, bool(parameters)] = converted(name, parameters)
        print(f"  Identifier({name!r}), parameters {parameters}: {found[name, bool(parameters)]}")
sys.exit(
    not (
        found["a%sb", False] == 'SELECT id FROM "a%sb" WHERE id = 1'
        and found["a%sb", True].startswith("refused: ")
        and found["a%%sb", True].startswith('SELECT id FROM "a%sb" WHERE')
        and found["a%%sb", False] == 'SELECT id FROM "a%%sb" WHERE id = 1'
    )
)
PYTHON
