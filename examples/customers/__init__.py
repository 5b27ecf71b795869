"""The app of create_users.py and import_csv.py: what receivers write for each user and customer."""
