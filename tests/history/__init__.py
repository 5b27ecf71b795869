"""An app whose present models no longer have the columns that its migrations work on."""
