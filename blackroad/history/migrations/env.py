"""What Alembic runs: the connection is given by the program, never by a file.

This file must not know an address of a database.
"""

from alembic import context

from blackroad.history.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite changes a column only by making the table anew.
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
