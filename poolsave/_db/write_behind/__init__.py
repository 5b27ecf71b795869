"""Write-behind on PostgreSQL: what a chunk's transaction inserts and changes is sent later, many rows at once."""
