"""For apps that name no database in their queries: everything goes to one."""


class OnPostgres:
    def db_for_read(self, model, **hints):
        return "postgres"

    db_for_write = db_for_read


class OnMariadb:
    def db_for_read(self, model, **hints):
        return "mariadb"

    db_for_write = db_for_read
