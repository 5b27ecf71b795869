"""The backend."""

from django.db.backends.postgresql import base


class DatabaseWrapper(base.DatabaseWrapper):
    schema_name = "public"
    _is_set = False

    def set_schema(self, schema):
        self.schema_name = schema
        self._is_set = False

    def close(self):
        self._is_set = False
        super().close()

    def rollback(self):
        self._is_set = False
        super().rollback()

    def savepoint_rollback(self, sid):
        super().savepoint_rollback(sid)
        self._is_set = False

    def _cursor(self, name=None):
        cursor = super()._cursor(name)
        if not self._is_set:
            self._is_set = True
            cursor.execute(f"SET search_path = {self.schema_name}")
        return cursor
