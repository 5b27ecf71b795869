"""Write-behind on PostgreSQL: the INSERTs of a chunk's transaction are sent later, one statement for many rows."""
